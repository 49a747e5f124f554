"""``python -m benchmarks.rate_limits``: batches against an API with limits, and what the limits cost.

- ``quota``: a batch of several times a quota of requests, against what the quota allows.
- ``crowd``: a batch against an API that refuses what is above so many requests at once.

Each prints a table; ``--csv FILE`` writes how the limit went with time.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from claude_force_cache import hookimpl
from claude_force_orchestrator import AsyncAgentOrchestrator
from claude_force_orchestrator.demo._standin import StandIn

from .busy_api import BusyAPI

_KEY = "no-key-needed"
_STEPS = 24


class _Curve:
    """How limit and load go with time: a sample every so often, and each change of the limit."""

    def __init__(self, orchestrator: AsyncAgentOrchestrator) -> None:
        self._orchestrator = orchestrator
        self._begun = time.monotonic()
        self.changes: List[Tuple[float, int, str]] = []
        self.pauses: List[Tuple[float, float]] = []
        self.samples: List[Tuple[float, int, int, int]] = []
        orchestrator.register(self)

    @hookimpl
    def claude_force_orchestrator_limit(self, limit: int, reason: str) -> None:
        self.changes.append((time.monotonic() - self._begun, limit, reason))

    @hookimpl
    def claude_force_orchestrator_pause(self, seconds: float) -> None:
        self.pauses.append((time.monotonic() - self._begun, seconds))

    async def watch(self, period: float) -> None:
        while True:
            for state in self._orchestrator.limits.values():
                self.samples.append((time.monotonic() - self._begun, state.limit, state.in_flight, state.waiting))
            await asyncio.sleep(period)

    def show(self) -> None:
        print("\n  seconds  limit  in flight  waiting")
        for index in range(0, len(self.samples), max(1, len(self.samples) // _STEPS)):
            second, limit, in_flight, waiting = self.samples[index]
            print(f"  {second:7.1f}  {limit:5}  {in_flight:9}  {waiting:7}  {'#' * min(limit, 100)}")
        cuts = [f"{limit} at {second:.1f} s" for second, limit, reason in self.changes if reason == "rate limit"]
        print(f"  cuts: {', '.join(cuts) or 'none'}; pauses: {len(self.pauses)}")

    def write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("seconds", "limit", "in_flight", "waiting"))
            rows.writerows((f"{second:.3f}", *rest) for second, *rest in self.samples)


def _project(folder: Path) -> Path:
    (folder / "agent.md").write_text("You review code.\n", encoding="utf-8")
    path = folder / "claude.json"
    path.write_text(json.dumps({"agents": {"reviewer": {"file": "agent.md"}}}), encoding="utf-8")
    return path


async def _batch(url: str, folder: Path, tasks: int, *, curve: Optional[Path], **options: Any) -> float:
    """Run a batch, show its curve, and return how long it took in seconds.

    :raises RuntimeError: if a task fails.
    """
    made: Dict[str, Any] = {"cache": "memory://", "enable_tracking": False, **options}
    async with AsyncAgentOrchestrator(_project(folder), _KEY, base_url=url, **made) as it:
        await it._clients.get()  # importing the SDK is not what is measured
        line = _Curve(it)
        watching = asyncio.ensure_future(line.watch(0.1))
        begin = time.perf_counter()
        results = await it.execute_multiple([("reviewer", f"Task {index}") for index in range(tasks)])
        elapsed = time.perf_counter() - begin
        watching.cancel()
        failed = [result.errors for result in results if not result.success]
        if failed:
            raise RuntimeError(f"{len(failed)} tasks failed, the first with {failed[0]}")
    line.show()
    if curve is not None:
        line.write(curve)
    return elapsed


def _quota(arguments: argparse.Namespace, folder: Path) -> None:
    with StandIn(latency_ms=50, rpm=arguments.rpm) as server:
        elapsed = asyncio.run(
            _batch(server.base_url, folder, arguments.tasks, curve=arguments.csv, max_concurrent=arguments.concurrent)
        )
        statuses = [entry["status"] for entry in server.journal()]
        verdict = server.verdict()
    allowed = (arguments.tasks - arguments.rpm) * 60 / arguments.rpm
    print(f"\n  {arguments.tasks} tasks at {arguments.rpm} requests a minute, {arguments.concurrent} at a time")
    print(f"  elapsed {elapsed:.1f} s; the quota allows {allowed:.1f} s; ratio {elapsed / allowed:.3f}")
    print(f"  requests {len(statuses)}, refused (429) {statuses.count(429)}\n  {verdict.strip()}")


def _crowd(arguments: argparse.Namespace, folder: Path) -> None:
    with BusyAPI(latency_ms=200, most=arguments.most) as server:
        elapsed = asyncio.run(
            _batch(server.base_url, folder, arguments.tasks, curve=arguments.csv, max_concurrent=arguments.concurrent)
        )
    allowed = arguments.tasks * 0.2 / arguments.most
    print(
        f"\n  {arguments.tasks} tasks of 200 ms; the API takes {arguments.most} at once; limit {arguments.concurrent}"
    )
    print(f"  elapsed {elapsed:.1f} s; the API allows {allowed:.1f} s; ratio {elapsed / allowed:.3f}")
    print(f"  answered {server.answered}, refused (429) {server.refused}, most at once {server.most}")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate_limits")
    commands = parser.add_subparsers(required=True)
    for name, run, defaults in (
        ("quota", _quota, {"tasks": 1800, "concurrent": 20, "rpm": 600}),
        ("crowd", _crowd, {"tasks": 1500, "concurrent": 60, "most": 12}),
    ):
        command = commands.add_parser(name)
        for option, default in defaults.items():
            command.add_argument(f"--{option}", type=int, default=default)
        command.add_argument("--csv", type=Path)
        command.set_defaults(run=run)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.run(arguments, Path(folder))


if __name__ == "__main__":
    main()
