"""claude.json and the files that it names: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from claude_force_orchestrator import AsyncAgentOrchestrator, InvalidTaskError, Project, ProjectError, UnknownAgentError


def test_agents_are_read_in_order_and_unused_keys_are_ignored(config: Path, edit: Any) -> None:
    edit(skills_integration={"x": 1}, paths={}, rules=None, whatever=[1])
    project = Project.load(config)
    assert list(project.agents) == ["code-reviewer", "doc_writer"]
    assert project.agents["doc_writer"].contract == "contracts/writer.contract"
    assert (project.folder, project.root) == (config.parent, config.parent.parent)


def test_the_path_may_be_text_and_relative(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent.parent)
    assert Project.load(".claude/claude.json").read_definition("code-reviewer").blocks


@pytest.mark.parametrize("prefix", ["\ufeff", ""])
def test_a_byte_order_mark_is_no_part_of_a_file(config: Path, prefix: str) -> None:
    for path in (config, config.parent / "agents" / "reviewer.md"):
        path.write_text(prefix + path.read_text())
    assert Project.load(config).read_definition("code-reviewer").blocks[0].startswith("# Code reviewer")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "(line 1, column 2)"),
        ('{\n  "agents": {}\n  x}', "(line 3, column 3)"),
        ("", "(line 1, column 1)"),
        ("[]", "a JSON object, not a list"),
        ("7", "not a number"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "'agents' must be an object"),
        ('{"agents": []}', "'agents' must be an object of agents by name, not a list"),
        ('{"agents": {"a b": {"file": "x"}}}', "agent 'a b': a name consists of"),
        ('{"agents": {"a\\n": {"file": "x"}}}', "agent 'a\\n': a name consists of"),
        ('{"agents": {"": {"file": "x"}}}', "a name consists of"),
        ('{"agents": {"a": "x.md"}}', "must be an object with 'file', not text"),
        ('{"agents": {"a": {}}}', "'file' must be the path of its definition, not null or absent"),
        ('{"agents": {"a": {"file": ""}}}', "not empty text"),
        ('{"agents": {"a": {"file": 7}}}', "not a number"),
        ('{"agents": {"a": {"file": "x", "contract": true}}}', "'contract' must be a path, not a boolean"),
        ('{"agents": {"a": {"file": "x", "model": ""}}}', "a model's id"),
        ('{"agents": {"a": {"file": "x", "model": 5}}}', "a model is the id of one"),
        ('{"agents": {}, "cache": []}', "'cache' must be an object, not a list"),
    ],
)
def test_a_claude_json_that_cannot_be_used_is_one_line_about_where(config: Path, text: str, part: str) -> None:
    config.write_text(text)
    with pytest.raises(ProjectError) as caught:
        AsyncAgentOrchestrator(config)
    message = str(caught.value)
    assert part in message
    assert str(config) in message
    assert "\n" not in message


def test_a_claude_json_that_cannot_be_read_is_one_line_about_why(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, part in (
        (tmp_path / "none.json", "there is no"),
        (tmp_path, "is a folder"),
        (tmp_path / "a\0b", "cannot be read"),
        (Path(os.devnull), "is not a file"),
        (pipe, "is not a file"),
    ):
        with pytest.raises(ProjectError, match=part):
            Project.load(path)
    latin = tmp_path / "latin.json"
    latin.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ProjectError, match="not UTF-8 text"):
        Project.load(latin)


def _agent(tmp_path: Path, entry: Any, *, folder: str = ".claude") -> Project:
    path = tmp_path / "p" / folder / "claude.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"agents": {"a": entry}}))
    return Project.load(path)


@pytest.mark.parametrize("file", ["../../outside.md", "link.md", "linked/outside.md", "{absolute}"])
def test_a_file_outside_the_project_is_not_read(tmp_path: Path, file: str) -> None:
    outside = tmp_path / "outside.md"
    outside.write_text("a secret")
    project = _agent(tmp_path, {"file": file.format(absolute=outside)})
    (project.folder / "link.md").symlink_to(outside)
    (project.folder / "linked").symlink_to(tmp_path)
    with pytest.raises(ProjectError, match="outside the project"):
        project.read_definition("a")


@pytest.mark.parametrize(("folder", "inside"), [(".claude", True), ("config", False)])
def test_the_project_is_the_parent_of_a_folder_called_claude_only(tmp_path: Path, folder: str, inside: bool) -> None:
    project = _agent(tmp_path, {"file": "../shared.md"}, folder=folder)
    (tmp_path / "p" / "shared.md").write_text("shared")
    if inside:
        assert project.read_definition("a").blocks == ("shared",)
    else:
        with pytest.raises(ProjectError, match="outside"):
            project.read_definition("a")


def test_a_link_inside_the_project_is_followed(tmp_path: Path) -> None:
    project = _agent(tmp_path, {"file": "link.md"})
    (project.folder / "real.md").write_text("real")
    (project.folder / "link.md").symlink_to("real.md")
    assert project.read_definition("a").blocks == ("real",)


@pytest.mark.parametrize("role", ["file", "contract"])
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("none.md", "does not exist"),
        ("folder", "is not a file"),
        ("fifo", "is not a file"),
        ("loop.md", "cannot be read|does not exist"),
        ("latin.md", "not UTF-8 text"),
        ("nul\0.md", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("huge.md", "larger than"),
    ],
    ids=lambda value: str(value)[:10],
)
def test_a_file_that_cannot_be_used_is_one_line_about_why(tmp_path: Path, role: str, name: str, part: str) -> None:
    project = _agent(tmp_path, {"file": "good.md", role: name})
    folder = project.folder
    (folder / "good.md").write_text("good")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop.md").symlink_to("loop.md")
    (folder / "latin.md").write_bytes(b"\xe9")
    (folder / "huge.md").write_text("x" * 4_000_001)
    with pytest.raises(ProjectError, match=part) as caught:
        project.read_definition("a")
    assert f"the {role} " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_definition_is_an_error_and_an_empty_contract_is_none(tmp_path: Path) -> None:
    project = _agent(tmp_path, {"file": "a.md", "contract": "c.md"})
    (project.folder / "c.md").write_text(" \n")
    (project.folder / "a.md").write_text("\n")
    with pytest.raises(ProjectError, match="is empty"):
        project.read_definition("a")
    (project.folder / "a.md").write_text("a")
    assert project.read_definition("a").blocks == ("a",)


def test_what_stands_in_the_definition_and_what_in_the_contract_cannot_be_exchanged(tmp_path: Path) -> None:
    project = _agent(tmp_path, {"file": "a.md", "contract": "c.md"})
    (project.folder / "a.md").write_text("a")
    (project.folder / "c.md").write_text("c")
    apart = project.read_definition("a")
    (project.folder / "a.md").write_text("".join(apart.blocks))
    (project.folder / "c.md").write_text("")
    assert project.read_definition("a").digest != apart.digest


def test_names_are_checked_before_they_are_looked_up(config: Path) -> None:
    project = Project.load(config)
    for name in ("code-reviewer\n", "../x", ""):
        with pytest.raises(InvalidTaskError):
            project.agent(name)
    with pytest.raises(UnknownAgentError, match="among the 2"):
        project.agent("zzz")
    for name in ("doc-writer", "DOC-WRITER"):
        with pytest.raises(UnknownAgentError, match="did you mean 'doc_writer'"):
            project.read_definition(name)


def test_an_agents_own_model_is_asked_unless_the_caller_names_one(run: Any, api: Any, edit: Any) -> None:
    edit(agents={"a": {"file": "agents/reviewer.md", "model": "claude-opus-5"}})

    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("a", "x")
        await it.execute_agent("a", "x", "claude-sonnet-5")

    run(ask)
    assert [request["body"]["model"] for request in api.requests] == ["claude-opus-5", "claude-sonnet-5"]
