"""``claude-force map``: a file of tasks in, a file of results out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator.cli import _lines
from claude_force_orchestrator.demo._standin import StandIn


def write_tasks(folder: Path, *lines: Any) -> Path:
    path = folder / "tasks.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def read_results(path: Path) -> List[Dict[str, Any]]:
    text = path.read_text("utf-8")
    assert text == "" or text.endswith("\n")
    return sorted((json.loads(line) for line in text.splitlines()), key=lambda row: row["index"])


def test_every_task_has_its_result(cli: Any, api: Any, project: Path) -> None:
    write_tasks(
        project, "Review a().", {"task": "Review b().", "id": "b"}, {"task": "Document a().", "agent": "writer"}
    )
    done = cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    assert done.code == 0
    rows = read_results(project / "results.jsonl")
    assert [(row["index"], row.get("id"), row["agent"], row["success"]) for row in rows] == [
        (0, None, "reviewer", True),
        (1, "b", "reviewer", True),
        (2, None, "writer", True),
    ]
    assert all(row["output"] and row["metadata"]["cached"] is False for row in rows)
    assert done.err == done.err.splitlines()[0] + "\n"
    assert done.err.startswith("3 tasks: 0 hits, 0 failed, 3 API calls; $")
    assert api.requests() == 3


def test_a_second_run_asks_nothing_again(cli: Any, api: Any, project: Path) -> None:
    write_tasks(project, *(f"Review f{number}()." for number in range(20)))
    cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    first = read_results(project / "results.jsonl")
    done = cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    assert done.err.startswith("20 tasks: 20 hits, 0 failed, 0 API calls; ")
    second = read_results(project / "results.jsonl")
    assert [row["output"] for row in second] == [row["output"] for row in first]
    assert all(row["metadata"]["cached"] for row in second)
    assert api.requests() == 20


def test_repeats_in_one_file_cost_one_call(cli: Any, api: Any, project: Path) -> None:
    write_tasks(project, *["Review print()."] * 30)
    assert cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl").code == 0
    assert len(read_results(project / "results.jsonl")) == 30
    assert api.requests() == 1


def test_standard_streams(cli: Any, api: Any) -> None:
    done = cli("map", "reviewer", "-", stdin=b'"Review a()."\n\n   \n"Review b()."')
    assert done.code == 0
    assert sorted(json.loads(line)["index"] for line in done.out.splitlines()) == [0, 3]


def test_no_tasks_are_no_results(cli: Any, project: Path) -> None:
    write_tasks(project)
    assert cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl").code == 0
    assert read_results(project / "results.jsonl") == []


def test_bad_lines_are_failed_results_and_the_others_arrive(cli: Any, api: Any, project: Path) -> None:
    bad: List[Tuple[Any, str]] = [
        (b"{", "JSON"),
        (b"nothing", "JSON"),
        (b"7", "expected a string"),
        (b"[]", "expected a string"),
        (b"{}", "'task' must be text"),
        (b'{"task": 7}', "'task' must be text"),
        (b'{"task": "x", "agent": 7}', "'agent' must be text"),
        (b'{"task": "x", "id": NaN}', "'id'"),
        (b'{"task": "x", "id": [1e999]}', "'id'"),
        (b'"caf\xe9"', "UTF-8"),
        (b"[" * 100_000, "is no task"),
        (b'"' + b"x" * (_lines.MAX_LINE + 1) + b'"', "longer than"),
        ({"task": "x", "agent": "nobody"}, "nobody"),
        ({"task": "x", "agent": "writr"}, "writer"),
        ("", "blank"),
        ("x" * 100_001, "100,000"),
        (b'"\\ud800"', "surrogate"),
    ]
    good = ["Review a().", "Review b()."]
    write_tasks(project, good[0], *(line for line, _ in bad), good[1])
    done = cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    assert done.code == 1
    assert "Traceback" not in done.err
    rows = read_results(project / "results.jsonl")
    assert [row["index"] for row in rows] == list(range(len(bad) + 2))
    assert [row["success"] for row in rows] == [True, *[False] * len(bad), True]
    for row, (_, word) in zip(rows[1:-1], bad):
        assert len(row["errors"]) == 1
        assert word in row["errors"][0]
    assert api.requests() == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["map", "reviewer", "none.jsonl"], ["none.jsonl", "No such file"]),
        (["map", "reviewer", ".claude"], [".claude", "folder"]),
        (["map", "reviewer", "tasks.jsonl", "--out", "none/results.jsonl"], ["none/results.jsonl"]),
        (["map", "reviewer", "tasks.jsonl", "--out", ".claude"], [".claude"]),
        (["map", "reviewer", "tasks.jsonl", "--out", "./tasks.jsonl"], ["tasks.jsonl", "--out"]),
        (["map", "reviewr", "tasks.jsonl", "--out", "results.jsonl"], ["did you mean 'reviewer'"]),
        (["map", "reviewer", "tasks.jsonl", "--out", "results.jsonl", "--cache", "disc://"], ["disc"]),
        (["map", "reviewer", "tasks.jsonl", "--out", "results.jsonl", "--cache", "redis://h?ttl=0"], ["ttl"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_paid_or_lost(
    cli: Any, api: Any, project: Path, arguments: Any, words: Any
) -> None:
    tasks = write_tasks(project, "Review a().").read_bytes()
    (project / "results.jsonl").write_text("the results of last time\n")
    cli(*arguments).assert_refused(*words)
    assert api.requests() == 0
    assert (project / "tasks.jsonl").read_bytes() == tasks
    assert (project / "results.jsonl").read_text() == "the results of last time\n"


def test_a_cache_that_refuses_to_open_costs_no_earlier_results(cli: Any, api: Any, project: Path) -> None:
    write_tasks(project, "Review a().")
    (project / "results.jsonl").write_text("the results of last time\n")
    (project / "photos").mkdir()
    (project / "photos" / "holiday.txt").write_text("mine")
    url = f"disk://{project}/photos"
    cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl", "--cache", url).assert_refused("photos")
    assert (project / "results.jsonl").read_text() == "the results of last time\n"
    assert api.requests() == 0


def test_a_full_disk_is_told_and_the_answers_are_in_the_cache(cli: Any, api: Any, project: Path) -> None:
    write_tasks(project, "Review a().", "Review b().")
    cli("map", "reviewer", "tasks.jsonl", "--out", "/dev/full").assert_refused("No space left", "/dev/full")
    paid = api.requests()
    done = cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    assert done.code == 0
    assert len(read_results(project / "results.jsonl")) == 2
    assert f"{paid} hits" in done.err
    assert api.requests() == 2


def test_a_reader_that_leaves_early_ends_it_quietly(cli: Any, api: Any, project: Path) -> None:
    write_tasks(project, *(f"Review f{number}()." for number in range(50)))
    process = cli.start("map", "reviewer", "tasks.jsonl", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 141


def test_ctrl_c_leaves_whole_lines_and_the_next_run_goes_on(cli: Any, project: Path, llmock_python: str) -> None:
    write_tasks(project, *(f"Review f{number}()." for number in range(200)))
    results = project / "results.jsonl"
    with StandIn(latency_ms=50, python=llmock_python) as slow:
        cli.environment["ANTHROPIC_BASE_URL"] = slow.base_url
        process = cli.start("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl", stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (results.exists() and results.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.decode().count("\n") == 1
        assert err.decode().startswith("error: interrupted: ")
        written = len(read_results(results))
        assert 0 < written < 200
        paid = slow.requests()
        done = cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
        assert done.code == 0
        assert len(read_results(results)) == 200
        # Calls that were under way at the interruption were lost with it, ten at most.
        assert 200 <= slow.requests() <= 210
        assert paid < 200


def test_as_many_calls_are_under_way_as_were_allowed(cli: Any, project: Path) -> None:
    write_tasks(project, *(f"Review f{number}()." for number in range(310)))
    connected: List[socket.socket] = []
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        silent.settimeout(30)
        cli.environment["ANTHROPIC_BASE_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        arguments = ("map", "reviewer", "tasks.jsonl", "--max-concurrent", "300", "--timeout", "300")
        process = cli.start(*arguments, stderr=subprocess.PIPE)
        try:
            while len(connected) < 300:
                connected.append(stack.enter_context(silent.accept()[0]))
            silent.settimeout(1)
            with pytest.raises(socket.timeout):
                silent.accept()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


@given(
    lines=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30), end=st.booleans()
)
def test_lines_are_those_of_the_file_however_it_is_cut(lines: List[bytes], end: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if end else b"")
    expected = [(number, line) for number, line in enumerate(data.split(b"\n")) if line.strip()]
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        assert _lines.count_lines(file.fileno()) == len(expected)
        assert [line for batch in _lines._batches(file.fileno()) for line in batch] == expected
