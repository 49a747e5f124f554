"""``claude-force metrics report``: one page that needs nothing besides itself, and its charts."""

from __future__ import annotations

import math
import re
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator import ExecutionRecord, SQLiteTracker
from claude_force_orchestrator.cli._amounts import money_text, time_text
from claude_force_orchestrator.cli._charts import Chart, Series, bars, lines, nice_steps

HOUR = 3600.0
HOSTILE = '</title><script>alert(1)</script>"><img src=http://example.org/x>'
EMPTY = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a page consists of; every element has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text = ""
        self._open: List[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> List[Dict[str, Optional[str]]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def record(project: Path) -> Callable[..., None]:
    """Record an execution that ended so many hours ago."""

    def add(hours: float = 0.0, **fields: Any) -> None:
        given: Dict[str, Any] = {"agent": "reviewer", "model": "m", "outcome": "miss", "latency": 2.0}
        given.update(cost=0.0, saved=0.0)
        tracker = SQLiteTracker(project / ".claude" / "metrics" / "executions.db")
        tracker.record(ExecutionRecord(time.time() - hours * HOUR, **{**given, **fields}))
        tracker.close()

    return add


@pytest.fixture
def page(cli: Any, project: Path) -> Callable[..., Page]:
    def read(*options: str) -> Page:
        done = cli("metrics", "report", *options)
        assert (done.code, done.out) == (0, ""), done
        assert done.err == "wrote claude-force-report.html: open it in a browser\n"
        return Page((project / "claude-force-report.html").read_text(encoding="utf-8"))

    return read


def test_the_page_shows_what_was_recorded(page: Any, record: Any) -> None:
    record(5, cost=1.5)
    record(4, outcome="hit", latency=0.004, saved=1.25)
    record(1, agent="writer", model="unpriced", cost=None)
    record(0.5, outcome="failure", error="ServerError")
    shown = page()
    for words in ("33.3 %", "$1.50", "$1.25", "and 1 of unknown price", "4 ms", "2 s", "writer", "unpriced"):
        assert words in shown.text
    assert "failed:\u00a01, cancelled:\u00a00" in shown.text
    assert len(shown.named("svg")) == 4
    # For those who do not see the charts: what each shows in a sentence, and all of its figures as a table.
    assert [svg["role"] for svg in shown.named("svg")] == ["img"] * 4
    assert all(svg["aria-label"] for svg in shown.named("svg"))
    assert len(shown.named("table")) == 3
    assert shown.named("html") == [{"lang": "en"}]


def test_the_page_shows_what_prompt_caching_saved_if_there_was_any(page: Any, record: Any) -> None:
    record(5, cost=1.5, prompt_cache_saved=0.0)
    assert "prompt caching:" not in page().text
    record(4, cost=1.0, prompt_cache_saved=-0.25)
    record(1, cost=0.5, prompt_cache_saved=3.0)
    shown = page()
    assert "prompt caching:\u00a0$2.75\u00a0besides" in shown.text
    assert "saved by prompt caching: -$0.25" in shown.text
    assert len(shown.named("svg")) == 4


def test_the_page_needs_nothing_besides_itself(page: Any, record: Any) -> None:
    record()
    shown = page()
    assert {tag for tag, _ in shown.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    for _, attributes in shown.elements:
        assert not any(name.startswith("on") or name in {"src", "href"} for name in attributes)
    assert "url(" not in shown.text
    assert "@import" not in shown.text
    assert {"http-equiv", "content"} in [set(meta) for meta in shown.named("meta")]


def test_names_are_text_and_nothing_else(page: Any, record: Any) -> None:
    record(agent=HOSTILE, model=HOSTILE, workflow=HOSTILE)
    shown = page("--agent", HOSTILE)
    assert HOSTILE in shown.text
    assert {tag for tag, _ in shown.elements}.isdisjoint({"script", "img"})
    assert shown.named("title") != []


def test_periods_fit_the_time_or_are_chosen(page: Any, cli: Any, record: Any) -> None:
    def strips(*options: str) -> int:
        return len(page(*options).named("rect")) // 4

    record(2)
    record(0)
    assert strips() in {3, 4}  # the hour may change in between
    assert strips("--by", "week") in {1, 2}
    record(24 * 30)
    assert strips() in {31, 32}
    assert strips("--since", "3h", "--by", "hour") in {3, 4}
    record(24 * 300)
    assert 42 <= strips() <= 45
    cli("metrics", "report", "--by", "hour").assert_refused("2,000", "--since")
    cli("metrics", "report", "--by", "year").assert_refused("--by", "hour, day, week")


def test_without_executions_there_is_no_page(cli: Any, project: Path) -> None:
    done = cli("metrics", "report")
    assert (done.code, done.err.splitlines()[0]) == (
        1,
        f"there are no executions in {project}/.claude/metrics/executions.db",
    )
    assert not (project / "claude-force-report.html").exists()


def test_it_can_be_written_to_standard_output_and_elsewhere(cli: Any, record: Any, project: Path) -> None:
    record()
    done = cli("metrics", "report", "--out", "-")
    assert done.out.startswith("<!DOCTYPE html>")
    assert done.err == ""
    assert cli("metrics", "report", "--out", "other.html").code == 0
    Page((project / "other.html").read_text(encoding="utf-8"))


values = st.none() | st.floats(0, 1e9).map(lambda value: round(value, 9))


def _svg(figure: str) -> Any:
    found = re.search(r"<svg.*</svg>", figure, re.DOTALL)
    assert found is not None
    return ET.fromstring(found.group(0))


@given(columns=st.lists(st.tuples(values, values), min_size=1, max_size=8), stacked=st.booleans())
def test_whatever_is_drawn_lies_within_its_chart(
    columns: List[Tuple[Optional[float], Optional[float]]], stacked: bool
) -> None:
    names = [f"<{number}>" for number in range(len(columns))]
    first, second = (list(series) for series in zip(*columns))
    chart = Chart(
        "id", "T & t", '"s"', names, [Series("a", "hits", first), Series("b", "misses", second)], "{:g}".format
    )
    for drawn in (bars(chart, stacked=stacked), lines(chart), lines(chart, logarithmic=True)):
        svg = _svg(drawn)
        hints = [title.text for title in svg.iter("title")]
        assert [hint.splitlines()[0] for hint in hints] == names
        for path in svg.iter("path"):
            for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"]):
                assert 0 <= float(x) <= 1000
                assert -0.01 <= float(y) <= 100.01


def test_a_line_is_interrupted_where_nothing_is_known_and_a_lone_value_is_a_dot() -> None:
    rate: List[Optional[float]] = [0.0, 1.0, None, 0.5]
    chart = Chart("id", "t", "s", list("abcd"), [Series("rate", "hits", rate)], str)
    line, dot = (
        path.attrib["d"] for path in _svg(lines(chart, top=1.0)).iter("path") if path.attrib["class"] != "grid"
    )
    assert line == "M125.00 100.00L375.00 0.00"
    assert dot == "M875.00 50.00h0"


def test_bars_are_as_high_as_what_they_stand_for() -> None:
    chart = Chart("id", "t", "s", ["a"], [Series("x", "hits", [1.0]), Series("y", "misses", [3.0])], str)
    stacked = [p.attrib["d"] for p in _svg(bars(chart, stacked=True)).iter("path") if p.attrib["class"] != "grid"]
    assert [re.findall(r" ([\d.]+)V([\d.]+)", path)[0] for path in stacked] == [("100.00", "75.00"), ("75.00", "0.00")]


@given(most=st.floats(1e-9, 1e12), least=st.sampled_from([0.0, 1.0]))
def test_a_scale_covers_its_values_in_few_steps(most: float, least: float) -> None:
    steps = nice_steps(most, least=least)
    assert steps[0] == 0
    assert steps[-1] >= most * (1 - 1e-5)
    assert 2 <= len(steps) <= 6
    assert least == 0 or all(math.isclose(step, round(step)) for step in steps)


def test_amounts_are_short_and_keep_what_says_something() -> None:
    shown = [money_text(amount) for amount in (0, 0.00005, 0.0034567, 0.01, 1.5, 1234.5)]
    assert shown == ["$0", "$0.00005", "$0.0035", "$0.01", "$1.50", "$1,234"]
    assert money_text(1.5, 2) == "$1.50 + 2 unknown"
    assert [time_text(seconds) for seconds in (None, 0.0002, 0.0123, 0.9999, 3.76, 1234)] == [
        *("-", "200 µs", "12 ms", "1 s", "3.8 s", "1,234 s")
    ]
