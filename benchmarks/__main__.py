"""``python -m benchmarks``: measure everything, print the report, and write it to benchmarks/results/."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List

from . import cases, machine, report
from .bench import CASES, SECRET, Bench, Case
from .measuring import Section
from .servers import PROGRAMS, Servers

_RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """Return 0, or 1 if a case failed. A target that is missed is a finding, not a failure."""
    arguments = _parse()
    chosen = [CASES[name] for name in arguments.only or CASES]
    _forget_the_environment()
    # Ends by an exception, so that the servers end too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before, begun, start = machine.load(), datetime.now(timezone.utc), time.monotonic()
    sections: Dict[Case, Section] = {}
    with tempfile.TemporaryDirectory(prefix="claude-force-bench-") as folder:
        bench = Bench(Path(folder), quick=arguments.quick, say=_say)
        try:
            failed = [case.name for case in chosen if not _run(case, bench, sections)]
        finally:
            bench.servers.close()
    run: Dict[str, Any] = {
        "mode": "quick" if arguments.quick else "full",
        "begun": begun.strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - start, 1),
        "load_before": before,
        "load_after": machine.load(),
        "failed": failed,
        "machine": machine.describe({PROGRAMS[kind]: Servers.program(kind) for kind in PROGRAMS}),
    }
    written = report.write(arguments.out, run, sections)
    print(report.as_markdown(run, sections))
    _say(f"written: {', '.join(map(str, written))}")
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, with fewer rounds and smaller stores")
    parser.add_argument("--only", action="append", choices=list(CASES), help="this case alone; may be repeated")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="the folder for latest.json and latest.md")
    return parser.parse_args()


def _run(case: Case, bench: Bench, sections: Dict[Case, Section]) -> bool:
    bench.say(f"{case.name} ...")
    try:
        sections[case] = asyncio.run(case.run(bench))
    except Exception:  # noqa: BLE001 - one case that fails must not cost the figures of the others
        traceback.print_exc()
        return False
    return True


def _forget_the_environment() -> None:
    """Measure what is set here, whatever this user has configured, and ask nobody but the local server."""
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE_"))]:
        del os.environ[name]
    os.environ["CLAUDE_CACHE_SECRET"] = SECRET


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


__all__: List[str] = ["cases", "main"]

if __name__ == "__main__":
    sys.exit(main())
