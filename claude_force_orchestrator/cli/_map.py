"""``claude-force map``: one agent over a file of tasks, results as they come."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import json
import os
import stat
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Mapping, Optional, Set, Tuple

import typer
from typing_extensions import Annotated

from ._console import note, progress
from ._failure import FAILED, CommandError
from ._options import (
    AgentArgument,
    CacheOption,
    ConfigOption,
    DeadlineOption,
    MaxAgeOption,
    MaxConcurrentOption,
    MaxTokensOption,
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
    import asyncio

    from .._orchestrator import AsyncAgentOrchestrator
    from ._lines import Line

__all__ = ["count_tasks", "map_tasks", "opened", "parse_task"]

_WINDOW = 256
"""Tasks in memory at a time, besides the API calls that may be under way, so that hits need not queue behind misses."""


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
            "--out", metavar="FILE", help="Where results go, one a line; it is replaced. - is standard output."
        ),
    ] = "-",
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
) -> None:
    """Ask an agent every task of a file. Run it again after an interruption: what is cached is not asked again."""
    from ._execution import make_orchestrator
    from ._loop import GOES_ON, run_command

    mode = cache_mode(no_cache=no_cache, no_store=no_store, only_if_cached=only_if_cached)
    orchestrator = make_orchestrator(
        config,
        timeout=timeout,
        deadline_seconds=deadline,
        enable_memory=memory,
        cache=cache,
        max_concurrent=max_concurrent,
        on_suspicion=on_suspicion,
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
    with opened(tasks, out) as (source, target):
        batch = _Batch(orchestrator, agent, arguments, _WINDOW + max_concurrent)
        total = count_tasks(source)
        with progress() as bar:
            shown = bar.add_task(agent, total=total)
            run_command(
                batch.run(source, target, lambda: bar.advance(shown)),
                interrupted=GOES_ON,
            )
    note(batch.summary())
    if batch.failed:
        raise typer.Exit(FAILED)


@dataclass
class _Batch:
    """The tasks of a file on their way through one orchestrator, a bounded number at a time."""

    orchestrator: "AsyncAgentOrchestrator"
    agent: str
    arguments: Mapping[str, Any]
    window: int
    done: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    async def run(self, source: int, target: int, advance: Callable[[], None]) -> None:
        """Execute every line of ``source`` and write a line for each to ``target``, in the order of completion."""
        import asyncio

        from ._lines import LineWriter, read_lines

        under_way: Set[asyncio.Task[None]] = set()
        lines = read_lines(source)
        async with self.orchestrator, LineWriter(target) as writer:
            if stat.S_ISREG(os.fstat(target).st_mode):
                # Only now: settings that turn out wrong must not cost the results of the last run.
                os.ftruncate(target, 0)
            try:
                async for line in lines:
                    if len(under_way) >= self.window:
                        await _first(under_way)
                    under_way.add(asyncio.create_task(self._execute(line, writer.write, advance)))
                while under_way:
                    await _first(under_way)
            finally:
                await lines.aclose()
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    def summary(self) -> str:
        """Return one line on what happened."""
        from ._execution import usd

        totals = self.orchestrator.totals
        return (
            f"{self.done} tasks: {totals.hits} hits, {self.failed} failed, {totals.calls} API calls; "
            f"{usd(totals.usd_spent)} spent, {usd(totals.usd_saved)} saved; {time.monotonic() - self.started:.1f} s"
        )

    async def _execute(self, line: "Line", write: Callable[[bytes], Any], advance: Callable[[], None]) -> None:
        from ._execution import result_row

        index, text = line
        row: Dict[str, object] = {"index": index}
        try:
            task, agent, identifier = parse_task(text)
        except (ValueError, RecursionError) as error:
            problem = f"line {index + 1} is no task: {error}"
            row.update(agent=self.agent, success=False, output="", errors=[problem], metadata=None)
        else:
            if identifier is not None:
                row["id"] = identifier
            result = await self.orchestrator.execute_agent(agent or self.agent, task, **self.arguments)
            row.update(result_row(result))
        # A lone surrogate is written as its JSON escape, which is what UTF-8 cannot carry otherwise.
        data = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
        await write(data)
        self.done += 1
        self.failed += not row["success"]
        advance()


async def _first(under_way: "Set[asyncio.Task[None]]") -> None:
    import asyncio

    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        under_way.discard(task)
        task.result()


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
def opened(tasks: str, out: str) -> "Iterator[Tuple[int, int]]":
    """Open both files unbuffered, before anything is paid for."""
    source = sys.stdin.fileno() if tasks == "-" else _open(tasks, os.O_RDONLY, "read")
    target = -1
    try:
        if out == "-":
            target = sys.stdout.fileno()
        else:
            if Path(out).exists() and os.path.samestat(os.fstat(source), Path(out).stat()):
                raise CommandError(f"{out!r} is also the file of tasks: give another name to --out")
            target = _open(out, os.O_WRONLY | os.O_CREAT, "write")
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
