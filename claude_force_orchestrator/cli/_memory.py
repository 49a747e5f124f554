"""``claude-force memory``: what agents remember, and how they forget it."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator, List, Optional, Tuple

import typer

from ._annotated import Annotated
from ._console import note, print_json, print_table
from ._failure import FAILED, CommandError, one_line
from ._options import ConfigOption, JSONOption

if TYPE_CHECKING:
    from .._memory import MemorySettings
    from .._sessions import Session, Sessions

__all__ = ["memory_app"]

_SHOWN = 60

AgentOption = Annotated[Optional[str], typer.Option("--agent", metavar="NAME", help="Sessions of this agent.")]

memory_app = typer.Typer(help="See what agents remember, and let them forget it.")


@memory_app.command("list")
def list_sessions(
    agent: AgentOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many sessions to show at most.")] = 50,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """List sessions, the latest first."""
    with _opened(config) as (settings, store):
        found = store.latest(agent=agent, limit=limit)
    if as_json:
        print_json([session._asdict() for session in found])
        return
    if not settings.enabled:
        note("memory is switched off: set memory.enabled in claude.json to switch it on")
    if not found:
        note(f"there are no sessions in {settings.path}")
        return
    print_table(
        ("id", "agent", "when (UTC)", "task", "answer"),
        [
            (str(session.id), session.agent, _when(session), _brief(session.task), _brief(session.output))
            for session in found
        ],
        numeric=("id",),
    )


@memory_app.command("show")
def show(
    number: Annotated[int, typer.Argument(metavar="ID", help="The id of a session, as list shows it.")],
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Print what is kept of a session: its task and its answer, or the beginning of long ones."""
    with _opened(config) as (settings, store):
        session = store.get(number)
    if session is None:
        raise CommandError(f"there is no session {number} in {settings.path}: see claude-force memory list", FAILED)
    if as_json:
        print_json(session._asdict())
        return
    note(f"session {session.id} of {session.agent}, {_when(session)} UTC")
    sys.stdout.write(f"Task:\n{session.task}\n\nAnswer:\n{session.output}\n")


@memory_app.command("forget")
def forget(
    numbers: Annotated[
        Optional[List[int]], typer.Argument(metavar="[ID]...", help="The ids of sessions, as list shows them.")
    ] = None,
    agent: AgentOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All sessions of all agents.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Delete sessions, and overwrite what the file held of them. Answers that were given with them may be cached."""
    if bool(numbers) + (agent is not None) + everything != 1:
        raise CommandError("what to forget is one of: ids of sessions, --agent NAME, --all")
    with _opened(config) as (settings, store):
        if not numbers and not yes:
            what = "all sessions" if everything else f"all sessions of agent {agent!r}"
            if not sys.stdin.isatty():
                raise CommandError(f"this deletes {what} and nobody is there to ask: pass --yes")
            if not typer.confirm(f"Delete {what} in {settings.path}?", err=True):
                note("nothing was forgotten")
                return
        count = store.forget(ids=numbers or (), agent=agent, everything=everything)
    if numbers and not count:
        raise CommandError(f"there is no such session in {settings.path}: see claude-force memory list", FAILED)
    note(f"forgot {_counted(count)}; answers given with them are cached: claude-force cache invalidate --agent NAME")


@memory_app.command("prune")
def prune(
    days: Annotated[
        Optional[float],
        typer.Option("--max-age-days", metavar="N", min=0.0, help="Delete older ones. Default: as the project says."),
    ] = None,
    keep: Annotated[
        Optional[int],
        typer.Option("--max-sessions", metavar="N", min=0, help="Keep so many of each agent. Default: likewise."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Delete sessions that are too old or too many, as every new session does with its agent's."""
    with _opened(config) as (settings, store):
        count = store.prune(
            time.time(),
            days=settings.max_age_days if days is None else days,
            keep=settings.max_sessions if keep is None else keep,
        )
    note(f"deleted {_counted(count)}")


@contextmanager
def _opened(config: ConfigOption) -> "Iterator[Tuple[MemorySettings, Sessions]]":
    import sqlite3

    from .._memory import MemorySettings
    from .._project import Project
    from .._sessions import Sessions
    from ._settings import DEFAULT_CONFIG

    settings = MemorySettings.of_project(Project.load(config or DEFAULT_CONFIG))
    try:
        yield settings, Sessions(settings.path)
    except (sqlite3.Error, OSError) as error:
        raise CommandError(
            f"the agents' memory {str(settings.path)!r} cannot be used ({error}): mend that and run it again"
        ) from None


def _when(session: "Session") -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(session.ended))


def _brief(text: str) -> str:
    line = one_line(text[: 4 * _SHOWN])
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def _counted(count: int) -> str:
    return f"{count:,} session" if count == 1 else f"{count:,} sessions"
