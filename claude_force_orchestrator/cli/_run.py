"""``claude-force run``: one task, its answer on standard output."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import sys
from typing import TYPE_CHECKING, Any

import typer
from typing_extensions import Annotated

from .._validation import MAX_TASK_CHARACTERS
from ._console import note, print_json
from ._failure import CommandError, report
from ._options import (
    AgentArgument,
    CacheOption,
    ConfigOption,
    DeadlineOption,
    JSONOption,
    MaxTokensOption,
    ModelOption,
    NoCacheOption,
    NoStoreOption,
    OnlyIfCachedOption,
    TemperatureOption,
    TimeoutOption,
    cache_mode,
)

if TYPE_CHECKING:
    from .._orchestrator import AsyncAgentOrchestrator
    from .._result import AgentResult

__all__ = ["run_agent"]


def run_agent(
    agent: AgentArgument,
    task: Annotated[str, typer.Argument(metavar="TASK", help="What to do; - reads it from standard input.")],
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 4096,
    temperature: TemperatureOption = None,
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    no_store: NoStoreOption = False,
    only_if_cached: OnlyIfCachedOption = False,
    config: ConfigOption = None,
    timeout: TimeoutOption = None,
    deadline: DeadlineOption = None,
    as_json: JSONOption = False,
) -> None:
    """Ask one agent, and print its answer."""
    from ._execution import exit_code, make_orchestrator, result_row, what_happened
    from ._loop import run_command

    mode = cache_mode(no_cache=no_cache, no_store=no_store, only_if_cached=only_if_cached)
    orchestrator = make_orchestrator(config, timeout=timeout, deadline_seconds=deadline, cache=cache)
    result = run_command(
        _ask(
            orchestrator,
            agent,
            _read_task() if task == "-" else task,
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            cache=mode,
        )
    )
    if as_json:
        print_json(result_row(result))
    elif result.success:
        sys.stdout.write(result.output if result.output.endswith("\n") else f"{result.output}\n")
    sys.stdout.flush()
    if result.success:
        note(what_happened(result))
        return
    for message in result.errors:
        report(message)
    raise typer.Exit(exit_code(result))


async def _ask(orchestrator: "AsyncAgentOrchestrator", agent: str, task: str, **arguments: Any) -> "AgentResult":
    async with orchestrator:
        return await orchestrator.execute_agent(agent, task, **arguments)


def _read_task() -> str:
    from ._lines import MAX_LINE

    data = sys.stdin.buffer.read(MAX_LINE + 1)
    if len(data) > MAX_LINE:  # it may have no end
        raise CommandError(
            f"the task on standard input has more than {MAX_LINE:,} bytes, the limit is {MAX_TASK_CHARACTERS:,} "
            "characters; shorten or split it"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"the task on standard input is not UTF-8 (byte {error.start}): convert it with iconv -t utf-8"
        ) from None
