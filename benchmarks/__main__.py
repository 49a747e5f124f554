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
from typing import Any, Dict, List, Optional

from . import cases, machine, report
from .bench import ALL, CASES, SECRET, Bench, Case
from .measuring import Section
from .servers import PROGRAMS, Servers

_RESULTS = Path(__file__).with_name("results")


def main() -> int:
    """Return 0, or 1 if a case failed. A target that is missed is a finding, not a failure."""
    arguments = _parse()
    chosen = [case for case in CASES.values() if case.name in (arguments.only or ALL)]
    _forget_the_environment()
    # Ends by an exception, so that the servers end too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before, begun, start = machine.load(), datetime.now(timezone.utc), time.monotonic()
    sections: Dict[Case, Section] = {}
    with tempfile.TemporaryDirectory(prefix="claude-force-bench-") as folder:
        bench = Bench(Path(folder), arguments.out, quick=arguments.quick, say=_say)
        try:
            reasons = [_run(case, bench, sections) for case in chosen]
        finally:
            bench.servers.close()
    failed = [*bench.failures, *(reason for reason in reasons if reason is not None)]
    run: Dict[str, Any] = {
        "mode": "quick" if arguments.quick else "full",
        "begun": begun.strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - start, 1),
        "load_before": before,
        "load_after": machine.load(),
        "failed": failed,
        "machine": machine.describe({PROGRAMS[kind]: Servers.program(kind) for kind in PROGRAMS}),
    }
    written = report.write(arguments.out, "-".join(arguments.only or ["latest"]), run, sections)
    print(report.as_markdown(run, sections))
    _say(f"written: {', '.join(map(str, written))}")
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 2 minutes, with fewer rounds and smaller stores")
    parser.add_argument("--only", action="append", choices=list(CASES), help="this case alone; may be repeated")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="the folder for tables and plots")
    return parser.parse_args()


def _run(case: Case, bench: Bench, sections: Dict[Case, Section]) -> Optional[str]:
    """Return why the case failed, or None."""
    bench.say(f"{case.name} ...")
    begun = time.monotonic()
    try:
        sections[case] = asyncio.run(_bounded(case, bench))
    except Exception as error:  # noqa: BLE001 - one case that fails must not cost the figures of the others
        traceback.print_exc()
        return f"{case.name}: {type(error).__name__}: {error}"
    finally:
        bench.say(f"{case.name}: {time.monotonic() - begun:.0f} s")
    return None


async def _bounded(case: Case, bench: Bench) -> Section:
    try:
        return await asyncio.wait_for(case.run(bench), case.seconds)
    except asyncio.TimeoutError:
        raise RuntimeError(f"it was not done after {case.seconds:.0f} seconds") from None


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
