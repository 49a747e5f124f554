"""Write the pages of docs/reference/ out of docstrings, option tables and the command line's own help.

python scripts/generate_reference.py           write the pages
python scripts/generate_reference.py --check   exit 1 and name the pages that are out of date
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from typer.main import get_command

import claude_force_cache
import claude_force_cache.testing
import claude_force_orchestrator
from claude_force_cache import CORE_OPTIONS, Option, list_backends, load_backend
from claude_force_cache.testing import CHECKS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
OURS = "claude-force-cache"
NOTE = "<!-- Made by scripts/generate_reference.py: change the docstrings, not this page. -->\n"

CONTRACT = ("Backend", "SyncBackend", "Entry", "EntryInfo", "Usage", "Capabilities")
PLUGIN = ("BackendPlugin", "BackendSettings", "BackendURL", "Option", "hookimpl", "parse_size", "parse_duration")


def pages() -> Dict[str, str]:
    """Return the text of every page by its file name."""
    core, agents, kit = claude_force_cache, claude_force_orchestrator, claude_force_cache.testing
    contract = [*CONTRACT, *PLUGIN, "parse_boolean", "list_backends", "load_backend", "API_VERSION", "GROUP"]
    rest = [name for name in core.__all__ if name not in contract]
    return {
        "backend-contract.md": "\n".join(
            [
                "# The backend contract\n",
                NOTE,
                prose(inspect.getdoc(sys.modules[core.Backend.__module__]) or ""),
                *members(core, CONTRACT),
                "## What a plugin is made of\n",
                *members(core, [name for name in contract if name not in CONTRACT]),
            ]
        ),
        "conformance-kit.md": "\n".join(
            [
                "# The conformance kit\n",
                NOTE,
                prose(inspect.getdoc(kit) or ""),
                *members(kit, [name for name in kit.__all__ if name != "CHECKS"]),
                "## The checks\n",
                "Each is the test method `test_` and its name of `BackendConformance`.\n",
                "\n".join(["| check | rule |", "|---|---|", *(f"| `{c.name}` | {c.rule} |" for c in CHECKS.values())]),
            ]
        ),
        "python.md": "\n".join(
            [
                "# Python\n",
                NOTE,
                "# `claude_force_cache`\n",
                *members(core, [name for name in rest if not is_error(core, name)]),
                "## Errors\n",
                prose(inspect.getdoc(sys.modules[core.CacheError.__module__]) or ""),
                "# `claude_force_orchestrator`\n",
                *members(agents, [name for name in agents.__all__ if not is_error(agents, name)]),
                "## Errors of the orchestrator\n",
                prose(inspect.getdoc(sys.modules[agents.OrchestratorError.__module__]) or ""),
            ]
        ),
        "settings.md": "\n".join(["# Settings\n", NOTE, *settings()]),
        "command-line.md": "\n".join(["# Command line\n", NOTE, *command_line()]),
    }


def is_error(module: Any, name: str) -> bool:
    """Return whether a public name is an exception."""
    value = getattr(module, name)
    return inspect.isclass(value) and issubclass(value, Exception)


def members(module: Any, names: Iterable[str]) -> Iterator[str]:
    """Return the sections on public names."""
    for name in sorted(names, key=lambda each: (each[0].isupper() and each.isupper(), each.lower())):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from on_class(name, value)
        elif callable(value) and inspect.getdoc(value) and hasattr(value, "__name__"):
            yield f"## `{name}{signature(value)}`\n"
            yield prose(inspect.getdoc(value) or "")
        else:
            yield from on_constant(module, name, value)


def on_constant(module: Any, name: str, value: object) -> Iterator[str]:
    """Return the section on a constant, with the text that stands below it in its module."""
    for candidate in list(sys.modules.values()):
        if not getattr(candidate, "__name__", "").startswith(module.__name__) or name not in vars(candidate):
            continue
        try:
            source = inspect.getsource(candidate)
        except (OSError, TypeError):
            continue
        found = re.search(rf"^{name}\b.*?^\"\"\"(.*?)\"\"\"", source, re.MULTILINE | re.DOTALL)
        if found and "\n\n\n" not in found.group(0):
            shown = f" = {value!r}" if isinstance(value, (int, float, str)) else ""
            yield f"## `{name}{shown}`\n"
            yield prose(found.group(1))
            return


def on_class(name: str, value: type) -> Iterator[str]:
    """Return the section on a class and its public methods."""
    shown = signature(value) if is_dataclass(value) or "__init__" in vars(value) else ""
    yield f"## `{name}{shown}`\n"
    yield prose(inspect.getdoc(value) or "")
    for attribute, annotation, text in attributes(value):
        yield f"### `{name}.{attribute}: {annotation}`\n"
        yield prose(text)
    for method, raw in vars(value).items():
        if method.startswith(("_", "test_")):
            continue
        function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        if isinstance(function, property):
            yield f"### `{name}.{method}`\n"
            yield prose(inspect.getdoc(function) or "")
        elif inspect.isfunction(function):
            kind = "async " if is_async(function) else ""
            yield f"### `{kind}{name}.{method}{signature(function)}`\n"
            yield prose(inspect.getdoc(function) or "")


def attributes(value: type) -> Iterator[Tuple[str, str, str]]:
    """Return name, type and text of the attributes of a class that have a text below them."""
    if "__annotations__" not in vars(value):
        return
    source = textwrap.dedent(inspect.getsource(value))
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node, below in zip(body, body[1:]):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            annotation = ast.get_source_segment(source, node.annotation) or ""
            yield node.target.id, annotation, inspect.cleandoc(str(below.value.value))


def is_async(function: Any) -> bool:
    """Return whether calling the function gives something to await or to iterate over asynchronously."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def signature(value: Any) -> str:
    """Return the parameters and the result as they stand in the source."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "()"
    parameters = [
        # Printed as it is, this default would put the variables of whoever makes the page into it.
        parameter.replace(default=_Environment()) if parameter.default is os.environ else parameter
        for parameter in found.parameters.values()
        if parameter.name not in {"self", "cls"}
    ]
    text = str(found.replace(parameters=parameters))
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>|<built-in function (\w+)>", r"\1\2", text.replace("'", ""))


class _Environment:
    def __repr__(self) -> str:
        return "os.environ"


def prose(text: str) -> str:
    """Return a docstring as Markdown: fields become lists, roles become code."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = text.replace("``", "`")
    lines: List[str] = []
    field: Optional[List[str]] = None
    for line in text.splitlines():
        start = re.match(r":(param|ivar|raises|returns?)\s*([^:]*):\s*(.*)", line)
        if start:
            kind, name, rest = start.groups()
            label = {"param": "", "ivar": "", "raises": "raises ", "return": "returns", "returns": "returns"}[kind]
            field = [f"- {label}{f'`{name}`' if name else ''}: {rest}"]
            if lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            lines += field
        elif field and line.startswith("    "):
            lines.append("  " + line.strip())
        else:
            field = None
            lines.append("" if line.strip() == "::" else re.sub(r"::$", ":", line))
    return definitions(lines).strip() + "\n"


def definitions(lines: List[str]) -> str:
    """Return the lines with a term and its indented text as a list item."""
    result: List[str] = []
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if re.match(r"[A-Z`]\S{1,24}$", line) and following.startswith("    "):
            result.append(f"- **{line}**")
        elif result and line.startswith("    ") and any(r.startswith("- **") for r in result[-6:]):
            result.append("  " + line.strip())
        else:
            result.append(line)
    return "\n".join(result)


def settings() -> Iterator[str]:
    """Return the tables of options."""
    yield "## Options of every cache\n"
    yield "In the query of a URL, in `options` of a table, or as arguments of `open_cache`."
    yield "See also [environment and claude.json](environment.md).\n"
    yield table(CORE_OPTIONS)
    for info in list_backends():
        if info.distribution != OURS:
            continue
        plugin = load_backend(info.name)
        yield f"## `{info.name}`\n"
        yield f"{plugin.summary[:1].upper()}{plugin.summary[1:]}.\n"
        yield f"URL: `{plugin.url}`\n"
        if plugin.install:
            yield f"Needs: `{plugin.install}`\n"
        if plugin.options:
            yield table(plugin.options)


def table(options: Iterable[Option]) -> str:
    """Return the Markdown table of options."""
    rows = [
        f"| `{option.name}` | {'' if option.default is None else f'`{option.default}`'} | {option.help} |"
        for option in options
    ]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows, ""])


def command_line() -> Iterator[str]:
    """Return the sections on the commands."""
    from claude_force_orchestrator.cli._app import app

    yield (
        "Exit codes: 0; 1 if a task failed or a check found something; 2 for bad usage; "
        "3 if `--max-usd` did not allow a call; 130 after Ctrl-C.\n"
    )
    yield "Answers and tables go to standard output, notes, progress and errors to standard error.\n"
    for path, command in commands(["claude-force"], get_command(app)):
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        usage = " ".join(each.name.upper() for each in arguments)
        yield f"## `{' '.join([*path, usage]).strip()}`\n"
        yield f"{' '.join((command.help or '').split())}\n"
        rows = [
            f"| `{parameter.name.upper() if parameter in arguments else spelled(parameter)}` "
            f"| {' '.join((getattr(parameter, 'help', '') or '').split())} |"
            for parameter in command.params
            if "--help" not in parameter.opts
        ]
        if rows:
            yield "\n".join(["| argument or option | meaning |", "|---|---|", *rows, ""])


def spelled(option: Any) -> str:
    """Return all ways to write an option."""
    return ", ".join([*option.opts, *option.secondary_opts])


def commands(path: List[str], command: Any) -> Iterator[Tuple[List[str], Any]]:
    """Return the commands below one, with their names."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from commands([*path, name], child)


def main(arguments: List[str]) -> int:
    """Write the pages, or check them."""
    outdated = []
    for name, text in pages().items():
        path = FOLDER / name
        tidy = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == tidy:
            continue
        outdated.append(name)
        if "--check" not in arguments:
            path.write_text(tidy, encoding="utf-8")
    if outdated and "--check" in arguments:
        print(f"out of date: {', '.join(outdated)}: run python scripts/generate_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
