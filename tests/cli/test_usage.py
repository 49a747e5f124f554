"""What the command line says about itself, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest


def test_help_names_every_command(lonely_cli: Any) -> None:
    shown = lonely_cli("--help")
    assert shown.code == 0
    for command in ("run", "map", "backends", "config", "cache", "demo"):
        assert command in shown.out


@pytest.mark.parametrize("group", [["cache"], ["config"], ["cache", "verify"], ["map"], ["demo"]])
def test_every_command_has_help(lonely_cli: Any, group: Any) -> None:
    shown = lonely_cli(*group, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert "Usage: claude-force" in shown.out


def test_no_command_shows_the_help(lonely_cli: Any) -> None:
    assert lonely_cli().out == lonely_cli("--help").out


def test_the_version_is_the_distributions(lonely_cli: Any) -> None:
    assert lonely_cli("--version").out == f"claude-force {version('claude-force-cache')}\n"


def test_the_console_script_is_this_command_line() -> None:
    points = entry_points()
    scripts = points.select(group="console_scripts") if hasattr(points, "select") else points["console_scripts"]
    assert [script.value for script in scripts if script.name == "claude-force"] == [
        "claude_force_orchestrator.cli:main"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["--fly"],
        ["cache"],
        ["cache", "fly"],
        ["run"],
        ["run", "reviewer"],
        ["run", "reviewer", "task", "more"],
        ["run", "reviewer", "task", "--max-tokens", "0"],
        ["run", "reviewer", "task", "--max-tokens", "many"],
        ["run", "reviewer", "task", "--temperature", "1.5"],
        ["cache", "ls", "--limit", "0"],
        ["demo", "--tasks", "0"],
        ["demo", "--tasks", "-3"],
        ["map", "reviewer", "tasks.jsonl", "--max-concurrent", "0"],
    ],
)
def test_wrong_usage_is_one_line_that_points_to_the_help(lonely_cli: Any, arguments: Any) -> None:
    lonely_cli(*arguments).assert_refused("see claude-force", "--help")


@pytest.mark.parametrize("library", ["typer", "rich"])
def test_a_base_install_says_how_to_get_the_command_line(library: str) -> None:
    # None in sys.modules is the interpreter's own way to say that a module is not there.
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from claude_force_orchestrator.cli import main; main(['backends'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: the command line needs the library '{library}'")
    assert "pip install 'claude-force-cache[orchestrator]'" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(lonely_cli: Any) -> None:
    process = lonely_cli.start("backends", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 141


@pytest.mark.parametrize("arguments", [["backends"], ["backends", "--json"], ["config", "show"], ["--help"]])
def test_an_output_that_cannot_be_written_is_one_line(lonely_cli: Any, arguments: Any) -> None:
    with Path("/dev/full").open("wb") as full:
        process = lonely_cli.start(*arguments, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.decode().count("\n") == 1
    assert err.decode().startswith("error: No space left on device: ")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(lonely_cli: Any, closed: str) -> None:
    lonely_cli.environment["PYTHON"] = sys.executable
    done = subprocess.run(
        ["bash", "-c", f'"$PYTHON" -m claude_force_orchestrator.cli run reviewer - --only-if-cached {closed}'],
        cwd=lonely_cli.folder,
        env=lonely_cli.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr in {b"", b"error: the task is blank; say what the agent shall do\n"}
