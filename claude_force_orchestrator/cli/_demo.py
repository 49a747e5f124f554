"""``claude-force demo``: real tasks, twice, and what the second time costs."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import os
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Union

import typer

from ._annotated import Annotated
from ._console import note, print_json, print_table, progress, quiet_log, size_text
from ._failure import FAILED, OVER_BUDGET, CommandError, report
from ._options import JSONOption, MaxUSDOption

if TYPE_CHECKING:
    from ..demo._passes import PassReport, Store
    from ..demo._tasks import Question

__all__ = ["demo"]

_LATENCY_MS = 80
_MOST_TASKS = 1000
_REAL_TIMEOUT_SECONDS = 300.0
_LABELS = ("first pass, empty cache", "second pass, same tasks")


def demo(
    cache: Annotated[
        Optional[str],
        typer.Option(
            "--cache",
            metavar="URL",
            help="The cache to show, for example redis://localhost/0. Default: CLAUDE_CACHE_URL, then a folder "
            "on disk. Whatever it is, the demo keeps to a namespace of its own and clears it at the end.",
        ),
    ] = None,
    tasks: Annotated[
        int,
        typer.Option("--tasks", min=1, max=_MOST_TASKS, help="Different tasks; one in five is asked a second time."),
    ] = 60,
    max_usd: MaxUSDOption = None,
    as_json: JSONOption = False,
) -> None:
    """Let six agents review modules of Python's standard library, twice, and count what the cache saves.

    Answers come from a local stand-in for Claude, unless ANTHROPIC_API_KEY or ANTHROPIC_BASE_URL is set.
    """
    from .._budget import Budget
    from .._errors import BudgetError
    from .._project import Project
    from ..demo._passes import Demonstration
    from ..demo._project import example_config
    from ..demo._standin import StandIn, StandInError
    from ..demo._tasks import make_batch, standard_modules
    from ._loop import run_command

    config, budget = example_config(), Budget(max_usd)
    agents = sorted(Project.load(config).agents)
    try:
        batch = make_batch(agents, standard_modules(), tasks)
    except ValueError as error:
        raise CommandError(
            f"there is not enough to ask ({error}): lower --tasks, or install Python's sources"
        ) from None

    with ExitStack() as stack:
        store = _store(stack, cache)
        demonstration = Demonstration(config, batch, store, arguments={})
        with quiet_log():
            run_command(demonstration.check())
        if store.throwaway_secret:
            note("CLAUDE_CACHE_SECRET is not set: the demo seals its entries with a secret that it throws away")
        stand_in = not os.environ.get("ANTHROPIC_API_KEY") and not os.environ.get("ANTHROPIC_BASE_URL")
        note(f"{len(batch)} tasks, {tasks} of them different: agents read modules of this Python, {_range(batch)} each")
        try:
            if stand_in:
                server = stack.enter_context(StandIn(latency_ms=_LATENCY_MS))
                _bypass_proxies()
                demonstration.arguments = {"base_url": server.base_url, "api_key": "the-stand-in-needs-none"}
                demonstration.forget, demonstration.count = server.forget, server.requests
                note(f"answers come from a local stand-in for Claude, process {server.pid}, not from Claude")
            else:
                demonstration.arguments = {"timeout_seconds": _REAL_TIMEOUT_SECONDS}
                note(_warning(batch))
            # One for both passes.
            demonstration.arguments = {**demonstration.arguments, "max_usd": budget}
            import anthropic  # noqa: F401 - it takes a second, which is not the first pass's doing

            bar = stack.enter_context(progress())
            shown = [bar.add_task(label, total=len(batch)) for label in _LABELS]
            reports, failed, url = run_command(demonstration.run(lambda index: bar.advance(shown[index])))
        except StandInError as error:
            raise CommandError(str(error)) from error
    if as_json:
        print_json({"passes": [asdict(one) for one in reports], "cache": url, "stand_in": stand_in})
    else:
        _show(reports, url, stand_in=stand_in)
    if failed:
        report(f"{len(failed)} tasks failed, the first one: {'; '.join(failed[0].errors)}")
        raise typer.Exit(OVER_BUDGET if any(isinstance(one.error, BudgetError) for one in failed) else FAILED)


def _store(stack: ExitStack, cache: Optional[str]) -> "Store":
    """Return a corner of the chosen cache, or of a folder that is removed at the end."""
    import tempfile

    from claude_force_cache import resolve_source

    from ..demo._passes import Store

    source, origin = resolve_source(cache, "disk://")
    chosen: Union[str, Mapping[str, object]] = source
    if origin == "default":
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="claude-force-demo-"))
        chosen = {"backend": "disk", "options": {"path": folder}}
    return Store(chosen, throwaway_secret=not os.environ.get("CLAUDE_CACHE_SECRET"))


def _bypass_proxies() -> None:
    """Keep a proxy of the environment out of the way to the stand-in, which is on this machine."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))


def _warning(batch: "Sequence[Question]") -> str:
    """Return who will answer and what it may cost, before anything is asked."""
    import time

    from .._prices import PriceList
    from .._settings import DEFAULT_BASE_URL, DEFAULT_MODEL

    where = os.environ.get("ANTHROPIC_BASE_URL") or DEFAULT_BASE_URL
    different = {question.task for question in batch}
    tokens = sum(len(task) for task in different) // 4
    price = PriceList.load().price(DEFAULT_MODEL, prompt_tokens=tokens // len(different), at=time.time())
    if price is None:
        cost = "at a price that is not known"
    else:
        answers = len(different) * 4096 * price.output / 1e6
        cost = f"for about ${tokens * price.input / 1e6:.2f}, and at most ${answers:.2f} more for long answers"
    who = "Claude" if where == DEFAULT_BASE_URL else "the API at ANTHROPIC_BASE_URL"
    return f"answers come from {who}: {len(different)} calls of {DEFAULT_MODEL} {cost}; Ctrl-C stops"


def _range(batch: "Sequence[Question]") -> str:
    sizes = [len(question.task.encode("utf-8")) for question in batch]
    return f"{size_text(min(sizes))} to {size_text(max(sizes))}"


def _show(reports: "List[PassReport]", url: str, *, stand_in: bool) -> None:
    calls = "API calls, by the server's count" if stand_in else "API calls, by our own count"
    rows: Dict[str, Any] = {
        "tasks": [f"{one.tasks}" for one in reports],
        calls: [f"{one.api_calls}" for one in reports],
        "answered by the cache": [f"{one.hits}" for one in reports],
        "wall time": [f"{one.wall_s:.2f} s" for one in reports],
        "tokens paid for": [f"{one.tokens:,}" for one in reports],
        "USD spent": [f"{one.usd_spent:.4f}" for one in reports],
        "USD saved": [f"{one.usd_saved:.4f}" for one in reports],
        "cache entries": [f"{one.cache_entries}" for one in reports],
        "cache bytes": [f"{one.cache_bytes:,}" for one in reports],
    }
    print_table(
        (url, "first pass", "second pass"),
        [(name, *values) for name, values in rows.items()],
        numeric=("first pass", "second pass"),
    )
    if stand_in:
        typer.echo(
            "The answers come from a local stand-in, not from Claude; nobody was billed. Dollars are what Claude\n"
            "would have charged for the tokens that the stand-in counted, at list prices."
        )
