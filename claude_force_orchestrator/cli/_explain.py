"""``claude-force cache explain``: whether a task would be answered from the cache, and if not, why."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

import typer

from ._annotated import Annotated
from ._console import duration_text, print_json, print_table, quiet_log
from ._options import (
    AgentArgument,
    CacheOption,
    ConfigOption,
    JSONOption,
    MaxAgeOption,
    MaxTokensOption,
    MemoryOption,
    ModelOption,
    StaleWhileRevalidateOption,
    TemperatureOption,
    VariantsOption,
    given,
)

if TYPE_CHECKING:
    from .._explain import Explanation
    from .._orchestrator import AsyncAgentOrchestrator

__all__ = ["explain"]


def explain(
    agent: AgentArgument,
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task; - reads it from standard input.")],
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 4096,
    temperature: TemperatureOption = None,
    max_age_hours: MaxAgeOption = None,
    stale_while_revalidate_hours: StaleWhileRevalidateOption = None,
    variants: VariantsOption = None,
    memory: MemoryOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Say whether a task would be answered from the cache, and if not, what is different. Calls no API."""
    from ._execution import make_orchestrator
    from ._loop import run_command
    from ._run import read_task

    orchestrator = make_orchestrator(config, timeout=None, cache=cache, enable_memory=memory, enable_tracking=False)
    arguments = given(
        model=model,
        temperature=temperature,
        max_age_hours=max_age_hours,
        stale_while_revalidate_hours=stale_while_revalidate_hours,
        variants=variants,
    )
    with quiet_log():
        found = run_command(_ask(orchestrator, agent, read_task(task), max_tokens=max_tokens, **arguments))
    if as_json:
        print_json(asdict(found))
    else:
        print_table(("hit" if found.hit else "miss", found.detail), _rows(found))


async def _ask(orchestrator: "AsyncAgentOrchestrator", agent: str, task: str, **arguments: Any) -> "Explanation":
    async with orchestrator:
        return await orchestrator.explain(agent, task, **arguments)


def _rows(found: "Explanation") -> List[Tuple[str, str]]:
    rows = [("reason", found.reason)]
    if found.key is not None:
        rows.append(("key", found.key))
    if found.age_seconds is not None:
        rows.append(("age", duration_text(found.age_seconds)))
        rows.append(("fresh for", _remaining_text(found.remaining_seconds)))
        rows.append(("tags", "\n".join(found.tags)))
    if found.nearest is not None:
        rows.append(("nearest entry", f"{found.nearest.key}, {duration_text(found.nearest.age_seconds)} old"))
        rows.append(("differs in", ", ".join(found.nearest.differs) or "nothing that is recorded"))
    elif found.reason == "absent":
        rows.append(("nearest entry", "this agent has none"))
    return rows


def _remaining_text(seconds: Optional[float]) -> str:
    if seconds is not None and seconds < 0:
        return f"no longer, since {duration_text(-seconds)}"
    return duration_text(seconds)
