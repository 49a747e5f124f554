"""``claude-force cache``: a look into any cache, and care for it."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import re
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Optional, TypeVar

import typer

from ._annotated import Annotated
from ._console import duration_text, note, print_json, print_table, quiet_log, size_text
from ._explain import explain
from ._failure import FAILED, CommandError
from ._options import CacheOption, ConfigOption, JSONOption
from ._warm import warm

if TYPE_CHECKING:
    from claude_force_cache import Cache, StoredEntry

    from .._answer import Answer

__all__ = ["cache_app"]

T = TypeVar("T")

_KEY = re.compile(r"[0-9a-f]{1,64}\Z")
_KEY_LENGTH = 64
_SHOWN_KEY = 16

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="A key as ls shows it, or the beginning of one that is unique.")
]

cache_app = typer.Typer(help="Look into a cache, and take care of it.")


@cache_app.command("stats")
def stats(cache: CacheOption = None, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Show how much a cache holds, its limit, and what its store can do."""

    async def work(opened: "Cache[Answer]") -> Dict[str, Any]:
        usage = await opened.usage()
        return {
            "cache": opened.url,
            "namespace": opened.settings.namespace,
            "entries": usage.entries,
            "bytes": usage.bytes,
            "max_bytes": opened.settings.max_bytes,
            "ttl_s": opened.settings.ttl,
            "secret_from": opened.secret_origin,
            "capabilities": asdict(opened.capabilities),
        }

    found = _with_cache(config, cache, work)
    if as_json:
        print_json(found)
        return
    limit = found["max_bytes"]
    share = f"{size_text(found['bytes'])} of {size_text(limit)}, {found['bytes'] / limit:.1%}" if limit else None
    rows = [
        ("namespace", found["namespace"]),
        ("entries", f"{found['entries']:,}"),
        ("size", share or f"{size_text(found['bytes'])}, no limit"),
        ("entries live", duration_text(found["ttl_s"])),
        ("secret from", str(found["secret_from"])),
        *((name.replace("_", " "), str(value)) for name, value in found["capabilities"].items()),
    ]
    print_table(("cache", found["cache"]), rows)


@cache_app.command("ls")
def list_entries(
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many entries to show at most.")] = 100,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List entries, in no particular order."""

    async def work(opened: "Cache[Answer]") -> List[Dict[str, Any]]:
        rows: List[Dict[str, Any]] = []
        async for stored in opened.scan():
            if stored.state == "other":
                continue  # a record of the cache's own, such as a tag's
            if len(rows) == limit:
                note(f"only the first {limit} are shown; --limit shows more")
                break
            rows.append(_entry_row(stored))
        return rows

    rows = _with_cache(config, cache, work)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("key", "agent", "model", "age", "expires in", "bytes", "state"),
        [
            (
                row["key"][:_SHOWN_KEY],
                row["agent"] or "-",
                row["model"] or "-",
                duration_text(row["age_s"], none="-"),
                duration_text(row["expires_in_s"]) if row["state"] == "ok" else "-",
                f"{row['bytes']:,}",
                row["state"],
            )
            for row in rows
        ],
        numeric=("bytes",),
    )


@cache_app.command("get")
def get(key: KeyArgument, cache: CacheOption = None, config: ConfigOption = None, as_json: JSONOption = False) -> None:
    """Print the answer that is stored under a key."""

    async def work(opened: "Cache[Answer]") -> "StoredEntry[Answer]":
        stored = await opened.get_stored(await _whole_key(opened, key))
        if stored is None:
            raise _no_such_key(key)
        return stored

    stored = _with_cache(config, cache, work)
    if stored.value is None:
        reasons = {
            "corrupt": "is not what was stored: claude-force cache verify --repair removes it",
            "incomplete": "lost some of its parts, which had to make room",
            "foreign": "was sealed with another secret: set CLAUDE_CACHE_SECRET to that one",
        }
        raise CommandError(f"entry {stored.key[:_SHOWN_KEY]} {reasons.get(stored.state, 'holds no answer')}", FAILED)
    if as_json:
        answer = asdict(stored.value)
        answer["body"] = stored.value.body.decode("utf-8", "backslashreplace")
        print_json({**_entry_row(stored), "tags": list(stored.tags), "answer": answer})
    else:
        text = stored.value.text
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


@cache_app.command("delete")
def delete(key: KeyArgument, cache: CacheOption = None, config: ConfigOption = None) -> None:
    """Delete one entry."""

    async def work(opened: "Cache[Answer]") -> str:
        whole = await _whole_key(opened, key)
        if not await opened.delete_stored(whole):
            raise _no_such_key(key)
        return whole

    note(f"deleted {_with_cache(config, cache, work)}")


@cache_app.command("clear")
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cache: CacheOption = None,
    config: ConfigOption = None,
) -> None:
    """Delete every entry of the cache's namespace, and nothing else in its store."""

    async def count(opened: "Cache[Answer]") -> str:
        usage = await opened.usage()
        return f"{usage.entries:,} entries of namespace {opened.settings.namespace!r} in {opened.url}"

    async def work(opened: "Cache[Answer]") -> int:
        return await opened.clear()

    if not yes:
        if not sys.stdin.isatty():
            raise CommandError("clear deletes every entry and nobody is there to ask: pass --yes")
        if not typer.confirm(f"Delete {_with_cache(config, cache, count)}?", err=True):
            note("nothing was deleted")
            return
    note(f"deleted {_with_cache(config, cache, work):,} entries")


@cache_app.command("invalidate")
def invalidate(
    agent: Annotated[Optional[str], typer.Option("--agent", metavar="NAME", help="Answers of this agent.")] = None,
    model: Annotated[Optional[str], typer.Option("--model", metavar="ID", help="Answers of this model.")] = None,
    workflow: Annotated[
        Optional[str], typer.Option("--workflow", metavar="NAME", help="Answers given in this workflow.")
    ] = None,
    tag: Annotated[
        Optional[List[str]],
        typer.Option("--tag", metavar="TAG", help="Answers stored with this tag. May be repeated."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All answers of the cache's tenant.")] = False,
    cache: CacheOption = None,
    config: ConfigOption = None,
) -> None:
    """Make answers misses, for every process that shares the cache, however many they are. Several names add up."""
    from .._labels import invalidation_tags, tenant_tag

    named = (agent, model, workflow, tag or None)
    if everything and any(name is not None for name in named):
        raise CommandError("--all means all answers: give it alone")
    if not everything and all(name is None for name in named):
        raise CommandError("nothing to invalidate: give --agent, --model, --workflow, --tag or --all")
    tags = () if everything else invalidation_tags(agent=agent, model=model, workflow=workflow, tags=tag or ())

    async def work(opened: "Cache[Answer]") -> int:
        return await opened.invalidate(*(tags or (tenant_tag(opened.settings.tenant),)))

    count = _with_cache(config, cache, work)
    what = "all answers" if everything else f"answers with {', '.join(tags)}"
    note(f"invalidated {what}" if count else f"there are no {what}")


cache_app.command("explain")(explain)
cache_app.command("warm")(warm)


@cache_app.command("verify")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Delete what is corrupt or incomplete.")] = False,
    cache: CacheOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Recount the account and open every entry; exit 1 if something is corrupt or the account differs."""

    async def work(opened: "Cache[Answer]") -> Dict[str, Any]:
        report = await opened.verify(repair=repair)
        return {
            "entries": report.entries,
            "bytes": report.bytes,
            "account": {"entries": report.usage.entries, "bytes": report.usage.bytes},
            "consistent": report.consistent,
            "corrupt": list(report.corrupt),
            "foreign": list(report.foreign),
            "repaired": report.repaired,
            "remains": list(report.remains),
        }

    found = _with_cache(config, cache, work)
    if as_json:
        print_json(found)
    else:
        account = found["account"]
        print_table(
            ("", "entries", "bytes"),
            [
                ("counted", f"{found['entries']:,}", f"{found['bytes']:,}"),
                ("account", f"{account['entries']:,}", f"{account['bytes']:,}"),
                ("corrupt", f"{len(found['corrupt']):,}", ""),
                ("repaired", f"{found['repaired']:,}", ""),
                ("remains of answers in parts", f"{len(found['remains']):,}", ""),
                ("of another secret", f"{len(found['foreign']):,}", ""),
            ],
            numeric=("entries", "bytes"),
        )
        for key in found["corrupt"]:
            note(f"corrupt: {key}")
    if not found["consistent"] or len(found["corrupt"]) > found["repaired"]:
        raise typer.Exit(FAILED)


def _with_cache(config: Any, cache: Optional[str], work: "Callable[[Cache[Answer]], Awaitable[T]]") -> T:
    """Return what ``work`` makes of the cache that is in force, opened and known to answer."""
    from ._loop import run_command
    from ._settings import tool_settings

    made = tool_settings(config, cache).make_cache()

    async def opened() -> T:
        async with made:
            await made.ping()
            return await work(made)

    with quiet_log():
        return run_command(opened())


async def _whole_key(cache: "Cache[Answer]", key: str) -> str:
    if not _KEY.match(key):
        raise CommandError("a key is up to 64 digits out of 0-9 and a-f: claude-force cache ls shows them")
    if len(key) == _KEY_LENGTH:
        return key
    found = {stored.key async for stored in cache.scan() if stored.state != "other" and stored.key.startswith(key)}
    if not found:
        raise _no_such_key(key)
    if len(found) > 1:
        raise CommandError(f"{len(found)} keys begin with {key}: give more of it")
    return found.pop()


def _no_such_key(key: str) -> CommandError:
    return CommandError(f"there is no entry {key}: claude-force cache ls shows what there is", FAILED)


def _entry_row(stored: "StoredEntry[Answer]") -> Dict[str, Any]:
    now = time.time()
    answer = stored.value
    return {
        "key": stored.key,
        "state": stored.state,
        "agent": None if answer is None else answer.agent_name,
        "model": None if answer is None else answer.model,
        "age_s": None if stored.created_at is None else max(0.0, now - stored.created_at),
        "expires_in_s": None if stored.expires_at is None else max(0.0, stored.expires_at - now),
        "bytes": stored.size,
    }
