"""``claude-force demo``: the main job, on each kind of store."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, List

import pytest

from claude_force_orchestrator.demo._standin import StandIn
from claude_force_orchestrator.demo._tasks import MAX_BYTES, MIN_BYTES, make_batch, standard_modules

FIELDS = [
    "tasks",
    "api_calls",
    "hits",
    "wall_s",
    "tokens",
    "usd_spent",
    "usd_saved",
    "cache_entries",
    "cache_bytes",
]


@pytest.fixture(autouse=True)
def _llmock(lonely_cli: Any, llmock_python: str) -> None:
    """Python 3.8 and 3.9 need another interpreter for the stand-in."""
    if llmock_python != sys.executable:
        lonely_cli.environment["CLAUDE_FORCE_LLMOCK_PYTHON"] = llmock_python


def assert_saved(report: Any, *, different: int, tasks: int) -> None:
    first, second = report["passes"]
    assert [list(one) for one in report["passes"]] == [FIELDS, FIELDS]
    assert (first["tasks"], first["api_calls"], first["hits"]) == (tasks, different, tasks - different)
    assert (second["tasks"], second["api_calls"], second["hits"]) == (tasks, 0, tasks)
    # The account also has a record for each tag.
    assert different < first["cache_entries"] == second["cache_entries"] < different + 20
    assert first["cache_bytes"] == second["cache_bytes"] > 0
    assert first["tokens"] > 0
    assert second["tokens"] == 0
    assert second["usd_spent"] == 0
    assert first["usd_spent"] > 0
    # Each figure is rounded to a millionth of a dollar by itself.
    assert second["usd_saved"] == pytest.approx(first["usd_spent"] + first["usd_saved"], abs=2e-6)


def test_the_second_pass_calls_nobody_by_the_servers_own_count(lonely_cli: Any, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = lonely_cli.process("demo", "--json", TMPDIR=str(temporary))
    assert done.code == 0
    assert done.json["stand_in"] is True
    assert done.json["cache"].startswith("disk://")
    assert_saved(done.json, different=60, tasks=72)
    assert "local stand-in for Claude" in done.err
    assert list(temporary.iterdir()) == []
    assert list(Path(lonely_cli.environment["HOME"]).iterdir()) == []


@pytest.mark.parametrize("kind", ["memory", "redis", "memcached"])
def test_any_cache_does_the_same_without_a_secret_of_its_own(
    lonely_cli: Any, request: pytest.FixtureRequest, kind: str
) -> None:
    url = "memory://" if kind == "memory" else request.getfixturevalue(f"{kind}_server").url
    done = lonely_cli("demo", "--json", "--tasks", "10", "--cache", url)
    assert done.code == 0
    assert_saved(done.json, different=10, tasks=12)
    assert "secret that it throws away" in done.err


def test_a_person_sees_a_table_that_says_what_it_is(lonely_cli: Any) -> None:
    done = lonely_cli("demo", "--tasks", "5", "--cache", "memory://")
    assert done.code == 0
    for word in ("API calls, by the server's count", "USD saved", "cache bytes", "stand-in, not from Claude"):
        assert word in done.out


def test_a_base_url_is_respected(cli: Any, api: Any) -> None:
    done = cli("demo", "--json", "--tasks", "10")
    assert done.code == 0
    assert done.json["stand_in"] is False
    assert_saved(done.json, different=10, tasks=12)
    assert api.requests() == 10
    assert "$" in done.err.splitlines()[-1]
    assert "10 calls of claude-haiku-5-5" in done.err
    assert cli("cache", "stats", "--json").json["entries"] == 0


def test_without_llmock_the_remedy_is_named(lonely_cli: Any) -> None:
    code = "import sys; sys.modules['llmock'] = None; from claude_force_orchestrator.cli import main; main(['demo'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**lonely_cli.environment, "CLAUDE_FORCE_LLMOCK_PYTHON": ""},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the local stand-in for Claude needs llmock")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_the_server_ends_with_it(lonely_cli: Any, number: int) -> None:
    process = lonely_cli.start(
        "demo", "--tasks", "1000", "--cache", "memory://", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    lines: List[str] = []
    for line in process.stderr:
        lines.append(line.decode())
        if "stand-in for Claude, process" in lines[-1]:
            break
    server = int(lines[-1].partition("process ")[2].partition(",")[0])
    assert is_running(server)
    # Python drops an interruption that reaches it inside a finaliser; whoever means it asks again.
    for _ in range(20):
        process.send_signal(number)
        try:
            process.communicate(timeout=3)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode in {130, -number}
    deadline = time.monotonic() + 20
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(server)


def is_running(pid: int) -> bool:
    try:
        # The process may be another's child by now, so its state tells, not a signal.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_more_tasks_than_there_are_pairs_are_refused(lonely_cli: Any) -> None:
    lonely_cli("demo", "--tasks", "1001").assert_refused("--tasks", "1000")


def test_the_batch_is_of_real_modules_and_always_the_same() -> None:
    agents = ["a", "b", "c", "d", "e", "f"]
    modules = standard_modules()
    assert all(MIN_BYTES <= path.stat().st_size <= MAX_BYTES for path in modules)
    batch = make_batch(agents, modules, 60)
    assert batch == make_batch(agents, modules, 60)
    assert (len(batch), len(set(batch))) == (72, 60)
    assert {question.agent for question in batch} == set(agents)
    assert len({question.task for question in batch}) == 60
    assert all(len(question.task) <= 100_000 for question in batch)
    few = modules[:7]
    assert len(set(make_batch(agents, few, 42))) == 42
    with pytest.raises(ValueError, match="42 different"):
        make_batch(agents, few, 43)


def test_the_stand_in_counts_what_reached_it_and_nothing_else(cli: Any, api: StandIn) -> None:
    assert api.requests() == 0
    with urllib.request.urlopen(api.base_url + "/v1/models", timeout=10) as models:
        assert models.status == 200
    assert cli("run", "reviewer", "Review a().").code == 0
    assert api.requests() == 1
    api.forget()
    assert api.requests() == 0
