"""Conditions: whether a step of a workflow runs, by what became of the steps that it needs.

::

    condition = all, "or", all, ...
    all       = one, "and", one, ...
    one       = "not", one | "(", condition, ")" | STEP, question
    question  = "succeeded" | "failed" | "skipped" | "ended" | "contains", TEXT | "matches", TEXT

A text stands between single or double quotes. ``matches`` asks whether a line of the output is the text, in which
``*`` stands for any characters. There are no regular expressions: a model writes what they would be applied to, and
some of them take hours for a short line.
"""

from __future__ import annotations

import re
from typing import Callable, FrozenSet, List, Mapping, NoReturn, Tuple

from typing_extensions import Protocol

from ._errors import WorkflowError

__all__ = ["KEYWORDS", "Condition", "Outcome"]

KEYWORDS = frozenset({"and", "or", "not", "succeeded", "failed", "skipped", "ended", "contains", "matches"})
"""Words that no step can be called."""

_LONGEST = 1000
_DEEPEST = 20
_TOKEN = re.compile(r"""\s*(?:(?P<word>[A-Za-z0-9_-]+)|(?P<mark>[()])|'(?P<single>[^']*)'|"(?P<double>[^"]*)")""")
_STATES: Mapping[str, FrozenSet[str]] = {
    "succeeded": frozenset({"done", "cached"}),
    "failed": frozenset({"failed"}),
    "skipped": frozenset({"skipped"}),
    "ended": frozenset({"done", "cached", "failed", "skipped"}),
}


class Outcome(Protocol):
    """What became of a step."""

    @property
    def state(self) -> str:
        """``done``, ``cached``, ``failed`` or ``skipped``."""

    @property
    def output(self) -> str:
        """Its answer, or the empty string."""


_Test = Callable[[Mapping[str, Outcome]], bool]


class Condition:
    """A condition that was read from its text. It calls nothing and looks at nothing but outcomes.

    :param text: the condition.
    :ivar steps: the steps that it asks about.
    :ivar judged: those whose state it asks about; the others have to succeed for the step to run.
    :ivar recovers: those whose failure it asks about.
    :raises WorkflowError: if it is malformed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.steps: FrozenSet[str] = frozenset()
        self.judged: FrozenSet[str] = frozenset()
        self.recovers: FrozenSet[str] = frozenset()
        if len(text) > _LONGEST:
            raise WorkflowError(f"a condition has at most {_LONGEST:,} characters, not {len(text):,}")
        self._tokens = _split(text)
        self._next = 0
        self._test = self._any(0)
        if self._next < len(self._tokens):
            self._refuse("'and' or 'or'")

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def holds(self, outcomes: Mapping[str, Outcome]) -> bool:
        """Whether it holds, given what became of :attr:`steps`."""
        return self._test(outcomes)

    def _any(self, depth: int) -> _Test:
        tests = [self._all(depth)]
        while self._take("or"):
            tests.append(self._all(depth))
        return tests[0] if len(tests) == 1 else lambda outcomes: any(test(outcomes) for test in tests)

    def _all(self, depth: int) -> _Test:
        tests = [self._one(depth)]
        while self._take("and"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda outcomes: all(test(outcomes) for test in tests)

    def _one(self, depth: int) -> _Test:
        if depth > _DEEPEST:
            raise WorkflowError(f"the condition {self.text!r:.80} is nested more than {_DEEPEST} deep")
        if self._take("not"):
            test = self._one(depth + 1)
            return lambda outcomes: not test(outcomes)
        if self._take("("):
            test = self._any(depth + 1)
            if not self._take(")"):
                self._refuse("')'")
            return test
        return self._question(self._step())

    def _step(self) -> str:
        kind, name = self._peek()
        if kind != "word" or name in KEYWORDS:
            self._refuse("a step")
        self._next += 1
        self.steps |= {name}
        return name

    def _question(self, step: str) -> _Test:
        kind, verb = self._peek()
        if kind == "word" and verb in _STATES:
            self._next += 1
            self.judged |= {step}
            if verb == "failed":
                self.recovers |= {step}
            states = _STATES[verb]
            return lambda outcomes: outcomes[step].state in states
        if kind != "word" or verb not in {"contains", "matches"}:
            self._refuse(f"{', '.join(_STATES)}, contains or matches")
        self._next += 1
        kind, text = self._peek()
        if kind != "text" or not text:
            self._refuse("a text in quotes")
        self._next += 1
        if verb == "contains":
            return lambda outcomes: text in outcomes[step].output
        pieces = text.split("*")
        return lambda outcomes: any(_matches(line, pieces) for line in outcomes[step].output.splitlines())

    def _peek(self) -> Tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "")

    def _take(self, what: str) -> bool:
        found = self._peek() in {("word", what), ("mark", what)}
        self._next += found
        return found

    def _refuse(self, expected: str) -> NoReturn:
        kind, text = self._peek()
        found = "its end" if kind == "end" else repr(text)
        raise WorkflowError(f"the condition {self.text!r:.120} is malformed: expected {expected}, found {found}")


def _split(text: str) -> List[Tuple[str, str]]:
    tokens: List[Tuple[str, str]] = []
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            rest = text[place:].lstrip()
            raise WorkflowError(f"the condition {text!r:.120} is malformed: it cannot go on with {rest!r:.40}")
        kind = match.lastgroup or ""
        tokens.append(("text" if kind in {"single", "double"} else kind, match[kind]))
        place = match.end()
    return tokens


def _matches(line: str, pieces: List[str]) -> bool:
    """Whether a line is these pieces with any characters between them. Takes time in proportion to its length."""
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return line == first
    if len(line) < len(first) + len(last) or not line.startswith(first) or not line.endswith(last):
        return False
    place, end = len(first), len(line) - len(last)
    for piece in pieces[1:-1]:
        found = line.find(piece, place, end)
        if found < 0:
            return False
        place = found + len(piece)
    return True
