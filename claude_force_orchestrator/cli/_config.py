"""``claude-force config``: what is in force, and where each value came from."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Set, Union

import typer

from ._amounts import percent_text
from ._annotated import Annotated
from ._console import print_json, print_table
from ._failure import FAILED, CommandError
from ._moments import when_text
from ._options import CacheOption, ConfigOption, JSONOption

if TYPE_CHECKING:
    from claude_force_cache import Cache

__all__ = ["config_app"]

_SHOWN_ABOVE = {"ttl", "max_bytes"}
"""Options that stand in the rows cache_ttl_hours and cache_max_size_mb already."""

config_app = typer.Typer(help="Show the settings, and the prices.")


@config_app.callback()
def _group() -> None:
    """Show the settings, and the prices."""


@config_app.command("show")
def show(cache: CacheOption = None, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Show every effective setting and where it came from. Secrets are masked."""
    from ._settings import tool_settings

    settings = tool_settings(config, cache)
    made = settings.make_cache()
    # What this command did not pass on is the constructor's default, though it arrived there as an argument.
    passed = {name for name, value in (("project", config), ("cache", cache)) if value is not None}
    rows: List[Dict[str, Any]] = [
        {
            "name": setting.name,
            "value": setting.value,
            "origin": "default" if setting.origin == "argument" and setting.name not in passed else setting.origin,
        }
        for setting in settings.describe()
    ]
    rows.append(_secret_row(made))
    given = _given_options(settings.cache_source)
    origin = settings.origins["cache"]
    for name, value in sorted(made.options.items()):
        if name in _SHOWN_ABOVE:
            continue
        rows.append({"name": f"cache.{name}", "value": value, "origin": origin if name in given else "default"})
    if as_json:
        print_json(rows)
        return
    print_table(
        ("setting", "value", "from"),
        [(row["name"], "-" if row["value"] is None else str(row["value"]), row["origin"]) for row in rows],
    )


@config_app.command("prices")
def prices(
    model: Annotated[Optional[str], typer.Option("--model", metavar="ID", help="Only this model.")] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List what models cost, from when on, and who says so. The section prices of claude.json adds to it."""
    from .._prices import PriceList
    from ._settings import tool_settings

    known = PriceList.of_project(tool_settings(config, None).project)
    chosen = sorted(known.models) if model is None else [model]
    rows = [
        {
            "model": name,
            "valid_from": when_text(tariff.valid_from, "%Y-%m-%d") if tariff.valid_from else None,
            **asdict(price),
            "source": tariff.source,
        }
        for name in chosen
        for tariff in known.tariffs(name)
        for price in tariff.bands
    ]
    if as_json:
        print_json(rows)
    elif rows:
        columns = ("prompt up to", "input", "output", "cache write 5 min", "1 h", "cache read")
        shown = ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read")
        print_table(
            ("model", "from", *columns, "source"),
            [
                (
                    row["model"],
                    row["valid_from"] or "always",
                    "any" if row["max_prompt_tokens"] is None else f"{row['max_prompt_tokens']:,}",
                    *(f"{row[rate]:g}" for rate in shown),
                    row["source"],
                )
                for row in rows
            ],
            title=f"USD per million tokens; batches cost {percent_text(known.batch_factor)} of it",
            numeric=columns,
        )
    if not rows:
        raise CommandError(
            f"the price of {model!r:.80} is not known: add it to the section prices of claude.json", FAILED
        )


def _secret_row(cache: "Cache[Any]") -> Dict[str, Any]:
    """Return whether there is a secret and where it comes from, never the secret."""
    if os.environ.get("CLAUDE_CACHE_SECRET"):
        return {"name": "cache_secret", "value": "***", "origin": "CLAUDE_CACHE_SECRET"}
    if cache.capabilities.shared_between_machines:
        return {"name": "cache_secret", "value": None, "origin": "not set; this cache needs CLAUDE_CACHE_SECRET"}
    if cache.capabilities.persistent:
        return {"name": "cache_secret", "value": "***", "origin": "a file of this user's, made at the first use"}
    return {"name": "cache_secret", "value": "***", "origin": "this process only"}


def _given_options(source: Union[str, Mapping[str, object]]) -> Set[str]:
    """Return the names of the options that stand in the URL or the table."""
    from claude_force_cache import BackendURL

    if isinstance(source, str):
        return set(BackendURL.parse(source)[1])
    options = source.get("options")
    names = set(options) if isinstance(options, Mapping) else set()
    url = source.get("url")
    return names | set(BackendURL.parse(url)[1]) if isinstance(url, str) else names
