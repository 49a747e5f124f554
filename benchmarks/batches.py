"""``python -m benchmarks.batches``: what a long batch takes on the command line, and what an interruption costs it.

``claude-force map`` runs in processes of its own against a quick local Messages API, with a cache on disk:

- ``cold``: tasks that were never asked, in one run, for the memory to compare with;
- ``interrupted``: ten times as many, interrupted by Ctrl-C three times on the way and resumed each time;
- ``warm``: both again, out of the cache.

It fails if a call was made twice, a result is missing or there twice, or a run did not end as it should.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from .busy_api import BusyAPI

_INTERRUPTED = 130


class _Run(NamedTuple):
    name: str
    tasks: int
    seconds: float
    peak_mb: float
    said: str

    def show(self) -> None:
        rate = self.tasks / self.seconds
        print(
            f"  {self.name:34}{self.tasks:9,}{self.seconds:9.1f}{rate:9,.0f}{self.peak_mb:9.0f}   {self.said}",
            flush=True,
        )


class _Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.count = 0

    def look(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            self._offset += len(data)
            self.count += data.count(b"\n")
        return self.count


class _Project:
    """A project with tasks, a cache and results of its own."""

    def __init__(self, folder: Path, tasks: int, url: str, concurrent: int) -> None:
        (folder / ".claude").mkdir(parents=True)
        (folder / ".claude" / "reviewer.md").write_text("You review code.\n", encoding="utf-8")
        config = {"agents": {"reviewer": {"file": "reviewer.md"}}}
        (folder / ".claude" / "claude.json").write_text(json.dumps(config), encoding="utf-8")
        with (folder / "tasks.jsonl").open("w", encoding="utf-8") as file:
            for number in range(tasks):
                file.write(json.dumps(f"Review function number {number}. " + "What may go wrong? " * 10) + "\n")
        self.tasks = tasks
        self._folder = folder
        self._results = folder / "results.jsonl"
        self._concurrent = concurrent
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLAUDE_", "ANTHROPIC_"))}
        self._environment: Dict[str, str] = {
            **kept,
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "no-key-needed",
            "CLAUDE_CACHE_SECRET": "a secret for measurements, long enough",
            "CLAUDE_CACHE_URL": f"disk://{folder}/cache?max_bytes=4000000000",
        }

    def run(self, name: str, *options: str, until: Optional[int] = None) -> _Run:
        """Run the batch to its end, or until so many results are written.

        :raises RuntimeError: if it does not end as it should.
        """
        command = [sys.executable, "-m", "claude_force_orchestrator.cli", "map", "reviewer", "tasks.jsonl"]
        command += ["--out", "results.jsonl", "--max-concurrent", str(self._concurrent), *options]
        lines = _Lines(self._results)
        before = lines.look() if "--resume" in options else 0
        begin = time.perf_counter()
        with (self._folder / "said").open("w+", encoding="utf-8") as said:
            process = subprocess.Popen(command, cwd=self._folder, env=self._environment, stderr=said)
            try:
                while until is not None and lines.look() < until:
                    if process.poll() is not None:
                        raise RuntimeError(f"the batch ended before it was interrupted: {said.name}")
                    time.sleep(0.05)
                if until is not None:
                    process.send_signal(signal.SIGINT)
                _, status, usage = os.wait4(process.pid, 0)
            except KeyboardInterrupt:
                process.kill()
                raise
            process.returncode = os.WEXITSTATUS(status)
            seconds = time.perf_counter() - begin
            said.seek(0)
            text = said.read()
        if process.returncode != (0 if until is None else _INTERRUPTED):
            raise RuntimeError(f"the batch ended with exit code {process.returncode}: {text}")
        summary = next(line for line in text.splitlines() if "API calls" in line)
        return _Run(name, lines.look() - before, seconds, usage.ru_maxrss / 1024, summary.partition(": ")[2])

    def check(self) -> None:
        """Return if there is one successful result for each task.

        :raises RuntimeError: otherwise.
        """
        indices: List[int] = []
        with self._results.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if not row["success"]:
                    raise RuntimeError(f"a task failed: {row['errors']}")
                indices.append(row["index"])
        if sorted(indices) != list(range(self.tasks)):
            raise RuntimeError(f"{len(indices)} results of {self.tasks} tasks, {len(set(indices))} of them distinct")


def _measure(arguments: argparse.Namespace, folder: Path) -> None:
    print(f"  {'run':34}{'results':>9}{'seconds':>9}{'per s':>9}{'peak MB':>9}   what it said")
    fewer = max(10, arguments.tasks // 10)
    with BusyAPI(latency_ms=arguments.latency_ms) as small:
        project = _Project(folder / "small", fewer, small.base_url, arguments.concurrent)
        project.run("cold").show()
        project.check()
        project.run("warm").show()
        project.check()
    with BusyAPI(latency_ms=arguments.latency_ms) as large:
        project = _Project(folder / "large", arguments.tasks, large.base_url, arguments.concurrent)
        pieces = arguments.interruptions + 1
        for piece in range(1, pieces):
            until = arguments.tasks * piece // pieces
            project.run(f"cold, interrupted at {until:,}", "--resume", until=until).show()
        project.run("cold, the rest", "--resume").show()
        project.check()
        project.run("warm").show()
        project.check()
        project.run("warm, in order", "--in-order").show()
        project.check()
        project.run("nothing left to do", "--resume").show()
    for server, tasks in ((small, fewer), (large, arguments.tasks)):
        print(
            f"  the API answered {server.answered:,} calls, {server.distinct:,} of them distinct, for {tasks:,} tasks"
        )
        if not server.answered == server.distinct == tasks:
            raise RuntimeError("calls were made twice, or not at all")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--concurrent", type=int, default=10)
    parser.add_argument("--latency-ms", type=int, default=0)
    parser.add_argument("--interruptions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
