"""``claude-force conformance``: the kit on a backend that a URL chooses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from claude_force_cache.testing import CHECKS

FORGETFUL = """
import dataclasses
from claude_force_backends import memory
from claude_force_cache import hookimpl

class ForgetfulBackend(memory.MemoryBackend):
    async def delete(self, key, *, version=None):
        return await super().delete(key)

@hookimpl
def claude_force_cache_backend():
    plugin = memory.claude_force_cache_backend()
    return dataclasses.replace(plugin, create=ForgetfulBackend, url="forgetful://")
"""


@pytest.fixture
def forgetful(tmp_path: Path, lonely_cli: Any) -> None:
    """A distribution with a backend that does not look at versions."""
    site = tmp_path / "site"
    info = site / "forgetful_cache-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "forgetful_cache.py").write_text(FORGETFUL)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetful-cache\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[claude_force_cache.backends]\nforgetful = forgetful_cache\n")
    (info / "RECORD").write_text("")
    lonely_cli.environment["PYTHONPATH"] = str(site)


def test_lists_every_check_and_says_why_one_did_not_run(lonely_cli: Any) -> None:
    before = sorted(lonely_cli.folder.iterdir())
    done = lonely_cli.process("conformance", "memory://?max_bytes=1MB", "--examples", "3", "--json")
    assert (done.code, done.err) == (0, "")
    assert [check["name"] for check in done.json["checks"]] == list(CHECKS)
    assert (done.json["passed"], done.json["seed"], done.json["max_examples"]) == (True, 0, 3)
    assert sum(done.json["counts"].values()) == len(CHECKS)
    results = {check["name"]: check for check in done.json["checks"]}
    assert results["size_of_overwrite"]["outcome"] == "passed"
    assert results["limit_at_open"]["outcome"] == "not run"
    assert results["limit_at_open"]["detail"] == "the backend declares persistent=False"
    assert results["corrupt_by_raw_damage"]["detail"] == "the suite does not define the hook read_raw"
    assert all(check["rule"] for check in results.values())
    assert sorted(lonely_cli.folder.iterdir()) == before


def test_prints_a_table(lonely_cli: Any) -> None:
    done = lonely_cli.process("conformance", "memory://", "--examples", "1", "--seed", "7")
    assert (done.code, done.err) == (0, "")
    for name, check in CHECKS.items():
        assert name in done.out
        assert check.rule.split()[0] in done.out
    assert "not run: the backend declares persistent=False" in done.out
    last = rf"{len(CHECKS)} checks: \d+ passed, 0 failed, \d+ not run; seed 7, 1 examples"
    assert re.fullmatch(last, done.out.splitlines()[-1])


@pytest.mark.usefixtures("forgetful")
def test_fails_with_the_example_where_a_rule_is_broken(lonely_cli: Any) -> None:
    checks = ("--check", "version_guards_delete", "--check", "size_of_overwrite")
    done = lonely_cli.process("conformance", "forgetful://", *checks)
    assert (done.code, done.err) == (1, "")
    assert "version_guards_delete: delete by a version out of date is True, expected False" in done.out
    assert "after these steps:" in done.out
    report = lonely_cli.process("conformance", "forgetful://", *checks, "--json")
    assert report.code == 1
    assert report.json["passed"] is False
    outcomes = {check["name"]: check["outcome"] for check in report.json["checks"]}
    assert outcomes == {"version_guards_delete": "failed", "size_of_overwrite": "passed"}


def test_other_examples_are_run_when_they_are_asked_for(lonely_cli: Any) -> None:
    seeds = {
        lonely_cli.process("conformance", "memory://", "--check", "ttl_edge", "--random", "--json").json["seed"]
        for _ in range(2)
    }
    assert len(seeds) == 2


def test_works_on_a_folder_with_processes_of_its_own(lonely_cli: Any, tmp_path: Path) -> None:
    url = f"disk://{tmp_path}/cache?busy_timeout=30s"
    done = lonely_cli.process("conformance", url, "--check", "processes_adding", "--json")
    assert (done.code, done.err) == (0, "")
    assert [check["outcome"] for check in done.json["checks"]] == ["passed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope://host"], ["no installed backend is called 'nope'"]),
        (["memory"], ["malformed", "memory://"]),
        (["memory://?partitions=3"], ["no option 'partitions'"]),
        (["memory://host"], ["write memory://"]),
        ([], ["Missing argument 'URL'"]),
        (["memory://", "--examples", "0"], ["--examples"]),
        (["memory://", "--seed", "x"], ["--seed"]),
        (["memory://", "--check", "size_of_sets"], ["did you mean size_of_set?"]),
        (["memory://", "--check", "x"], ["there is no check 'x'"]),
    ],
)
def test_bad_usage_is_one_line(lonely_cli: Any, arguments: Any, words: Any) -> None:
    lonely_cli("conformance", *arguments).assert_refused(*words)


def test_a_store_that_is_not_there_is_one_line(lonely_cli: Any, absent_server: str) -> None:
    done = lonely_cli("conformance", f"redis://:a-password@{absent_server}")
    done.assert_refused(absent_server)
    assert "a-password" not in done.err


def test_says_how_to_install_what_is_missing(lonely_cli: Any, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    # As if it were not installed: its import fails as that of an absent module does.
    (hidden / "hypothesis.py").write_text("raise ModuleNotFoundError('not installed', name='hypothesis')\n")
    done = lonely_cli.process("conformance", "memory://", PYTHONPATH=str(hidden))
    done.assert_refused("'hypothesis'", "pip install 'claude-force-cache[testing]'")
