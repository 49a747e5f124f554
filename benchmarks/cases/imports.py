"""What a program waits for before its first line: the imports."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Dict, List

from ..bench import Bench, case
from ..measuring import Column, Section
from ..targets import Target

_BARE = "floor: the bare interpreter"
_COMMANDS = {
    _BARE: [sys.executable, "-c", "pass"],
    "import claude_force_cache": [sys.executable, "-c", "import claude_force_cache"],
    "from claude_force_cache import open_cache": [sys.executable, "-c", "from claude_force_cache import open_cache"],
    "import claude_force_orchestrator": [sys.executable, "-c", "import claude_force_orchestrator"],
    "import anthropic": [sys.executable, "-c", "import anthropic"],
    "claude-force --help": [str(Path(sys.executable).with_name("claude-force")), "--help"],
}
_LIMITS_MS = {"import claude_force_cache": 60.0, "claude-force --help": 250.0}


@case("imports", "Imports")
async def imports(bench: Bench) -> Section:
    found: Dict[str, List[float]] = {name: [] for name in _COMMANDS}
    for number in range(bench.pick(1, 15) + 1):
        for name, command in _COMMANDS.items():
            begin = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
            _, said = await process.communicate()
            if process.returncode:
                raise RuntimeError(f"{name}: {said.decode()[-300:]}")
            if number:  # the first one may have to compile the modules
                found[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(seconds) * 1e3 for name, seconds in found.items()}
    return Section(
        about=(
            "Each command in a fresh process, the commands in turn, from its start to its end; modules are compiled. "
            "What remains above the bare interpreter is what the targets are about. Modules come when a name of "
            "theirs is asked for, so the core costs what `open_cache` does once a cache is opened."
        ),
        label="command",
        columns=(
            Column("median_ms", "median ms"),
            Column("most_ms", "most ms"),
            Column("above_ms", "above the bare interpreter, ms"),
            Column("ratio", "ratio", 2),
        ),
        rows=[
            {
                "name": name,
                "median_ms": medians[name],
                "most_ms": max(seconds) * 1e3,
                "above_ms": medians[name] - medians[_BARE],
                "ratio": medians[name] / medians[_BARE],
            }
            for name, seconds in found.items()
        ],
        targets=[
            Target("import", name, medians[name] - medians[_BARE], most, "ms over the bare interpreter")
            for name, most in _LIMITS_MS.items()
        ],
    )
