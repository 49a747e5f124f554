"""Options that several commands share."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from ._annotated import Annotated
from ._failure import CommandError

__all__ = [
    "AgentArgument",
    "BatchAPIOption",
    "CacheOption",
    "ConfigOption",
    "DeadlineOption",
    "JSONOption",
    "MaxAgeOption",
    "MaxConcurrentOption",
    "MaxTokensOption",
    "MaxUSDOption",
    "MemoryOption",
    "ModelOption",
    "NoCacheOption",
    "NoStoreOption",
    "OnSuspicionOption",
    "OnlyIfCachedOption",
    "StaleIfErrorOption",
    "StaleWhileRevalidateOption",
    "TTLOption",
    "TagOption",
    "TaskArgument",
    "TemperatureOption",
    "TimeoutOption",
    "VariantsOption",
    "cache_mode",
    "given",
]

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="The name of an agent in claude.json.")]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="What to do; - reads it from standard input.")]
BatchAPIOption = Annotated[
    bool,
    typer.Option(
        "--batch-api",
        help="Send what is not in the cache through the API for message batches: within a day, at half the price. "
        "What is under way is remembered in a file; the same command picks it up after an interruption.",
    ),
]
CacheOption = Annotated[
    Optional[str],
    typer.Option(
        "--cache",
        metavar="URL",
        help="The cache, for example disk:///var/cache/answers or redis://host/0. "
        "Default: CLAUDE_CACHE_URL, then the project's cache section, then disk.",
    ),
]
ConfigOption = Annotated[
    Optional[Path],
    typer.Option("--config", metavar="PATH", help="The project's claude.json. Default: .claude/claude.json."),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
ModelOption = Annotated[
    Optional[str],
    typer.Option("--model", metavar="ID", help="The model to ask, instead of the agent's or the default."),
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer to pay for, in tokens.")]
MaxUSDOption = Annotated[
    Optional[float],
    typer.Option(
        "--max-usd",
        metavar="USD",
        help="What all calls together may cost. One that might exceed it is not sent; then the exit code is 3.",
    ),
]
MaxConcurrentOption = Annotated[int, typer.Option("--max-concurrent", min=1, help="API calls under way at a time.")]
TemperatureOption = Annotated[
    Optional[float], typer.Option("--temperature", min=0.0, max=1.0, help="Sent only if it is given.")
]
MemoryOption = Annotated[
    Optional[bool],
    typer.Option(
        "--memory/--no-memory",
        help="Give the agent earlier sessions of its own, and record this one; or do neither. "
        "Default: as the project says, else not.",
    ),
]
TimeoutOption = Annotated[
    Optional[float], typer.Option("--timeout", metavar="SECONDS", help="The bound of each attempt.")
]
DeadlineOption = Annotated[
    Optional[float],
    typer.Option("--deadline", metavar="SECONDS", help="The bound of each task, waiting and retries included."),
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Do not look into the cache; do store.")]
NoStoreOption = Annotated[bool, typer.Option("--no-store", help="Neither look into the cache nor store.")]
OnlyIfCachedOption = Annotated[
    bool, typer.Option("--only-if-cached", help="Never call the API; fail what is not in the cache.")
]

TTLOption = Annotated[
    Optional[float], typer.Option("--ttl-hours", metavar="HOURS", help="How long a new answer is fresh.")
]
MaxAgeOption = Annotated[
    Optional[float],
    typer.Option("--max-age-hours", metavar="HOURS", help="Take no answer out of the cache that is older."),
]
StaleWhileRevalidateOption = Annotated[
    Optional[float],
    typer.Option(
        "--stale-while-revalidate-hours",
        metavar="HOURS",
        help="For so long after its freshness, take an answer at once and let a new one be made meanwhile.",
    ),
]
StaleIfErrorOption = Annotated[
    Optional[float],
    typer.Option(
        "--stale-if-error-hours",
        metavar="HOURS",
        help="For so long after its freshness, take an answer if the API is down.",
    ),
]
VariantsOption = Annotated[
    Optional[int],
    typer.Option("--variants", metavar="N", help="Keep N answers to a question, and take one of them at random."),
]
TagOption = Annotated[
    Optional[List[str]],
    typer.Option("--tag", metavar="TAG", help="What cache invalidate can name a new answer by. May be repeated."),
]
OnSuspicionOption = Annotated[
    str,
    typer.Option(
        "--on-suspicion",
        metavar="report|refuse",
        help="What to do about a task that looks like an attempt to give other orders.",
    ),
]


def given(**options: Any) -> Dict[str, Any]:
    """Return the options that were given; for the others the agent, the project or the default decides."""
    return {name: value for name, value in options.items() if value is not None}


def cache_mode(*, no_cache: bool, no_store: bool, only_if_cached: bool) -> Optional[str]:
    """Return how one execution treats the cache, or None for the ordinary way.

    :raises CommandError: if the options contradict each other.
    """
    chosen = [
        mode
        for mode, wanted in (
            ("no-cache", no_cache),
            ("no-store", no_store),
            ("only-if-cached", only_if_cached),
        )
        if wanted
    ]
    if len(chosen) > 1:
        raise CommandError(f"--{chosen[0]} and --{chosen[1]} contradict each other: give one of them")
    return chosen[0] if chosen else None
