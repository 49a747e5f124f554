"""``claude-force map``: one agent over a file of tasks of any length."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import json
import os
import re
import stat
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, AsyncGenerator, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import typer

from ._annotated import Annotated
from ._console import note, progress
from ._failure import FAILED, OVER_BUDGET, CommandError, report
from ._options import (
    AgentArgument,
    BatchAPIOption,
    CacheOption,
    ConfigOption,
    DeadlineOption,
    MaxAgeOption,
    MaxConcurrentOption,
    MaxTokensOption,
    MaxUSDOption,
    MemoryOption,
    ModelOption,
    NoCacheOption,
    NoStoreOption,
    OnlyIfCachedOption,
    OnSuspicionOption,
    StaleIfErrorOption,
    StaleWhileRevalidateOption,
    TagOption,
    TemperatureOption,
    TimeoutOption,
    TTLOption,
    VariantsOption,
    cache_mode,
    given,
)

if TYPE_CHECKING:
    from .._message_batches import MessageBatches
    from .._orchestrator import AsyncAgentOrchestrator
    from .._result import AgentResult
    from ._lines import LineReader, LineWriter

__all__ = ["WINDOW", "Refused", "count_tasks", "map_tasks", "opened", "parse_task"]

WINDOW = 256
"""Tasks in memory at a time, besides the API calls that may be under way, so that hits need not queue behind misses."""

_ROW = re.compile(rb'\{"index":(\d{1,15}),.*\}\Z', re.DOTALL)
_PAGE = 4096


def map_tasks(
    agent: AgentArgument,
    tasks: Annotated[
        str,
        typer.Argument(
            metavar="TASKS",
            help='A file of JSON lines, each a string or {"task": ..., "id": ..., "agent": ...}; - is standard input.',
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where results go, one a line; it is replaced, or with --resume continued. - is standard output.",
        ),
    ] = "-",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the results that the file has, and ask only the tasks that are not there."),
    ] = False,
    in_order: Annotated[
        bool,
        typer.Option("--in-order", help="Write results in the order of the tasks. Default: as they come, with index."),
    ] = False,
    batch_api: BatchAPIOption = False,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 4096,
    temperature: TemperatureOption = None,
    max_concurrent: MaxConcurrentOption = 10,
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    no_store: NoStoreOption = False,
    only_if_cached: OnlyIfCachedOption = False,
    ttl_hours: TTLOption = None,
    max_age_hours: MaxAgeOption = None,
    stale_while_revalidate_hours: StaleWhileRevalidateOption = None,
    stale_if_error_hours: StaleIfErrorOption = None,
    variants: VariantsOption = None,
    tag: TagOption = None,
    memory: MemoryOption = None,
    on_suspicion: OnSuspicionOption = "report",
    config: ConfigOption = None,
    timeout: TimeoutOption = None,
    deadline: DeadlineOption = None,
    max_usd: MaxUSDOption = None,
) -> None:
    """Ask an agent every task of a file of any length.

    Ctrl-C finishes the calls that are under way and begins no others. The same command with --resume goes on where it
    stopped: what is written is kept, and what is cached is not asked again.
    """
    from ._execution import make_orchestrator
    from ._loop import GOES_ON, RESUME, run_command

    if resume and out == "-":
        raise CommandError("--resume needs --out: it reads there what has been done")
    if batch_api and out == "-":
        raise CommandError("--batch-api needs --out: beside it is remembered what is under way")
    if batch_api and in_order:
        raise CommandError("--batch-api and --in-order contradict each other: results come as their batches end")
    mode = cache_mode(no_cache=no_cache, no_store=no_store, only_if_cached=only_if_cached)
    if batch_api and mode not in (None, "no-cache"):
        raise CommandError(f"--batch-api and --{mode} contradict each other: answers of batches are kept in the cache")
    orchestrator = make_orchestrator(
        config,
        timeout=timeout,
        deadline_seconds=deadline,
        enable_memory=memory,
        cache=cache,
        max_concurrent=max_concurrent,
        on_suspicion=on_suspicion,
        max_usd=max_usd,
    )
    # A wrong agent would fail every task alike; say so before there is a file of failures.
    orchestrator.project.read_definition(agent)
    arguments = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "cache": mode,
        **given(
            ttl_hours=ttl_hours,
            max_age_hours=max_age_hours,
            stale_while_revalidate_hours=stale_while_revalidate_hours,
            stale_if_error_hours=stale_if_error_hours,
            variants=variants,
            tags=tag,
        ),
    }
    with opened(tasks, out, resume=resume) as (source, target):
        batch = _Batch(orchestrator, agent, arguments, in_order, f"{out}.batches" if batch_api else None)
        if resume:
            batch.go_on(target, out)
        total = count_tasks(source)
        with progress() as bar:
            shown = bar.add_task(agent, total=total)
            try:
                run_command(
                    batch.run(source, target, lambda: bar.advance(shown), keep=resume),
                    interrupted=GOES_ON if out == "-" else RESUME,
                    stop=batch.stop,
                )
            except CommandError:
                note(batch.summary())
                raise
    note(batch.summary())
    if batch.refused:
        report(batch.refused.summary())
        raise typer.Exit(OVER_BUDGET)
    if batch.failed:
        raise typer.Exit(FAILED)


class _Indices:
    """A set of numbers of lines, in a bit for each."""

    def __init__(self) -> None:
        self._pages: Dict[int, bytearray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, index: int) -> bool:
        page, bit = divmod(index, _PAGE)
        found = self._pages.get(page)
        return found is not None and bool(found[bit >> 3] & 1 << (bit & 7))

    def add(self, index: int) -> None:
        if index not in self:
            page, bit = divmod(index, _PAGE)
            self._pages.setdefault(page, bytearray(_PAGE >> 3))[bit >> 3] |= 1 << (bit & 7)
            self._count += 1


@dataclass
class Refused:
    """How many tasks were not asked because of the budget, and what was said of the first one."""

    count: int = 0
    reason: str = ""

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, result: "AgentResult") -> bool:
        """Return whether a task was not asked because of the budget."""
        from .._errors import BudgetError

        if not isinstance(result.error, BudgetError):
            return False
        self.reason = self.reason or str(result.error)
        self.count += 1
        return True

    def summary(self) -> str:
        """Return one line on them."""
        return (
            f"{self.count} tasks were not asked, the first one because {self.reason}; the same command with a higher "
            "--max-usd goes on, what is cached is not asked again"
        )


@dataclass
class _Batch:
    """The tasks of a file on their way through one orchestrator, a bounded number at a time."""

    orchestrator: "AsyncAgentOrchestrator"
    agent: str
    arguments: Mapping[str, Any]
    in_order: bool
    state_path: Optional[str]
    done: int = 0
    failed: int = 0
    refused: Refused = field(default_factory=Refused)
    started: float = field(default_factory=time.monotonic)
    _stopped: bool = False
    _incomplete: bool = False
    _written: _Indices = field(default_factory=_Indices)
    _lines: "Optional[LineReader]" = None
    _job: "Optional[MessageBatches]" = None
    _count: int = 0
    _asked: Dict[int, Tuple[int, object]] = field(default_factory=dict)
    _bad: Dict[int, List[bytes]] = field(default_factory=dict)

    def go_on(self, target: int, out: str) -> None:
        """Keep the results of a run that was interrupted, without the line that it had not finished.

        :raises CommandError: if there is something else in the file.
        """
        from ._lines import mend_lines

        for number, line in mend_lines(target):
            row = _ROW.match(line or b"")
            if row is None:
                raise CommandError(f"line {number + 1} of {out!r} is no result of a task: give another --out")
            self._written.add(int(row.group(1)))

    def stop(self) -> None:
        """Let what is under way come to its end, and begin nothing else."""
        from ._loop import STOPPING, STOPPING_BATCHES

        note(STOPPING if self._job is None else STOPPING_BATCHES)
        self._stopped = True
        if self._job is not None:
            self._job.stop()
        self.orchestrator.stop()
        if self._lines is not None:
            self._lines.stop()

    async def run(self, source: int, target: int, advance: Callable[[], None], *, keep: bool) -> None:
        """Execute every line of ``source`` and write a line for each to ``target``.

        :param keep: go on behind what is written.
        """
        from ._lines import LineReader, LineWriter

        async with self.orchestrator, LineWriter(target) as writer:
            self._lines = LineReader(source)
            if self.state_path is not None:
                self._job = self.orchestrator.batches(self.state_path, **self.arguments)
            if self._stopped:
                self.stop()

            def begin() -> None:
                if not keep and stat.S_ISREG(os.fstat(target).st_mode):
                    os.ftruncate(target, 0)

            results = self._results(self._tasks(self._lines, writer, advance, begin))
            try:
                async for number, result in results:
                    await self._write_bad(number, writer, advance)
                    await self._write_result(self._asked.pop(number), result, writer, advance)
                await self._write_bad(self._count, writer, advance)
            finally:
                await results.aclose()

    def summary(self) -> str:
        """Return one line on what happened."""
        from ._execution import spending

        totals, seconds = self.orchestrator.totals, time.monotonic() - self.started
        there = f"; {len(self._written)} were there already" if self._written else ""
        if self._job is not None and self._job.under_way:
            there += f"; batches under way: {', '.join(str(batch.id) for batch in self._job.under_way)}"
        return (
            f"{self.done} tasks: {totals.hits} hits, {self.failed} failed, {totals.calls} API calls; "
            f"{spending(self.orchestrator)}; {seconds:.1f} s{there}"
        )

    async def _results(
        self, tasks: AsyncGenerator[Tuple[str, str], None]
    ) -> "AsyncGenerator[Tuple[int, AgentResult], None]":
        in_flight = WINDOW + self.orchestrator.settings.max_concurrent
        if not self.in_order:
            if self._job is not None:
                numbered = self._job.results(tasks)
            else:
                numbered = self.orchestrator.execute_as_completed(tasks, in_flight=in_flight, **self.arguments)
            try:
                async for item in numbered:
                    yield item
            finally:
                await numbered.aclose()
            return
        results, number = self.orchestrator.stream_many(tasks, in_flight=in_flight, **self.arguments), 0
        try:
            async for result in results:
                yield number, result
                number += 1
        finally:
            await results.aclose()

    async def _tasks(
        self, lines: "LineReader", writer: "LineWriter", advance: Callable[[], None], begin: Callable[[], None]
    ) -> AsyncGenerator[Tuple[str, str], None]:
        # Only now: what turns out wrong before must not cost the results of the last run, or of one that still runs.
        begin()
        async for index, text in lines:
            if index in self._written:
                advance()
                continue
            try:
                task, agent, identifier = parse_task(text)
            except (ValueError, RecursionError) as error:
                problem = f"line {index + 1} is no task: {error}"
                row = {"index": index, "agent": self.agent, "success": False, "output": "", "errors": [problem]}
                self._bad.setdefault(self._count, []).append(_json({**row, "metadata": None}))
                if not self.in_order:
                    await self._write_bad(self._count, writer, advance)
                continue
            self._asked[self._count] = index, identifier
            self._count += 1
            yield agent or self.agent, task

    async def _write_bad(self, number: int, writer: "LineWriter", advance: Callable[[], None]) -> None:
        """Write what became of the lines before a task that are none."""
        for row in self._bad.pop(number, ()):
            await self._write(row, writer, advance, failed=True)

    async def _write_result(
        self, asked: Tuple[int, object], result: "AgentResult", writer: "LineWriter", advance: Callable[[], None]
    ) -> None:
        from .._errors import StoppedError
        from ._execution import result_row

        # What was not asked is no result: it is asked when the command is run again.
        if isinstance(result.error, StoppedError) or self.refused.add(result):
            self._incomplete = True
            return
        index, identifier = asked
        row: Dict[str, object] = {"index": index}
        if identifier is not None:
            row["id"] = identifier
        row.update(result_row(result))
        await self._write(_json(row), writer, advance, failed=not result.success)

    async def _write(self, row: bytes, writer: "LineWriter", advance: Callable[[], None], *, failed: bool) -> None:
        if self.in_order and self._incomplete:
            return  # one before it is missing; it is in the cache
        await writer.write(row)
        self.done += 1
        self.failed += failed
        advance()


def _json(row: Mapping[str, object]) -> bytes:
    # A lone surrogate is written as its JSON escape, which is what UTF-8 cannot carry otherwise.
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def parse_task(text: Optional[bytes]) -> Tuple[str, Optional[str], object]:
    """Return the task of a line, its agent and its id.

    :raises ValueError: if the line is not a task.
    """
    from ._lines import MAX_LINE

    if text is None:
        raise ValueError(f"it is longer than {MAX_LINE:,} bytes")
    try:
        value = json.loads(text)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg}, column {error.colno})") from None
    if isinstance(value, str):
        return value, None, None
    if not isinstance(value, dict):
        raise ValueError('expected a string or {"task": ...}')
    task, agent, identifier = value.get("task"), value.get("agent"), value.get("id")
    if not isinstance(task, str):
        raise ValueError("its 'task' must be text")
    if agent is not None and not isinstance(agent, str):
        raise ValueError("its 'agent' must be text")
    try:
        json.dumps(identifier, allow_nan=False)
    except ValueError:
        raise ValueError("its 'id' holds NaN or an infinity, which JSON has not") from None
    return task, agent, identifier


@contextmanager
def opened(tasks: str, out: str, *, resume: bool = False) -> "Iterator[Tuple[int, int]]":
    """Open both files unbuffered, before anything is paid for; with ``resume`` also to read what was written."""
    source = sys.stdin.fileno() if tasks == "-" else _open(tasks, os.O_RDONLY, "read")
    target = -1
    try:
        if out == "-":
            target = sys.stdout.fileno()
        else:
            if Path(out).exists() and os.path.samestat(os.fstat(source), Path(out).stat()):
                raise CommandError(f"{out!r} is also the file of tasks: give another name to --out")
            target = _open(out, (os.O_RDWR if resume else os.O_WRONLY) | os.O_CREAT, "write")
            if resume and not stat.S_ISREG(os.fstat(target).st_mode):
                raise CommandError(f"--resume cannot read {out!r} back, which is no file: give the path of a file")
            if not _alone(target):
                raise CommandError(f"another process writes its results to {out!r}: wait for it, or give another name")
        try:
            yield source, target
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(
                f"{error.strerror or error} while tasks were read from {tasks!r} and results written to {out!r}: "
                "mend that and run the same command again, what is cached is not asked again"
            ) from error
    finally:
        if tasks != "-":
            os.close(source)
        if out != "-" and target >= 0:
            os.close(target)


def _alone(target: int) -> bool:
    """Return False if another process writes to this file, and keep others away while it is open.

    Where files cannot be locked, on Windows and on some network file systems, it is True.
    """
    if sys.platform == "win32" or not stat.S_ISREG(os.fstat(target).st_mode):
        return True
    import fcntl

    try:
        fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _open(path: str, flags: int, verb: str) -> int:
    try:
        descriptor = os.open(path, flags, 0o666)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(f"cannot {verb} {path!r} ({reason}): give the path of a file") from None
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CommandError(f"cannot {verb} {path!r} (it is a folder): give the path of a file")
    return descriptor


def count_tasks(source: int) -> Optional[int]:
    """Return the number of tasks in a file, or None for a pipe or a terminal."""
    from ._lines import count_lines

    return count_lines(source) if stat.S_ISREG(os.fstat(source).st_mode) else None
