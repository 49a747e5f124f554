"""The commands, put together, and the one place that turns errors into messages and exit codes."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import signal
import sys
import warnings
from typing import List, Optional

import typer

from ._annotated import Annotated
from ._backends import backends
from ._cache import cache_app
from ._config import config_app
from ._conformance import conformance
from ._demo import demo
from ._failure import BROKEN_PIPE, INTERRUPTED, USAGE, CommandError, discard_stdout, open_missing_streams, report
from ._map import map_tasks
from ._memory import memory_app
from ._metrics import metrics_app
from ._new_backend import new_backend
from ._run import run_agent
from ._workflow import workflow_app

__all__ = ["run"]

_PROGRAM = "claude-force"

app = typer.Typer(
    name=_PROGRAM,
    help="Ask Claude agents, and be answered from a cache when the question was asked before.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # frames around help texts would be a hundred modules to import
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{_PROGRAM} {version('claude-force-cache')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("run")(run_agent)
app.command("map")(map_tasks)
app.add_typer(workflow_app, name="workflow")
app.add_typer(cache_app, name="cache")
app.add_typer(memory_app, name="memory")
app.add_typer(metrics_app, name="metrics")
app.command("backends")(backends)
app.command("new-backend")(new_backend)
app.command("conformance")(conformance)
app.add_typer(config_app, name="config")
app.command("demo")(demo)


def run(arguments: List[str]) -> int:
    """Run one command line and return its exit code."""
    # Cryptography says so at every start; whoever runs 3.8 knows.
    warnings.filterwarnings("ignore", message=r"Python 3\.\d+ is no longer supported")
    open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        # An answer may hold what the terminal's encoding does not; showing its code beats losing the answer.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Like Ctrl-C, it ends a command in good order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = typer.main.get_command(app)
    try:
        # Not Click's own main, which keeps broken pipes and interruptions for itself.
        with command.make_context(_PROGRAM, arguments or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        discard_stdout()
        return BROKEN_PIPE
    except (KeyboardInterrupt, typer.Abort):
        report("interrupted")
        return INTERRUPTED
    except CommandError as error:
        report(str(error))
        return error.code
    except Exception as error:
        message = _usage_message(error) or _library_message(error) or _system_message(error)
        if message is None:
            raise
        if isinstance(error, OSError):
            discard_stdout()
        report(message)
        return USAGE
    return 0


def _usage_message(error: Exception) -> Optional[str]:
    """Return what the command-line parser complains about; its error classes moved between Typer's releases."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else _PROGRAM
    return f"{str(format_message()).rstrip('.')}: see {command} --help"


def _library_message(error: Exception) -> Optional[str]:
    from claude_force_cache import CacheError

    from .._errors import OrchestratorError

    return str(error) if isinstance(error, (CacheError, OrchestratorError)) else None


def _system_message(error: Exception) -> Optional[str]:
    """Return what the system said when the output could not be written, for example because the disk is full."""
    if not isinstance(error, OSError):
        return None
    place = f" at {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{place}: mend that and run the same command again"
