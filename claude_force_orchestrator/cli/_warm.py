"""``claude-force cache warm``: answers into the cache, before anybody waits for them."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, AsyncGenerator, Callable, Dict, Mapping, Optional, Tuple

import typer
from typing_extensions import Annotated

from ._console import note, progress
from ._failure import FAILED, CommandError, report
from ._options import (
    CacheOption,
    ConfigOption,
    DeadlineOption,
    MaxAgeOption,
    MaxConcurrentOption,
    MaxTokensOption,
    MemoryOption,
    ModelOption,
    TagOption,
    TemperatureOption,
    TimeoutOption,
    TTLOption,
    given,
)

if TYPE_CHECKING:
    from .._orchestrator import AsyncAgentOrchestrator

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
) -> None:
    """Ask every task of a file that the cache has no answer to, and keep the answers there.

    Options have to be those that the tasks will be asked with: they are part of the question.
    """
    from ._execution import make_orchestrator
    from ._loop import GOES_ON, run_command
    from ._map import count_tasks, opened

    orchestrator = make_orchestrator(
        config,
        timeout=timeout,
        deadline_seconds=deadline,
        enable_memory=memory,
        cache=cache,
        max_concurrent=max_concurrent,
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
            warming = _Warming(orchestrator, agent, arguments, lambda: bar.advance(shown))
            run_command(
                warming.run(source),
                interrupted=GOES_ON,
            )
    note(warming.summary())
    if warming.failed:
        raise typer.Exit(FAILED)


@dataclass
class _Warming:
    """The tasks of a file on their way into the cache."""

    orchestrator: "AsyncAgentOrchestrator"
    agent: Optional[str]
    arguments: Mapping[str, Any]
    advance: Callable[[], None]
    hits: int = 0
    made: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    _count: int = 0
    _lines: Dict[int, int] = field(default_factory=dict)

    async def run(self, source: int) -> None:
        """Ask every task of ``source``."""
        async with self.orchestrator:
            results = self.orchestrator.execute_as_completed(self._tasks(source), **self.arguments)
            try:
                async for number, result in results:
                    line = self._lines.pop(number)
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
        from ._execution import usd

        if self.failed > _MOST_REPORTED:
            report(f"{self.failed - _MOST_REPORTED} more lines failed: claude-force map writes what became of each")
        totals = self.orchestrator.totals
        return (
            f"{self.hits + self.made + self.failed} tasks: {self.hits} were answered already, {self.made} are now, "
            f"{self.failed} failed; {usd(totals.usd_spent)} spent; {time.monotonic() - self.started:.1f} s"
        )

    async def _tasks(self, source: int) -> AsyncGenerator[Tuple[str, str], None]:
        from ._lines import read_lines
        from ._map import parse_task

        lines = read_lines(source)
        try:
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
                self._lines[self._count] = index + 1
                self._count += 1
                yield agent, task
        finally:
            await lines.aclose()

    def _fail(self, line: int, reason: str) -> None:
        self.failed += 1
        if self.failed <= _MOST_REPORTED:
            report(f"line {line}: {reason}")
