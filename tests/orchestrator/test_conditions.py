"""Conditions of workflows: what they say of steps, and what they refuse."""

from __future__ import annotations

from typing import Dict, List, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator import WorkflowError
from claude_force_orchestrator._condition import Condition


class Outcome(NamedTuple):
    state: str
    output: str = ""


OUTCOMES: Dict[str, Outcome] = {
    "good": Outcome("done", "First line\nVERDICT: pass, with 2 remarks\n"),
    "hit": Outcome("cached", "It's fine"),
    "bad": Outcome("failed"),
    "left-out": Outcome("skipped"),
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("good succeeded", True),
        ("hit succeeded", True),
        ("bad succeeded", False),
        ("left-out succeeded", False),
        ("bad failed", True),
        ("left-out failed", False),
        ("left-out skipped", True),
        ("good ended and bad ended and left-out ended", True),
        ("not bad succeeded", True),
        ("good contains 'VERDICT: pass'", True),
        ("good contains 'verdict'", False),
        ('hit contains "It\'s"', True),
        ("bad contains 'x'", False),
        ("good matches 'VERDICT: pass*'", True),
        ("good matches 'VERDICT*remarks'", True),
        ("good matches '*: pass*2*'", True),
        ("good matches 'VERDICT'", False),
        ("good matches 'First line'", True),
        ("good matches 'First line*VERDICT*'", False),
        ("bad succeeded or good succeeded", True),
        ("bad succeeded and good succeeded or hit succeeded", True),
        ("bad succeeded and (good succeeded or hit succeeded)", False),
        ("not (bad failed and good succeeded)", False),
        ("not not bad failed", True),
    ],
)
def test_a_condition_says_what_it_reads_like(text: str, holds: bool) -> None:
    assert Condition(text).holds(OUTCOMES) is holds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["a step", "its end"]),
        ("good", ["succeeded", "its end"]),
        ("good is fine", ["succeeded", "'is'"]),
        ("good contains", ["text in quotes"]),
        ("good contains VERDICT", ["text in quotes", "'VERDICT'"]),
        ("good contains ''", ["text in quotes"]),
        ("good contains 'x", ["cannot go on", "'x"]),
        ("(good failed", ["')'"]),
        ("good failed bad failed", ["'and' or 'or'", "'bad'"]),
        ("good failed and", ["a step"]),
        ("and failed", ["a step", "'and'"]),
        ("good.output == 'x'", ["cannot go on"]),
        ("__import__('os').system('x')", ["__import__"]),
        ("(" * 30 + "good failed" + ")" * 30, ["nested"]),
        ("not " * 30 + "good failed", ["nested"]),
        ("good failed or " * 100 + "good failed", ["characters"]),
    ],
)
def test_a_malformed_condition_is_refused_with_what_was_expected(text: str, words: List[str]) -> None:
    with pytest.raises(WorkflowError) as caught:
        Condition(text)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="good bad()'\"*-and or not contains matches failed\n\x00", max_size=60) | st.text(max_size=60))
def test_any_text_is_a_condition_or_is_refused(text: str) -> None:
    try:
        condition = Condition(text)
    except WorkflowError:
        return
    assert condition.holds({name: Outcome("done", "x") for name in condition.steps}) in {True, False}


@given(st.lists(st.text(alphabet="ab", max_size=3), min_size=1, max_size=5), st.text(alphabet="ab", max_size=12))
def test_a_star_stands_for_any_characters(pieces: List[str], line: str) -> None:
    # As slow and plain as it can be: a set of the places that the pieces so far may end at.
    places = {len(pieces[0])} if line.startswith(pieces[0]) else set()
    for piece in pieces[1:]:
        places = {
            start + len(piece)
            for start in range(len(line) + 1)
            if line.startswith(piece, start) and any(place <= start for place in places)
        }
    expected = len(line) in places if len(pieces) == 1 or pieces[-1] else bool(places)
    condition = Condition(f"a matches '{'*'.join(pieces)}'") if any(pieces) or len(pieces) > 1 else None
    if condition is not None:
        assert condition.holds({"a": Outcome("done", line or "\n")}) is expected


def test_no_output_keeps_a_pattern_busy() -> None:
    condition = Condition("a matches '*a*a*a*a*a*a*a*a*b'")
    # A search that goes back would take years, which is what the suite's time limit is for.
    assert not condition.holds({"a": Outcome("done", "a" * 400_000)})
