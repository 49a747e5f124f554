"""How the command line fails: one line that names the cause and the remedy, and an exit code."""

from __future__ import annotations

import os
import sys

__all__ = [
    "BROKEN_PIPE",
    "FAILED",
    "INTERRUPTED",
    "OVER_BUDGET",
    "USAGE",
    "CommandError",
    "discard_stdout",
    "one_line",
    "open_missing_streams",
    "report",
]

FAILED = 1
USAGE = 2
OVER_BUDGET = 3
INTERRUPTED = 130
BROKEN_PIPE = 141


class CommandError(Exception):
    """Raised to end a command with a message for the user.

    :param message: the cause and the remedy.
    :param code: the exit code.
    """

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def one_line(text: str) -> str:
    """Return ``text`` on one line, with what a terminal would obey made visible."""
    line = " ".join(text.split())
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in line
    )


def report(message: str) -> None:
    """Write ``error: message`` to standard error."""
    sys.stderr.write(f"error: {one_line(message)}\n")


def discard_stdout() -> None:
    """Point standard output nowhere, so that the interpreter has nothing left to complain about at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_missing_streams() -> None:
    """Let standard streams that the parent closed lead nowhere, so that no file of ours takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - open until the end
