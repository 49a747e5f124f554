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
from typing import Any, Dict, List, Set, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_force_orchestrator.cli import _lines, _map
from claude_force_orchestrator.demo._standin import StandIn

NEWLINE = b"\n"


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


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--in-order"]])
def test_an_interruption_loses_no_call_and_resume_goes_on(
    cli: Any, project: Path, llmock_python: str, options: List[str], signal_sent: int
) -> None:
    write_tasks(project, *(f"Review f{number}()." for number in range(120)))
    results = project / "results.jsonl"
    command = ("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl", *options)
    with StandIn(latency_ms=50, python=llmock_python) as slow:
        cli.environment["ANTHROPIC_BASE_URL"] = slow.base_url
        written = 0
        for _ in range(2):
            process = cli.start(*command, "--resume", stderr=subprocess.PIPE)
            deadline = time.monotonic() + 60
            while len(slow.journal()) <= written and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal_sent)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 130
            lines = err.decode().splitlines()
            assert [line.partition(":")[0] for line in lines] == ["stopping", lines[1].partition(":")[0], "error"]
            assert "API calls" in lines[1]
            assert "--resume" in lines[2]
            rows = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
            assert all(row["success"] for row in rows)
            if options:
                assert [row["index"] for row in rows] == list(range(len(rows)))
            else:
                assert slow.requests() == len(rows)
            written = slow.requests()
            assert 0 < written < 120
        half = results.read_bytes()
        with results.open("ab") as file:
            file.write(b'{"index":119,"agent":"reviewer","succ')  # a line that was being written when it died
        done = cli(*command, "--resume")
        assert done.code == 0
        assert f"{half.count(NEWLINE)} were there already" in done.err
        assert results.read_bytes().startswith(half)
        assert [row["index"] for row in read_results(results)] == list(range(120))
        assert slow.requests() == 120


def test_two_at_once_do_not_write_to_one_file(cli: Any, project: Path, llmock_python: str) -> None:
    write_tasks(project, *(f"Review f{number}()." for number in range(20)))
    results = project / "results.jsonl"
    command = ("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    with StandIn(latency_ms=2000, python=llmock_python) as slow:
        cli.environment["ANTHROPIC_BASE_URL"] = slow.base_url
        process = cli.start(*command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not results.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for options in ([], ["--resume"]):
            refused = cli(*command, *options)
            assert refused.code == 2
            assert "another process writes its results to 'results.jsonl'" in refused.err
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert len(results.read_bytes().splitlines()) == slow.requests()


def test_resume_asks_only_what_is_not_there(cli: Any, api: Any, project: Path) -> None:
    write_tasks(project, "Review a().", b"no task", "Review b().", "", "Review c().")
    command = ("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl", "--no-store", "--resume")
    assert cli(*command).code == 1
    rows = (project / "results.jsonl").read_bytes().splitlines(keepends=True)
    assert len(rows) == 5
    assert api.requests() == 3
    assert cli(*command).err.startswith("0 tasks: 0 hits, 0 failed, 0 API calls; ")
    (project / "results.jsonl").write_bytes(b"".join(row for row in rows if b'"index":2' not in row))
    done = cli(*command)
    assert done.err.startswith("1 tasks: 0 hits, 0 failed, 1 API calls; ")
    assert done.err.endswith("; 4 were there already\n")
    assert [row["index"] for row in read_results(project / "results.jsonl")] == list(range(5))
    assert api.requests() == 4


def test_resume_touches_nothing_that_is_not_its_own(cli: Any, api: Any, project: Path) -> None:
    write_tasks(project, "Review a().")
    (project / "results.jsonl").write_text('{"index":0,"success":true}\nmy diary\n')
    command = ("map", "reviewer", "tasks.jsonl", "--resume")
    cli(*command, "--out", "results.jsonl").assert_refused("line 2 of 'results.jsonl'", "--out")
    cli(*command).assert_refused("--resume needs --out")
    cli(*command, "--out", "/dev/null").assert_refused("no file")
    assert (project / "results.jsonl").read_text() == '{"index":0,"success":true}\nmy diary\n'
    assert api.requests() == 0


def test_results_in_the_order_of_the_tasks(cli: Any, api: Any, project: Path) -> None:
    lines = [b"no task", *(f"Review f{number}()." for number in range(0, 40, 2)), b"[]", b"{}", "Review g().", b"7"]
    write_tasks(project, *lines)
    cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    write_tasks(project, *lines[:10], "Review new().", *lines[10:])
    done = cli("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl", "--in-order")
    assert done.code == 1
    rows = [json.loads(line) for line in (project / "results.jsonl").read_text("utf-8").splitlines()]
    assert [row["index"] for row in rows] == list(range(len(lines) + 1))
    assert [row["index"] for row in rows if not row["success"]] == [0, 22, 23, 25]
    assert [row["index"] for row in rows if row["success"] and not row["metadata"]["cached"]] == [10]


@given(st.binary(max_size=60), st.sampled_from([1, 3, 1 << 18]))
def test_a_line_that_was_not_written_to_its_end_is_cut_off(data: bytes, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setattr(_lines, "_CHUNK", chunk)
        file.write(data)
        file.flush()
        whole = data[: data.rfind(b"\n") + 1]
        expected = [(number, line) for number, line in enumerate(whole.split(b"\n")) if line.strip()]
        assert list(_lines.mend_lines(file.fileno())) == expected
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == os.fstat(file.fileno()).st_size == len(whole)


@given(st.sets(st.integers(0, 20_000)), st.integers(0, 20_000))
def test_a_set_of_line_numbers(numbers: Set[int], other: int) -> None:
    indices = _map._Indices()
    for number in [*numbers, *numbers]:
        indices.add(number)
    assert len(indices) == len(numbers)
    assert all(number in indices for number in numbers)
    assert (other in indices) == (other in numbers)


class _KeepsWaiting(ThreadingHTTPServer):
    """A Messages API that answers when it is told to, all that wait at once."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _KeepsWaitingHandler)
        self.lock = threading.Lock()
        self.waiting = 0
        self.latest = time.monotonic()
        self.gate = threading.Event()

    def answer(self) -> None:
        with self.lock:
            self.waiting = 0
            self.gate.set()
            self.gate = threading.Event()


class _KeepsWaitingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _KeepsWaiting

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.waiting += 1
            self.server.latest = time.monotonic()
            gate = self.server.gate
        gate.wait(120)
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
        try:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # nobody waits for it any more
            self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


def test_as_many_calls_are_under_way_as_were_allowed(cli: Any, project: Path) -> None:
    """A limit starts low, and an answer raises it while another call waits: all are answered when no more come."""
    write_tasks(project, *(f"Review f{number}()." for number in range(2000)))
    with _KeepsWaiting() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        cli.environment["ANTHROPIC_BASE_URL"] = f"http://127.0.0.1:{server.server_address[1]}"
        arguments = ("map", "reviewer", "tasks.jsonl", "--max-concurrent", "300", "--timeout", "300")
        process = cli.start(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 100
            while server.waiting < 300 and time.monotonic() < deadline:
                time.sleep(0.01)
                if 0 < server.waiting < 300 and time.monotonic() > server.latest + 1.5:
                    server.answer()
            time.sleep(1)  # for those that there may not be
            assert server.waiting == 300
            # The first one would wait for all of them.
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.readline().startswith(b"stopping: ")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 130
            assert b"Traceback" not in errors
        finally:
            process.kill()
            process.communicate()
            server.answer()
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
