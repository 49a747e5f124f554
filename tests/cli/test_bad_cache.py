"""Caches that cannot be used: refused in one line where the settings are wrong, done without where they are right."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("disc:///tmp/x", ["disc", "did you mean 'disk'"]),
        ("nonsense", ["malformed", "expected"]),
        ("", ["malformed"]),
        ("redis://host:99999", ["malformed", "65535"]),
        ("redis://user:pass:word@host:port", ["malformed"]),
        ("disk:///tmp/x?max_byte=5", ["max_byte", "max_bytes"]),
        ("disk:///tmp/x?max_bytes=0", ["max_bytes", "above zero"]),
        ("disk:///tmp/x?max_bytes=-5", ["max_bytes"]),
        ("disk:///tmp/x?ttl=0", ["ttl", "above zero"]),
        ("disk:///tmp/x?ttl=-1h", ["ttl"]),
        ("disk:///tmp/x?namespace=a/b", ["namespace"]),
        ("disk:///tmp/x?ttl=1h&ttl=2h", ["ttl", "twice"]),
        ("disk:///tmp/a b", ["malformed", "%XX"]),
        ("disk:///tmp/x\udcff", ["malformed", "UTF-8"]),
        ("disk:///tmp/x?busy_timeout=9999999d", ["busy_timeout", "at most"]),
        ("redis://127.0.0.1:1?partitions=99999999999", ["partitions", "at most"]),
        ("memcached://127.0.0.1:1?connect_timeout=9999999d", ["connect_timeout", "at most"]),
        ("memcached://127.0.0.1:1?socket_timeout=9999999d", ["socket_timeout", "at most"]),
    ],
)
def test_a_wrong_url_is_refused_wherever_a_cache_is_named(cli: Any, api: Any, url: str, words: Any) -> None:
    cli("run", "reviewer", "task", "--cache", url).assert_refused(*words)
    assert api.requests() == 0


@pytest.mark.parametrize("arguments", [["cache", "stats"], ["config", "show"], ["demo"], ["map", "reviewer", "-"]])
def test_every_command_refuses_alike(cli: Any, arguments: Any) -> None:
    cli(*arguments, "--cache", "disc:///tmp/x").assert_refused("disc", "did you mean 'disk'")


def test_a_password_never_shows_in_an_error(cli: Any) -> None:
    for url in ("redis://u:hunter2@host:99999", "redis://u:hunter2@host?ttl=0", "redis://:hunter2@127.0.0.1:1"):
        done = cli("cache", "stats", "--cache", url)
        done.assert_refused()
        assert "hunter2" not in done.err


def test_a_folder_that_is_not_a_cache_is_refused_and_not_touched(cli: Any, api: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.json").write_text('{"important": true}')
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for arguments in (["run", "reviewer", "task"], ["cache", "clear", "--yes"], ["cache", "verify", "--repair"]):
        cli(*arguments, "--cache", f"disk://{folder}").assert_refused(str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert api.requests() == 0


@pytest.mark.parametrize(
    "arguments", [["stats"], ["ls"], ["get", "00ff"], ["delete", "00ff"], ["clear", "-y"], ["verify"]]
)
def test_an_unreachable_store_is_an_error_for_tools(cli: Any, arguments: Any) -> None:
    cli("cache", *arguments, "--cache", "redis://127.0.0.1:1").assert_refused("127.0.0.1:1")


def test_an_unreachable_store_costs_no_answer(cli: Any, api: Any) -> None:
    done = cli("run", "reviewer", "Review print().", "--cache", "redis://127.0.0.1:1")
    assert done.code == 0
    assert done.out
    assert done.err.splitlines()[-1].startswith("miss: ")
    assert "Traceback" not in done.err
    assert api.requests() == 1


def test_a_wrong_password_is_named_and_costs_no_answer(cli: Any, api: Any, start_server: Any) -> None:
    server = start_server("redis", "--requirepass", "the-right-password")
    url = f"redis://:hunter2@{server.host}:{server.port}"
    refused = cli("cache", "stats", "--cache", url)
    refused.assert_refused("password")
    done = cli("run", "reviewer", "Review print().", "--cache", url)
    assert (done.code, bool(done.out), api.requests()) == (0, True, 1)
    assert "hunter2" not in refused.err + done.err


def test_entries_of_another_secret_are_misses_and_stay(cli: Any, api: Any) -> None:
    cli("run", "reviewer", "Review print().")
    other = {"CLAUDE_CACHE_SECRET": "quite another secret, also long"}
    assert cli("run", "reviewer", "Review print().", **other).err.startswith("miss: ")
    assert api.requests() == 2
    states = sorted(row["state"] for row in cli("cache", "ls", "--json", **other).json)
    assert states == ["foreign", "ok"]
    assert cli("run", "reviewer", "Review print().").err.startswith("hit")


def test_a_secret_that_is_too_short_is_refused_without_being_shown(cli: Any, api: Any) -> None:
    done = cli("run", "reviewer", "task", CLAUDE_CACHE_SECRET="short-one")
    done.assert_refused("CLAUDE_CACHE_SECRET", "16 bytes")
    assert "short-one" not in done.err
    assert api.requests() == 0


def test_a_shared_store_without_a_secret_is_refused(cli: Any, api: Any, redis_server: Any) -> None:
    cli("run", "reviewer", "task", "--cache", redis_server.url, CLAUDE_CACHE_SECRET=None).assert_refused(
        "CLAUDE_CACHE_SECRET"
    )
    assert api.requests() == 0


def test_a_cache_that_cannot_be_written_costs_no_answer(cli: Any, api: Any, tmp_path: Path) -> None:
    # A file where the folder should be: no user, root neither, can make a cache there.
    (tmp_path / "file").write_text("")
    url = f"disk://{tmp_path}/file/cache"
    done = cli("run", "reviewer", "Review print().", "--cache", url)
    assert "Traceback" not in done.err
    if done.code:
        done.assert_refused(str(tmp_path))
        assert api.requests() == 0
    else:
        assert done.out
        assert api.requests() == 1
    cli("cache", "stats", "--cache", url).assert_refused(str(tmp_path))


def test_an_answer_that_does_not_fit_is_printed_all_the_same(cli: Any, api: Any, tmp_path: Path) -> None:
    url = f"disk://{tmp_path}/tiny?max_bytes=100"
    done = cli("run", "reviewer", "Review print().", "--cache", url)
    assert (done.code, bool(done.out), api.requests()) == (0, True, 1)
    assert cli("cache", "ls", "--cache", url, "--json").json == []


def test_agents_excluded_by_claude_json_are_always_asked(cli: Any, api: Any, configure: Any) -> None:
    configure({"reviewer": {"file": "agents/reviewer.md"}}, cache={"exclude_agents": ["reviewer"]})
    for _ in range(2):
        assert cli("run", "reviewer", "Review print().").err.startswith("miss: ")
    assert api.requests() == 2


def test_environment_is_overridden_by_the_option(cli: Any, tmp_path: Path) -> None:
    cli("run", "reviewer", "Review print().", "--cache", f"disk://{tmp_path}/other")
    assert cli("cache", "stats", "--json").json["entries"] == 0
    assert cli("cache", "stats", "--json", "--cache", f"disk://{tmp_path}/other").json["entries"] > 0
    assert (tmp_path / "other").is_dir()
