"""``claude-force cache`` on each store that survives a process."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Any, List

import pytest


@pytest.fixture(params=["disk", "redis", "memcached"])
def store(request: pytest.FixtureRequest, cli: Any, namespace: str) -> Any:
    """The command line with a cache on each backend in turn, in a namespace of its own."""
    if request.param != "disk":
        server = request.getfixturevalue(f"{request.param}_server")
        cli.environment["CLAUDE_CACHE_URL"] = f"{server.url}?namespace={namespace}"
    yield cli
    assert cli("cache", "clear", "--yes").code == 0


def keys(cli: Any) -> List[str]:
    return sorted(row["key"] for row in cli("cache", "ls", "--json").json)


def test_an_empty_cache(store: Any) -> None:
    stats = store("cache", "stats", "--json").json
    assert (stats["entries"], stats["bytes"]) == (0, 0)
    assert store("cache", "ls", "--json").json == []
    assert store("cache", "verify").code == 0


def test_entries_are_counted_listed_shown_and_deleted(store: Any, api: Any) -> None:
    answers = {task: store("run", "reviewer", task).out for task in ("Review a().", "Review b().", "Review c().")}
    stats = store("cache", "stats", "--json").json
    rows = store("cache", "ls", "--json").json
    assert len(rows) == 3 < stats["entries"]  # the account also has a record for each tag
    assert stats["bytes"] > sum(row["bytes"] for row in rows)
    assert {(row["agent"], row["model"], row["state"]) for row in rows} == {("reviewer", "claude-haiku-5-5", "ok")}
    assert all(0 <= row["age_s"] < 60 and 0 < row["expires_in_s"] <= 24 * 3600 for row in rows)
    assert {store("cache", "get", row["key"]).out for row in rows} == set(answers.values())

    first = rows[0]["key"]
    assert store("cache", "delete", first).code == 0
    assert first not in keys(store)
    assert store("cache", "stats", "--json").json["entries"] == stats["entries"] - 1
    store("cache", "delete", first).assert_refused(first, code=1)
    store("cache", "get", first).assert_refused(first, code=1)
    assert store("cache", "verify", "--json").json["consistent"] is True

    assert store("cache", "clear", "--yes").err == f"deleted {stats['entries'] - 1} entries\n"
    assert store("cache", "stats", "--json").json["entries"] == 0


def test_clear_takes_its_own_namespace_only(store: Any, namespace: str) -> None:
    url = store.environment["CLAUDE_CACHE_URL"].partition("?")[0]
    other = {"CLAUDE_CACHE_URL": f"{url}?namespace={namespace}-other"}
    store("run", "reviewer", "Review a().")
    store("run", "reviewer", "Review a().", **other)
    store("cache", "clear", "--yes")
    assert len(store("cache", "ls", "--json", **other).json) == 1
    assert store("cache", "clear", "--yes", **other).code == 0
    assert store("cache", "ls", "--json", **other).json == []


def test_a_key_may_be_given_by_its_unique_beginning(cli: Any) -> None:
    tasks = b"".join(b'"Review f%d()."\n' % number for number in range(20))  # more than there are first digits
    assert cli("map", "reviewer", "-", stdin=tasks).code == 0
    every = keys(cli)
    twice = next(key[0] for key, after in zip(every, every[1:]) if key[0] == after[0])
    cli("cache", "get", twice).assert_refused("keys begin with", twice)
    cli("cache", "delete", twice).assert_refused("keys begin with", twice)
    assert cli("cache", "get", every[0][:20]).code == 0
    assert cli("cache", "delete", every[0][:20]).code == 0
    assert keys(cli) == every[1:]
    for wrong in ("../x", "XYZ", "a" * 65, "", "a\n"):
        cli("cache", "get", wrong).assert_refused("64 digits")


def test_get_as_json_has_what_the_answer_took(cli: Any) -> None:
    cli("run", "reviewer", "Review a().")
    (key,) = keys(cli)
    found = cli("cache", "get", key, "--json").json
    assert found["key"] == key
    assert found["answer"]["agent_name"] == "reviewer"
    assert found["answer"]["text"] + "\n" == cli("cache", "get", key).out


def test_ls_shows_as_many_as_were_asked_for(cli: Any) -> None:
    for task in ("Review a().", "Review b().", "Review c()."):
        cli("run", "reviewer", task)
    done = cli("cache", "ls", "--limit", "2", "--json")
    assert len(done.json) == 2
    assert "--limit" in done.err
    table = cli("cache", "ls")
    assert table.err == ""
    assert all(key[:16] in table.out for key in keys(cli))


def test_an_answer_cannot_reach_for_the_terminal_through_ls(cli: Any) -> None:
    cli("run", "reviewer", "Review a().", "--model", "claude-x\u202e")
    assert "\u202e" not in cli("cache", "ls").out


def test_corrupt_entries_are_found_and_repaired(cli: Any, redis_server: Any, namespace: str) -> None:
    import redis

    cli.environment["CLAUDE_CACHE_URL"] = f"{redis_server.url}?namespace={namespace}"
    for task in ("Review a().", "Review b()."):
        cli("run", "reviewer", task)
    damaged = keys(cli)[0]
    with redis.Redis(redis_server.host, redis_server.port) as client:
        (name,) = client.scan_iter(match=f"*{namespace}*{damaged}*", count=1000)
        kind = client.type(name)
        assert kind in {b"string", b"hash"}
        if kind == b"string":
            client.setrange(name, client.strlen(name) - 1, b"\xff")
        else:
            field, value = max(client.hgetall(name).items(), key=lambda item: len(item[1]))
            client.hset(name, field, value[:-1] + bytes([value[-1] ^ 1]))

    found = cli("cache", "verify", "--json")
    assert found.code == 1
    assert found.json["corrupt"] == [damaged]
    assert found.json["repaired"] == 0
    cli("cache", "get", damaged).assert_refused("verify --repair", code=1)
    assert {row["state"] for row in cli("cache", "ls", "--json").json} == {"ok", "corrupt"}

    assert cli("cache", "verify", "--repair").code == 0
    assert damaged not in keys(cli)
    after = cli("cache", "verify", "--json")
    assert (after.code, after.json["consistent"], after.json["corrupt"]) == (0, True, [])
    cli("cache", "clear", "--yes")


def test_entries_of_another_secret_are_told_apart_and_stay(cli: Any) -> None:
    cli("run", "reviewer", "Review a().")
    (key,) = keys(cli)
    other = {"CLAUDE_CACHE_SECRET": "quite another secret, also long"}
    found = cli("cache", "verify", "--repair", "--json", **other)
    assert (found.code, found.json["foreign"], found.json["corrupt"]) == (0, [key], [])
    cli("cache", "get", key, **other).assert_refused("another secret", "CLAUDE_CACHE_SECRET", code=1)
    assert keys(cli) == [key]


def test_clear_asks_a_person_and_refuses_to_guess_without_one(cli: Any) -> None:
    cli("run", "reviewer", "Review a().")
    cli("cache", "clear").assert_refused("--yes")
    assert len(keys(cli)) == 1
    for answer, left in ((b"n\n", 1), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        process = cli.start("cache", "clear", stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(theirs)
        os.write(ours, answer)
        _, err = process.communicate(timeout=60)
        os.close(ours)
        assert process.returncode == 0
        assert re.match(rb"Delete \d+ entries of namespace 'default' in disk:///", err)
        assert len(keys(cli)) == left


def test_the_projects_cache_is_the_one_that_run_uses(cli: Any, configure: Any, tmp_path: Path) -> None:
    del cli.environment["CLAUDE_CACHE_URL"]
    configure({"reviewer": {"file": "agents/reviewer.md"}}, cache={"url": f"disk://{tmp_path}/configured"})
    cli("run", "reviewer", "Review a().")
    stats = cli("cache", "stats", "--json").json
    assert stats["cache"] == f"disk://{tmp_path}/configured"
    assert len(keys(cli)) == 1


def test_without_a_project_a_cache_can_be_named(cli: Any, tmp_path: Path) -> None:
    cli.folder = tmp_path
    assert cli("cache", "stats", "--json", "--cache", f"disk://{tmp_path}/cache").json["entries"] == 0
    cli("cache", "stats", "--config", "none.json").assert_refused("none.json")
