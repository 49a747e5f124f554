"""``claude-force run``: one task, its answer on standard output."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import sys
from typing import TYPE_CHECKING, Any

import typer

from .._validation import MAX_TASK_CHARACTERS
from ._console import note, print_json
from ._failure import CommandError, report
from ._options import (
    AgentArgument,
    CacheOption,
    ConfigOption,
    DeadlineOption,
    JSONOption,
    MaxAgeOption,
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
    TaskArgument,
    TemperatureOption,
    TimeoutOption,
    TTLOption,
    VariantsOption,
    cache_mode,
    given,
)

if TYPE_CHECKING:
    from .._orchestrator import AsyncAgentOrchestrator
    from .._result import AgentResult

__all__ = ["read_task", "run_agent"]


def run_agent(
    agent: AgentArgument,
    task: TaskArgument,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 4096,
    temperature: TemperatureOption = None,
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
    as_json: JSONOption = False,
) -> None:
    """Ask one agent, and print its answer."""
    from ._execution import exit_code, make_orchestrator, result_row, what_happened
    from ._loop import run_command

    mode = cache_mode(no_cache=no_cache, no_store=no_store, only_if_cached=only_if_cached)
    orchestrator = make_orchestrator(
        config,
        timeout=timeout,
        deadline_seconds=deadline,
        enable_memory=memory,
        cache=cache,
        on_suspicion=on_suspicion,
        max_usd=max_usd,
    )
    result = run_command(
        _ask(
            orchestrator,
            agent,
            read_task(task),
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            cache=mode,
            **given(
                ttl_hours=ttl_hours,
                max_age_hours=max_age_hours,
                stale_while_revalidate_hours=stale_while_revalidate_hours,
                stale_if_error_hours=stale_if_error_hours,
                variants=variants,
                tags=tag,
            ),
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


def read_task(task: str) -> str:
    """Return the task of a command line; ``-`` stands for standard input.

    :raises CommandError: if what comes there is too long, or no text.
    """
    from ._lines import MAX_LINE

    if task != "-":
        return task
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
