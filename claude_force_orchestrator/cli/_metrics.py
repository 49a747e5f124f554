"""``claude-force metrics``: what executions took, cost and saved."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import typer

from ._amounts import money_text, percent_text, time_text
from ._annotated import Annotated
from ._console import note, print_json, print_table
from ._failure import FAILED, CommandError
from ._moments import parse_moment, when_text
from ._options import ConfigOption, JSONOption

if TYPE_CHECKING:
    from .._executions import Executions
    from .._metrics import Figures, Selection
    from .._project import Project
    from .._tracking import TrackingSettings

__all__ = ["metrics_app"]

_MOST_FAULTS_SHOWN = 20
_MOMENT = "a day, a time, or how long ago, such as 7d"

SinceOption = Annotated[Optional[str], typer.Option("--since", metavar="WHEN", help=f"From then on: {_MOMENT}.")]
UntilOption = Annotated[
    Optional[str], typer.Option("--until", metavar="WHEN", help="Up to then, likewise; a day is meant as a whole.")
]
AgentOption = Annotated[Optional[str], typer.Option("--agent", metavar="NAME", help="Executions of this agent.")]
ModelOption = Annotated[Optional[str], typer.Option("--model", metavar="ID", help="Executions of this model.")]
PeriodOption = Annotated[str, typer.Option("--by", metavar="hour|day|week", help="How long each period is.")]
FileOption = Annotated[
    str, typer.Option("--out", metavar="FILE", help="Where to write it; - is standard output, the default.")
]

metrics_app = typer.Typer(help="See what executions took, cost and saved.")


class _Chosen(NamedTuple):
    """What a command looks at."""

    project: "Project"
    settings: "TrackingSettings"
    executions: "Executions"
    selection: "Selection"


@metrics_app.command("summary")
def summary(
    since: SinceOption = None,
    until: UntilOption = None,
    agent: AgentOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Sum up: how many executions, hits and failures, what they spent and saved, and how long they took."""
    from .._metrics import figures, span

    with _opened(config, since, until, agent, model) as chosen:
        ((_, total),) = figures(chosen.executions, chosen.selection)
        first_and_last = span(chosen.executions, chosen.selection)
    if as_json:
        first, last = first_and_last or (None, None)
        print_json({"first": first, "last": last, **_table(total)})
        return
    if first_and_last is None:
        _note_nothing(chosen)
        return
    title = " to ".join(map(when_text, first_and_last)) + " UTC"
    rows = [
        ("executions", f"{total.executions:,}"),
        ("hits", f"{total.hits:,}"),
        ("misses", f"{total.misses:,}"),
        ("hit rate", percent_text(total.hit_rate)),
        ("past the cache", f"{total.bypasses:,}"),
        ("failures", f"{total.failures:,}"),
        ("cancelled", f"{total.cancelled:,}"),
        ("answers paid for in the background", f"{total.background:,}"),
        ("spent", money_text(total.spent, total.unknown_spent)),
        ("saved by the cache", money_text(total.saved, total.unknown_saved)),
        ("saved by prompt caching", money_text(total.prompt_cache_saved)),
        ("tokens paid for: input", f"{total.input_tokens:,}"),
        ("tokens paid for: output", f"{total.output_tokens:,}"),
        ("tokens paid for: prompt cache, written", f"{total.cache_write_tokens:,}"),
        ("tokens paid for: prompt cache, read", f"{total.cache_read_tokens:,}"),
        ("time of a hit, median and 95 %", _times(total.hit_seconds, total.hit_seconds_p95)),
        ("time of a call, median and 95 %", _times(total.call_seconds, total.call_seconds_p95)),
    ]
    print_table(("", "value"), rows, title=title, numeric=("value",))


@metrics_app.command("agents")
def agents(
    since: SinceOption = None,
    until: UntilOption = None,
    agent: AgentOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Compare agents."""
    with _opened(config, since, until, agent, model) as chosen:
        groups = _grouped(chosen, "agent")
    if as_json:
        print_json([{"agent": key, **_table(group)} for key, group in groups])
    elif not groups:
        _note_nothing(chosen)
    else:
        columns = ("executions", "hits", "hit rate", "failures", "spent", "saved", "hit time", "call time")
        print_table(("agent", *columns), [(key or "(none)", *_work(group)) for key, group in groups], numeric=columns)


@metrics_app.command("costs")
def costs(
    since: SinceOption = None,
    until: UntilOption = None,
    agent: AgentOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Tell what was spent and saved, and the tokens that were paid for, by model."""
    from .._metrics import figures

    with _opened(config, since, until, agent, model) as chosen:
        groups = _grouped(chosen, "model")
        total = figures(chosen.executions, chosen.selection)
    if as_json:
        print_json([{"model": key, **_table(group)} for key, group in groups])
    elif not groups:
        _note_nothing(chosen)
    else:
        columns = ("input", "output", "prompt cache written", "read", "spent", "saved", "by prompt caching")
        rows = [
            (
                key or "all",
                f"{group.input_tokens:,}",
                f"{group.output_tokens:,}",
                f"{group.cache_write_tokens:,}",
                f"{group.cache_read_tokens:,}",
                money_text(group.spent, group.unknown_spent),
                money_text(group.saved, group.unknown_saved),
                money_text(group.prompt_cache_saved),
            )
            for key, group in [*groups, *(total if len(groups) > 1 else ())]
        ]
        print_table(("model", *columns), rows, title="Tokens paid for, and USD", numeric=columns)


@metrics_app.command("trends")
def trends(
    by: PeriodOption = "day",
    since: SinceOption = None,
    until: UntilOption = None,
    agent: AgentOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Follow executions, money and time over hours, days or weeks, in UTC."""
    from .._metrics import PERIODS

    if by not in PERIODS:
        raise CommandError(f"--by must be one of {', '.join(PERIODS)}, not {by!r:.40}")
    with _opened(config, since, until, agent, model) as chosen:
        groups = _grouped(chosen, "period", period=PERIODS[by])
    groups.sort()
    if as_json:
        print_json([{"start": key, **_table(group)} for key, group in groups])
    elif not groups:
        _note_nothing(chosen)
    else:
        columns = ("executions", "hits", "hit rate", "failures", "spent", "saved", "hit time", "call time")
        pattern = "%Y-%m-%d %H:%M" if by == "hour" else "%Y-%m-%d"
        rows = [(when_text(key, pattern), *_work(group)) for key, group in groups]
        print_table((f"{by} (UTC)", *columns), rows, numeric=columns)


@metrics_app.command("export")
def export(
    form: Annotated[str, typer.Option("--format", metavar="csv|json|jsonl", help="How to write them.")] = "csv",
    out: FileOption = "-",
    since: SinceOption = None,
    until: UntilOption = None,
    agent: AgentOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
) -> None:
    """Write executions as CSV, as a JSON list, or as lines of JSON; the earliest first."""
    from .._metrics import select
    from ._export import FORMATS

    if form not in FORMATS:
        raise CommandError(f"--format must be one of {', '.join(FORMATS)}, not {form!r:.40}")
    with _opened(config, since, until, agent, model) as chosen, _output(out) as stream:
        count = FORMATS[form](select(chosen.executions, chosen.selection), stream)
    note(f"exported {_counted(count)}")


@metrics_app.command("import")
def import_(
    file: Annotated[
        Optional[Path],
        typer.Argument(metavar="[FILE]", help="The file. Default: metrics/executions.jsonl beside claude.json."),
    ] = None,
    config: ConfigOption = None,
    as_json: JSONOption = False,
) -> None:
    """Record what lines of JSON tell of, as claude-force wrote them: none twice, malformed ones are left out."""
    from .._old_records import import_lines
    from .._prices import PriceList

    with _opened(config) as chosen:
        path = file or _old_file(chosen.settings)
        if not path.is_file():
            raise CommandError(f"there is no file {str(path)!r}: name the executions.jsonl to import")
        days = chosen.settings.max_age_days
        prices = PriceList.of_project(chosen.project)
        result = import_lines(path, chosen.executions, prices, since=time.time() - days * 86_400)
    if as_json:
        print_json(asdict(result))
    else:
        left_out = f", {result.too_old:,} are older than {days:g} days" if result.too_old else ""
        note(f"imported {_counted(result.added)}, {result.known:,} had been imported before{left_out}")
    for number, fault in result.faults[:_MOST_FAULTS_SHOWN]:
        note(f"line {number} was left out: {fault}")
    if result.malformed > _MOST_FAULTS_SHOWN:
        note(f"and {result.malformed - _MOST_FAULTS_SHOWN:,} more lines were left out")
    if result.malformed:
        raise typer.Exit(FAILED)


@metrics_app.command("report")
def report(
    by: Annotated[
        Optional[str],
        typer.Option("--by", metavar="hour|day|week", help="How long each period is. Default: as fits the time."),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="Where to write it; - is standard output.")
    ] = "claude-force-report.html",
    since: SinceOption = None,
    until: UntilOption = None,
    agent: AgentOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
) -> None:
    """Write a page for the browser: executions, hit rate, money and time over time. It needs nothing besides itself."""
    from .._metrics import PERIODS, Figures, figures, span
    from ._report import MOST_PERIODS, ReportData, fitting_period, period_starts, write_report

    if by is not None and by not in PERIODS:
        raise CommandError(f"--by must be one of {', '.join(PERIODS)}, not {by!r:.40}")
    with _opened(config, since, until, agent, model) as chosen:
        first_and_last = span(chosen.executions, chosen.selection)
        if first_and_last is None:
            _note_nothing(chosen)
            raise typer.Exit(FAILED)
        by = by or fitting_period(*first_and_last)
        starts = period_starts(PERIODS[by], *first_and_last)
        if len(starts) > MOST_PERIODS:
            raise CommandError(
                f"a page shows {MOST_PERIODS:,} periods, not {len(starts):,}: give a longer --by or a later --since"
            )
        found = dict(figures(chosen.executions, chosen.selection, "period", period=PERIODS[by]))
        page = write_report(
            ReportData(
                made=time.time(),
                chosen=", ".join(f"{name} {value}" for name, value in (("agent", agent), ("model", model)) if value),
                span=first_and_last,
                period=by,
                total=figures(chosen.executions, chosen.selection)[0][1],
                agents=_grouped(chosen, "agent"),
                models=_grouped(chosen, "model"),
                periods=[(start, found.get(start, Figures())) for start in starts],
            )
        )
    with _output(out) as stream:
        stream.write(page)
    if out != "-":
        note(f"wrote {out}: open it in a browser")


@contextmanager
def _opened(
    config: ConfigOption,
    since: Optional[str] = None,
    until: Optional[str] = None,
    agent: Optional[str] = None,
    model: Optional[str] = None,
) -> Iterator[_Chosen]:
    """Yield what the options choose.

    :raises CommandError: if they cannot be used, or the file cannot.
    """
    import sqlite3

    from .._executions import Executions
    from .._metrics import Selection
    from .._project import Project
    from .._tracking import TrackingSettings
    from ._settings import DEFAULT_CONFIG

    project = Project.load(config or DEFAULT_CONFIG)
    settings = TrackingSettings.of_project(project)
    now = time.time()
    selection = Selection(
        None if since is None else parse_moment("--since", since, now),
        None if until is None else parse_moment("--until", until, now, end=True),
        agent,
        model,
    )
    executions = Executions(settings.path)
    try:
        yield _Chosen(project, settings, executions, selection)
    except sqlite3.Error as error:
        raise CommandError(
            f"the record of executions {str(settings.path)!r} cannot be used ({error}): mend that and run it again"
        ) from None
    finally:
        executions.close()


@contextmanager
def _output(out: str) -> Iterator[Any]:
    """Yield the stream that is to be written to: standard output, or a file, which is there only if all went well."""
    if out == "-":
        yield sys.stdout
        return
    path = Path(out)
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as stream:  # a pipe or a device stays what it is
            yield stream
        return
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        part.replace(path)
    finally:
        if part.exists():
            part.unlink()


def _grouped(chosen: _Chosen, by: str, **options: Any) -> "List[Tuple[Any, Figures]]":
    from .._metrics import figures

    groups = figures(chosen.executions, chosen.selection, by, **options)
    return sorted(groups, key=lambda pair: (-pair[1].spent - pair[1].saved, str(pair[0])))


def _table(group: "Figures") -> Dict[str, Any]:
    return {**asdict(group), "hit_rate": group.hit_rate}


def _work(group: "Figures") -> Sequence[str]:
    return (
        f"{group.executions:,}",
        f"{group.hits:,}",
        percent_text(group.hit_rate),
        f"{group.failures:,}",
        money_text(group.spent, group.unknown_spent),
        money_text(group.saved, group.unknown_saved),
        time_text(group.hit_seconds),
        time_text(group.call_seconds),
    )


def _times(median: Optional[float], late: Optional[float]) -> str:
    return time_text(median) if median is None else f"{time_text(median)}, {time_text(late)}"


def _counted(count: int) -> str:
    return f"{count:,} execution" if count == 1 else f"{count:,} executions"


def _old_file(settings: "TrackingSettings") -> Path:
    return settings.path.parent / "executions.jsonl"


def _note_nothing(chosen: _Chosen) -> None:
    from .._metrics import Selection

    settings = chosen.settings
    if chosen.selection != Selection():
        note(f"no execution in {settings.path} is like that")
        return
    note(f"there are no executions in {settings.path}")
    if not settings.enabled:
        note("tracking is switched off: take tracking.enabled out of claude.json to switch it on")
    if _old_file(settings).is_file():
        note(f"there are some in {_old_file(settings)}: claude-force metrics import")
