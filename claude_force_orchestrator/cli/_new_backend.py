"""``claude-force new-backend``: the project of a backend, with every method to fill in."""

# No postponed annotations where commands are declared: Typer reads them unevaluated before Python 3.10.
import re
from pathlib import Path
from string import Template
from typing import Dict, Optional

import typer

from ._annotated import Annotated
from ._failure import CommandError

__all__ = ["new_backend"]

_SCAFFOLD = Path(__file__).with_name("scaffold")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
_LONGEST_NAME = 32
_FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    ".gitignore": "gitignore.txt",
    "src/$package/__init__.py": "init.py.txt",
    "src/$package/backend.py": "backend.py.txt",
    "tests/test_conformance.py": "test_conformance.py.txt",
    "tests/test_plugin.py": "test_plugin.py.txt",
}


def new_backend(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The scheme of its URLs, for example etcd for etcd://host.")
    ],
    folder: Annotated[
        Optional[Path],
        typer.Option("--dir", metavar="PATH", help="Where to write it. Default: ./claude-force-cache-NAME."),
    ] = None,
    blocking: Annotated[
        bool, typer.Option("--blocking", help="For a client library that blocks: plain methods, called in threads.")
    ] = False,
) -> None:
    """Write the project of a new backend: its tests run at once, and fail where code is missing."""
    _require_free(name)
    target = Path(f"claude-force-cache-{name}") if folder is None else folder
    words = _words(name, blocking)
    texts = {
        Template(path).substitute(words): Template((_SCAFFOLD / source).read_text("utf-8")).substitute(words)
        for path, source in _FILES.items()
    }
    texts[f"src/{words['package']}/py.typed"] = ""
    try:
        _write(target, texts)
    except OSError as error:
        raise CommandError(
            f"{error.filename or target} cannot be written ({error.strerror}): choose another folder with --dir"
        ) from error
    for path in texts:
        typer.echo(target / path)
    typer.echo(f"\nNext, in {target}: pip install -e '.[test]' && pytest")


def _require_free(name: str) -> None:
    from claude_force_cache import list_backends

    if not _NAME.match(name) or len(name) > _LONGEST_NAME:
        raise CommandError(
            f"{name!r} is no name for a backend: take up to {_LONGEST_NAME} lower-case letters and digits, "
            "a letter first, with single dashes between"
        )
    for info in list_backends():
        if info.name == name:
            raise CommandError(
                f"the name {name!r} is taken by {info.distribution} {info.version}, which is installed: choose another"
            )


def _words(name: str, blocking: bool) -> Dict[str, str]:
    from importlib.metadata import version

    from claude_force_cache import API_VERSION

    camel = "".join(part.capitalize() for part in name.split("-"))
    kind, iterator = ("SyncBackend", "Iterator") if blocking else ("Backend", "AsyncIterator")
    return {
        "name": name,
        "distribution": f"claude-force-cache-{name}",
        "package": f"claude_force_cache_{name.replace('-', '_')}",
        "class_name": f"{camel}Backend",
        "test_class": f"Test{camel}",
        "version": version("claude-force-cache"),
        "api_version": str(API_VERSION),
        "async_": "" if blocking else "async ",
        "kind": kind,
        "iterator": iterator,
        # In the order in which a linter wants them.
        "typing_names": ", ".join(sorted(["Hashable", "Optional", iterator])),
        "contract_names": ", ".join(sorted(["BackendSettings", "Entry", "EntryInfo", "Usage", kind])),
        "test_names": ", ".join(sorted(["BackendSettings", "BackendURL", "Clock", kind])),
    }


def _write(target: Path, texts: Dict[str, str]) -> None:
    if target.exists() and not target.is_dir():
        raise CommandError(f"{target} is not a folder: choose another with --dir")
    if target.exists() and any(target.iterdir()):
        raise CommandError(f"folder {target} is not empty, and nothing in it was changed: choose another with --dir")
    for path, text in texts.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
