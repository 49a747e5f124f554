"""``claude-force cache warm``: answers into the cache, before anybody waits for them."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, AsyncGenerator, Callable, Dict, Mapping, Optional, Tuple

import typer

from ._annotated import Annotated
from ._console import note, progress
from ._failure import FAILED, OVER_BUDGET, CommandError, report
from ._map import Refused
from ._options import (
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
    TagOption,
    TemperatureOption,
    TimeoutOption,
    TTLOption,
    given,
)

if TYPE_CHECKING:
    from .._message_batches import MessageBatches
    from .._orchestrator import AsyncAgentOrchestrator
    from ._lines import LineReader

__all__ = ["warm"]

_MOST_REPORTED = 10


def warm(
    tasks: Annotated[
        str,
        typer.Argument(
            metavar="TASKS",
            help='A file of JSON lines, each a string or {"task": ..., "agent": ...}; - is standard input.',
        ),
    ],
    agent: Annotated[
        Optional[str], typer.Option("--agent", metavar="NAME", help="The agent of lines that name none.")
    ] = None,
    batch_api: BatchAPIOption = False,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 4096,
    temperature: TemperatureOption = None,
    max_concurrent: MaxConcurrentOption = 10,
    cache: CacheOption = None,
    ttl_hours: TTLOption = None,
    max_age_hours: MaxAgeOption = None,
    tag: TagOption = None,
    memory: MemoryOption = None,
    config: ConfigOption = None,
    timeout: TimeoutOption = None,
    deadline: DeadlineOption = None,
    max_usd: MaxUSDOption = None,
) -> None:
    """Ask every task of a file that the cache has no answer to, and keep the answers there.

    Options have to be those that the tasks will be asked with: they are part of the question.
    """
    from ._execution import make_orchestrator
    from ._loop import GOES_ON, run_command
    from ._map import count_tasks, opened

    if batch_api and tasks == "-":
        raise CommandError("--batch-api needs a file of tasks: beside it is remembered what is under way")
    orchestrator = make_orchestrator(
        config,
        timeout=timeout,
        deadline_seconds=deadline,
        enable_memory=memory,
        cache=cache,
        max_concurrent=max_concurrent,
        max_usd=max_usd,
    )
    if orchestrator.cache is None:
        raise CommandError("the cache is switched off: set cache.enabled in claude.json to true")
    if agent is not None:
        orchestrator.project.read_definition(agent)
    arguments = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        **given(ttl_hours=ttl_hours, max_age_hours=max_age_hours, tags=tag),
    }
    with opened(tasks, os.devnull) as (source, _):
        total = count_tasks(source)
        with progress() as bar:
            shown = bar.add_task("warm", total=total)
            state_path = f"{tasks}.batches" if batch_api else None
            warming = _Warming(orchestrator, agent, arguments, lambda: bar.advance(shown), state_path)
            try:
                run_command(warming.run(source), interrupted=GOES_ON, stop=warming.stop)
            except CommandError:
                note(warming.summary())
                raise
    note(warming.summary())
    if warming.refused:
        report(warming.refused.summary())
        raise typer.Exit(OVER_BUDGET)
    if warming.failed:
        raise typer.Exit(FAILED)


@dataclass
class _Warming:
    """The tasks of a file on their way into the cache."""

    orchestrator: "AsyncAgentOrchestrator"
    agent: Optional[str]
    arguments: Mapping[str, Any]
    advance: Callable[[], None]
    state_path: Optional[str] = None
    hits: int = 0
    made: int = 0
    failed: int = 0
    refused: Refused = field(default_factory=Refused)
    started: float = field(default_factory=time.monotonic)
    _count: int = 0
    _stopped: bool = False
    _lines: "Optional[LineReader]" = None
    _job: "Optional[MessageBatches]" = None
    _asked: Dict[int, int] = field(default_factory=dict)

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

    async def run(self, source: int) -> None:
        """Ask every task of ``source``."""
        from .._errors import StoppedError
        from ._lines import LineReader
        from ._map import WINDOW

        async with self.orchestrator:
            self._lines = LineReader(source)
            if self.state_path is not None:
                self._job = self.orchestrator.batches(self.state_path, **self.arguments)
            if self._stopped:
                self.stop()
            tasks = self._tasks(self._lines)
            if self._job is not None:
                results = self._job.results(tasks)
            else:
                in_flight = WINDOW + self.orchestrator.settings.max_concurrent
                results = self.orchestrator.execute_as_completed(tasks, in_flight=in_flight, **self.arguments)
            try:
                async for number, result in results:
                    line = self._asked.pop(number)
                    if isinstance(result.error, StoppedError) or self.refused.add(result):
                        continue
                    for error in result.errors:
                        self._fail(line, error)
                    if result.success and result.metadata.truncated:
                        self._fail(line, "the answer was cut short by max_tokens, so it is not kept")
                    elif result.success:
                        self.hits += result.metadata.cached
                        self.made += not result.metadata.cached
                    self.advance()
            finally:
                await results.aclose()

    def summary(self) -> str:
        """Return one line on what happened."""
        from ._execution import spending

        if self.failed > _MOST_REPORTED:
            report(f"{self.failed - _MOST_REPORTED} more lines failed: claude-force map writes what became of each")
        return (
            f"{self.hits + self.made + self.failed} tasks: {self.hits} were answered already, {self.made} are now, "
            f"{self.failed} failed; {spending(self.orchestrator)}; {time.monotonic() - self.started:.1f} s"
        )

    async def _tasks(self, lines: "LineReader") -> AsyncGenerator[Tuple[str, str], None]:
        from ._map import parse_task

        async for index, text in lines:
            try:
                task, own, _ = parse_task(text)
                agent = own or self.agent
                if agent is None:
                    raise ValueError("it names no agent, and there is no --agent")
                if agent in self.orchestrator.settings.exclude_agents:
                    raise ValueError(f"agent {agent!r} is excluded from the cache")
            except (ValueError, RecursionError) as error:
                self._fail(index + 1, str(error))
                self.advance()
                continue
            self._asked[self._count] = index + 1
            self._count += 1
            yield agent, task

    def _fail(self, line: int, reason: str) -> None:
        self.failed += 1
        if self.failed <= _MOST_REPORTED:
            report(f"line {line}: {reason}")
