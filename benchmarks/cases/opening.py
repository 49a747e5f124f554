"""Opening a disk cache that is there already: what a command pays before its first look-up."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Dict, List

from ..bench import Bench, case
from ..measuring import Column, Section, Target

_ENTRIES = (0, 1_000, 50_000)
_SIZE = 1_300
"""What a sealed answer of 2 KB takes, in bytes."""
_LIMIT_MS = 50.0
_LIMIT_MB = 10.0
_ROOT = Path(__file__).resolve().parents[2]


@case("opening", "Opening a disk cache")
async def opening(bench: Bench) -> Section:
    urls = {entries: bench.new_url("disk") for entries in _ENTRIES}
    for entries, url in urls.items():
        await bench.fill(url, entries=entries, size=_SIZE)
    found: Dict[int, List[Dict[str, float]]] = {entries: [] for entries in _ENTRIES}
    for _ in range(bench.pick(5, 15)):
        for entries, url in urls.items():
            found[entries].append(await _probe(url, entries))
    section = Section(
        about=(
            "`Cache.open()` in a fresh process, for each round and size a new one; the files are in the system's file "
            "cache. Memory is the growth of the resident set. The first look-up, a miss, comes right after. The ratio "
            "is to opening an empty cache, the floor."
        ),
        label="entries",
        columns=(
            Column("open_ms", "median ms", 2),
            Column("open_most_ms", "most ms", 2),
            Column("lookup_ms", "first look-up ms", 2),
            Column("grown_mb", "median MB", 2),
            Column("ratio", "ratio", 2),
        ),
    )
    for entries, probes in found.items():
        section.rows.append(
            {
                "name": f"{entries:,}",
                "open_ms": _median(probes, "open_s") * 1e3,
                "open_most_ms": max(probe["open_s"] for probe in probes) * 1e3,
                "lookup_ms": _median(probes, "lookup_s") * 1e3,
                "grown_mb": _median(probes, "grown_bytes") / 1e6,
                "ratio": _median(probes, "open_s") / _median(found[0], "open_s"),
            }
        )
    last = section.rows[-1]
    milliseconds, megabytes = last["open_ms"], last["grown_mb"]
    what = f"open a disk cache of {_ENTRIES[-1]:,} entries"
    section.targets = [
        Target(f"{what} in under {_LIMIT_MS:.0f} ms", f"{milliseconds:.1f} ms", milliseconds < _LIMIT_MS),
        Target(f"{what} in under {_LIMIT_MB:.0f} MB", f"{megabytes:.1f} MB", megabytes < _LIMIT_MB),
    ]
    return section


def _median(probes: List[Dict[str, float]], name: str) -> float:
    return statistics.median([probe[name] for probe in probes])


async def _probe(url: str, entries: int) -> Dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.opening_probe", url, cwd=str(_ROOT), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    figures: Dict[str, float] = json.loads(output)
    if figures["entries"] != entries:
        raise RuntimeError(f"the process found {figures['entries']} entries and not {entries}")
    return figures
