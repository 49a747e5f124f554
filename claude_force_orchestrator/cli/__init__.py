"""The command line, ``claude-force``.

Exit codes: 0; 1 if a task failed or ``cache verify`` found something; 2 for bad usage, bad settings and an
unreachable store; 130 after Ctrl-C. An error is one line on standard error: ``error: cause: remedy``.
"""

from __future__ import annotations

import sys
from typing import NoReturn, Optional, Sequence

__all__ = ["main"]

_LIBRARIES = {"anthropic", "rich", "typer"}


def main(arguments: Optional[Sequence[str]] = None) -> NoReturn:
    """Run the command line and leave the interpreter with its exit code.

    :param arguments: what stands after the program's name; by default this process's own.
    """
    try:
        from ._app import run

        code = run(sys.argv[1:] if arguments is None else list(arguments))
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _LIBRARIES:
            raise
        sys.stderr.write(
            f"error: the command line needs the library {library!r}, which is not installed: "
            "pip install 'claude-force-cache[orchestrator]'\n"
        )
        code = 2
    sys.exit(code)
