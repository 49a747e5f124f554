"""Checks of what callers give: one place, so that the API and the command line say the same."""

from __future__ import annotations

import re
from typing import Any, Optional

from ._errors import ConfigError, InvalidTaskError

__all__ = [
    "MAX_TASK_CHARACTERS",
    "check_max_tokens",
    "check_model",
    "check_number",
    "check_task",
    "check_temperature",
    "check_unicode",
    "check_use_memory",
    "check_whole",
    "is_agent_name",
    "kind_of",
]

MAX_TASK_CHARACTERS = 100_000
"""The largest task, in characters."""

_AGENT_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


def is_agent_name(name: str) -> bool:
    """Whether the name consists of letters, digits, ``-`` and ``_``, and of nothing else."""
    return _AGENT_NAME.fullmatch(name) is not None


def check_task(task: Any) -> None:
    """Accept text that says something, in at most ``MAX_TASK_CHARACTERS`` characters.

    :raises InvalidTaskError: if the task is anything else.
    """
    if not isinstance(task, str):
        raise InvalidTaskError(f"a task is text, not a {type(task).__name__}")
    if not task or task.isspace():
        raise InvalidTaskError("the task is blank; say what the agent shall do")
    if len(task) > MAX_TASK_CHARACTERS:
        raise InvalidTaskError(
            f"the task has {len(task):,} characters, the limit is {MAX_TASK_CHARACTERS:,}; shorten or split it"
        )
    check_unicode("the task", task)


def check_unicode(what: str, text: str) -> None:
    """Accept text that UTF-8 can carry.

    :param what: what the text is, for the message.
    :raises InvalidTaskError: if it holds a lone surrogate.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidTaskError(
                f"{what} holds a lone surrogate at character {error.start}; decode its source correctly"
            ) from None


def check_model(model: Any) -> str:
    """Return the model's id.

    :raises InvalidTaskError: if it is empty or holds blanks or control characters.
    """
    if not isinstance(model, str):
        raise InvalidTaskError(f"a model is the id of one, as text, not a {type(model).__name__}")
    if not model or len(model) > 256 or not model.isprintable() or any(map(str.isspace, model)):
        raise InvalidTaskError(f"a model's id is 1 to 256 characters without blanks, which {model[:80]!r} is not")
    return model


def check_max_tokens(value: Any) -> int:
    """Return the limit of an answer, in tokens.

    :raises InvalidTaskError: if it is not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidTaskError(f"max_tokens must be a whole number of at least 1, not {value!r}")
    return value


def check_temperature(value: Any) -> Optional[float]:
    """Return the temperature, or None if it is not to be sent.

    :raises InvalidTaskError: if it is not a number from 0 to 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InvalidTaskError(f"temperature must be a number from 0 to 1, not {value!r}")
    return float(value)


def check_use_memory(value: Any) -> None:
    """Accept True, False and None.

    :raises InvalidTaskError: if the value is anything else: what is off must not be on because of a slip.
    """
    if value is not None and not isinstance(value, bool):
        raise InvalidTaskError(f"use_memory must be True, False or None, not {value!r:.80}")


def check_number(
    name: str, value: Any, *, most: float, above: Optional[float] = None, least: Optional[float] = None
) -> float:
    """Return a number above ``above``, or of at least ``least``, and at most ``most``.

    :raises ConfigError: if the value is anything else.
    """
    # Comparisons, and no math.isfinite: a whole number may be larger than any float.
    fits = (
        not isinstance(value, bool)
        and isinstance(value, (int, float))
        and (above is None or above < value)
        and (least is None or least <= value)
        and value <= most
    )
    if not fits:
        bound = f"of at least {least:g}" if least is not None else f"above {above:g}"
        raise ConfigError(f"{name} must be a number {bound} and at most {most:,.0f}, not {_shown(value)}")
    return float(value)


def check_whole(name: str, value: Any, *, least: int, most: Optional[int] = None) -> int:
    """Return a whole number of at least ``least`` and, if that is given, at most ``most``.

    :raises ConfigError: if the value is anything else.
    """
    fits = not isinstance(value, bool) and isinstance(value, int) and value >= least
    if not fits or (most is not None and value > most):
        bound = f" and at most {most}" if most is not None else ""
        raise ConfigError(f"{name} must be a whole number of at least {least}{bound}, not {_shown(value)}")
    return int(value)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        return "one of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def kind_of(value: object) -> str:
    """Return what a reader of JSON calls the value."""
    if value is None:
        return "null or absent"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text" if value else "empty text"
    return "a list" if isinstance(value, list) else "an object"
