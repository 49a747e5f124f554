"""``claude-force map``: a file of tasks in, a file of results out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


class _FallsSilent(ThreadingHTTPServer):
    """A Messages API that answers so many requests and then no more, while it counts those that wait."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, answers: int) -> None:
        super().__init__(("127.0.0.1", 0), _FallsSilentHandler)
        self.answers = answers
        self.waiting = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()


class _FallsSilentHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _FallsSilent

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.answers -= 1
            silent = self.server.answers < 0
            self.server.waiting += silent
        if silent:
            self.server.ended.wait(120)
            self.close_connection = True
            return
        time.sleep(0.2)  # so that calls wait for each other: a limit rises only while they do
        body = json.dumps(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-haiku-5-5",
                "content": [{"type": "text", "text": "Fine."}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 1, "output_tokens": 1},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_as_many_calls_are_under_way_as_were_allowed(cli: Any, project: Path) -> None:
    """It takes answers until there are so many: a limit starts low, and each answer raises it."""
    write_tasks(project, *(f"Review f{number}()." for number in range(1000)))
    with _FallsSilent(answers=600) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        cli.environment["ANTHROPIC_BASE_URL"] = f"http://127.0.0.1:{server.server_address[1]}"
        arguments = ("map", "reviewer", "tasks.jsonl", "--max-concurrent", "300", "--timeout", "300")
        process = cli.start(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 60
            while server.waiting < 300 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(1)  # for those that there may not be
            assert server.waiting == 300
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            server.ended.set()
            server.shutdown()
            thread.join()


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
