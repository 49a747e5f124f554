"""``claude-force new-backend``: a project that is complete but for its code, and never in anybody's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILES = [
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "src/claude_force_cache_key_jar/__init__.py",
    "src/claude_force_cache_key_jar/backend.py",
    "src/claude_force_cache_key_jar/py.typed",
    "tests/test_conformance.py",
    "tests/test_plugin.py",
]

PROGRAM = """
import asyncio, inspect, json
from claude_force_cache import BackendSettings, BackendURL, list_backends, load_backend

(info,) = [info for info in list_backends() if info.name == "key-jar"]
plugin = load_backend("key-jar")
backend = plugin.create(BackendSettings(BackendURL.parse("key-jar://localhost")[0]))
said = {}
for base in type(backend).__mro__[1:2]:
    for verb in ("open", "close", "ping", "usage", "clear", "scan"):
        try:
            result = getattr(backend, verb)()
            if inspect.isawaitable(result):
                asyncio.run(result)
        except NotImplementedError as error:
            said[verb] = str(error)
print(json.dumps([info.distribution, type(backend).__name__, base.__name__, said]))
"""


def written(folder: Path) -> Any:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def import_it(folder: Path) -> Any:
    """Return what a fresh interpreter finds where the project is installed, as an installer would leave it."""
    info = folder / "src" / "claude_force_cache_key_jar-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: claude-force-cache-key-jar\nVersion: 0.1.0\n")
    lines = (folder / "pyproject.toml").read_text().splitlines()
    name, _, target = lines[lines.index('[project.entry-points."claude_force_cache.backends"]') + 1].partition(" = ")
    (info / "entry_points.txt").write_text(f"[claude_force_cache.backends]\n{name} = {json.loads(target)}\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("flags", "kind"), [([], "Backend"), (["--blocking"], "SyncBackend")])
def test_it_writes_a_backend_that_is_found_and_says_what_is_missing(lonely_cli: Any, flags: Any, kind: str) -> None:
    done = lonely_cli("new-backend", "key-jar", *flags)
    assert (done.code, done.err) == (0, "")
    folder = lonely_cli.folder / "claude-force-cache-key-jar"
    assert written(folder) == FILES
    for path in FILES:
        assert f"claude-force-cache-key-jar/{path}\n" in done.out
        assert "$" not in (folder / path).read_text()
    distribution, name, base, said = import_it(folder)
    assert (distribution, name, base) == ("claude-force-cache-key-jar", "KeyJarBackend", kind)
    assert said == {
        verb: f"fill in what {kind}.{verb} promises" for verb in ("open", "close", "ping", "usage", "clear", "scan")
    }


def test_it_writes_where_it_is_told(lonely_cli: Any) -> None:
    (lonely_cli.folder / "here").mkdir()
    assert lonely_cli("new-backend", "key-jar", "--dir", "here").code == 0
    assert lonely_cli("new-backend", "key-jar", "--dir", "some/where/else").code == 0
    assert written(lonely_cli.folder / "here") == written(lonely_cli.folder / "some/where/else") == FILES


@pytest.mark.parametrize("name", ["Jar", "a_jar", "1jar", "jar-", "a--jar", "../jar", "j" * 33, "", "jär"])
def test_a_name_that_is_no_scheme_is_refused(lonely_cli: Any, name: str) -> None:
    lonely_cli("new-backend", name).assert_refused("is no name for a backend", "lower-case letters")
    assert written(lonely_cli.folder) == [
        ".claude/agents/reviewer.md",
        ".claude/agents/writer.md",
        ".claude/claude.json",
    ]


def test_a_name_that_is_taken_is_refused(lonely_cli: Any) -> None:
    lonely_cli("new-backend", "redis").assert_refused("'redis' is taken by claude-force-cache", "choose another")


def test_a_folder_in_use_is_left_alone(lonely_cli: Any) -> None:
    before = written(lonely_cli.folder)
    lonely_cli("new-backend", "jar", "--dir", ".").assert_refused("not empty", "--dir")
    lonely_cli("new-backend", "jar", "--dir", ".claude/claude.json").assert_refused("not a folder", "--dir")
    lonely_cli("new-backend", "jar", "--dir", ".claude/claude.json/x").assert_refused("cannot be written", "--dir")
    assert written(lonely_cli.folder) == before
