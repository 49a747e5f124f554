"""Real input for the demonstration: the modules of the standard library that this Python came with."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Iterator, List, NamedTuple, Sequence

__all__ = ["MAX_BYTES", "MIN_BYTES", "Question", "make_batch", "standard_modules"]

MIN_BYTES = 2_000
MAX_BYTES = 90_000

_REPEAT_EVERY = 5
_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "turtledemo",
    "site-packages",
    "dist-packages",
}


class Question(NamedTuple):
    """One task of the batch: which agent is asked, and what."""

    agent: str
    task: str


def standard_modules() -> List[Path]:
    """Return the source files of the standard library that have 2 to 90 KB and are UTF-8, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in _sources(root, depth=2) if _is_fit(path))


def make_batch(agents: Sequence[str], modules: Sequence[Path], distinct: int) -> List[Question]:
    """Return ``distinct`` different questions, and one repeat of an earlier one after every fifth.

    The modules are spread evenly over the list; agents take turns. The same arguments give the same batch.

    :raises ValueError: if there are not so many pairs of an agent and a module.
    """
    most = len(agents) * len(modules)
    if distinct > most:
        raise ValueError(f"{len(agents)} agents and {len(modules)} modules make {most} different tasks")
    step = max(1, len(modules) // distinct)
    chosen = modules[::step]
    asked: List[Question] = []
    batch: List[Question] = []
    for index in range(distinct):
        lap, position = divmod(index, len(chosen))
        asked.append(_question(agents[(position + lap) % len(agents)], chosen[position]))
        batch.append(asked[-1])
        if len(asked) % _REPEAT_EVERY == 0:
            batch.append(asked[len(asked) // 2])
    return batch


def _question(agent: str, module: Path) -> Question:
    source = module.read_text(encoding="utf-8")
    name = ".".join(module.relative_to(sysconfig.get_paths()["stdlib"]).with_suffix("").parts)
    return Question(agent, f"Here is the module `{name}`. Do your work on it.\n\n```python\n{source}\n```\n")


def _sources(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix == ".py" and path.is_file():
            yield path
        elif depth > 1 and path.name not in _SKIPPED and (path / "__init__.py").is_file():
            yield from _sources(path, depth - 1)


def _is_fit(path: Path) -> bool:
    try:
        source = path.read_bytes()
        source.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return MIN_BYTES <= len(source) <= MAX_BYTES
