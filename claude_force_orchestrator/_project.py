"""Projects: claude.json, the agents that it lists, and their definitions."""

from __future__ import annotations

import difflib
import json
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Dict, Iterable, Mapping, Optional, Sequence, Tuple, Union

from claude_force_cache import Digest, digest

from ._errors import InvalidTaskError, ProjectError, UnknownAgentError
from ._freshness import FRESHNESS_KEYS, Freshness
from ._validation import check_model, is_agent_name, kind_of

__all__ = ["AgentEntry", "Definition", "Project"]

_MAX_FILE_BYTES = 4_000_000
_logger = logging.getLogger("claude_force_orchestrator")


@dataclass(frozen=True)
class AgentEntry:
    """What claude.json says of one agent.

    :param name: letters, digits, ``-`` and ``_``.
    :param file: the path of its definition, relative to claude.json.
    :param contract: the path of its contract, likewise, or None.
    :param model: the model that it asks for, or None for the default.
    :param cached: whether its answers are looked up and stored.
    :param freshness: how old its answers may be.
    """

    name: str
    file: str
    contract: Optional[str] = None
    model: Optional[str] = None
    cached: bool = True
    freshness: Freshness = field(default_factory=Freshness)


@dataclass(frozen=True)
class Definition:
    """An agent's definition as its files hold it: the system prompt.

    :param blocks: the text of the definition and, where there is one, that of the contract under a heading.
    :param digest: the digest of ``blocks``, for keys.
    """

    blocks: Tuple[str, ...]
    digest: Digest = field(repr=False)


class Project:
    """A claude.json and the files around it.

    Constructing one does no work; :meth:`load` reads claude.json, once. Agent files are read by
    :meth:`read_definition`, every time it is called.

    :ivar path: the path of claude.json, as given.
    :ivar folder: the folder that its relative paths start from.
    :ivar root: what agent files must lie in: the parent of ``folder`` if that is called ``.claude``, else ``folder``.
    :ivar agents: the agents by name, in the file's order.
    :ivar cache: the section ``cache``, or an empty mapping.
    :ivar memory: the section ``memory``, or an empty mapping.
    :ivar performance: the section ``performance``, or an empty mapping. Of its keys only ``prompt_caching`` is used.
    :ivar prices: the section ``prices`` as it stands in the file, or None; see :meth:`PriceList.of_project`.
    :ivar tracking: the section ``tracking``, or an empty mapping.
    :ivar workflows: the definitions of workflows by name, as they stand in the file; see :class:`Workflow`.
    """

    def __init__(
        self,
        path: Path,
        agents: Mapping[str, AgentEntry],
        cache: Mapping[str, Any],
        *,
        memory: Mapping[str, Any] = MappingProxyType({}),
        performance: Mapping[str, Any] = MappingProxyType({}),
        prices: Any = None,
        tracking: Mapping[str, Any] = MappingProxyType({}),
        workflows: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.path = path
        # Not resolve(): it would follow a symbolic link to claude.json away from the folder that it stands in.
        self.folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 - see above
        self.root = self.folder.parent if self.folder.name == ".claude" else self.folder
        self.agents = MappingProxyType(dict(agents))
        self.cache = MappingProxyType(dict(cache))
        self.memory = MappingProxyType(dict(memory))
        self.performance = MappingProxyType(dict(performance))
        self.prices = prices
        self.tracking = MappingProxyType(dict(tracking))
        self.workflows = MappingProxyType(dict(workflows))

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> Project:
        """Return the project that the claude.json at ``path`` describes. Reads that file, blocking.

        Keys that this package does not use are ignored.

        :raises ProjectError: if the file cannot be read, is not JSON, or a key that is used has the wrong type.
        """
        path = Path(path)
        table = _read_json(path)
        listed = table.get("agents")
        if not isinstance(listed, dict):
            raise ProjectError(f"{path}: 'agents' must be an object of agents by name, not {kind_of(listed)}")
        sections: Dict[str, Dict[str, Any]] = {}
        for name in ("cache", "memory", "performance", "tracking", "workflows"):
            section = table.get(name)
            if section is not None and not isinstance(section, dict):
                raise ProjectError(f"{path}: {name!r} must be an object, not {kind_of(section)}")
            sections[name] = section or {}
        agents = {name: _read_entry(path, name, entry) for name, entry in listed.items()}
        return cls(path, agents, prices=table.get("prices"), **sections)

    def agent(self, name: str) -> AgentEntry:
        """Return the agent's entry.

        :raises InvalidTaskError: if the name is no agent name at all.
        :raises UnknownAgentError: if there is no such agent.
        """
        if not isinstance(name, str) or not is_agent_name(name):
            shown = repr(name[:80]) if isinstance(name, str) else f"a {type(name).__name__}"
            raise InvalidTaskError(f"an agent's name consists of letters, digits, - and _, which {shown} does not")
        entry = self.agents.get(name)
        if entry is None:
            raise UnknownAgentError(name, _near(name, self.agents), len(self.agents))
        return entry

    def read_definition(self, name: str) -> Definition:
        """Return the agent's definition as its files are now. Blocks while it reads them.

        :raises UnknownAgentError: if there is no such agent.
        :raises ProjectError: if a file is missing, outside the project, not UTF-8 text, or empty.
        """
        entry = self.agent(name)
        text = self._read_text(entry.name, "file", entry.file)
        if not text.strip():
            raise ProjectError(f"the file {entry.file!r} of agent {name!r} is empty; write its definition there")
        blocks: Tuple[str, ...] = (text,)
        if entry.contract is not None:
            contract = self._read_text(entry.name, "contract", entry.contract)
            if contract.strip():
                blocks = (text, f"# Contract\n\nThe contract that you work under:\n\n{contract}")
        return Definition(blocks, digest(blocks))

    def _read_text(self, name: str, role: str, given: str) -> str:
        what = f"the {role} {given!r} of agent {name!r}"
        try:
            path = (self.folder / given).resolve(strict=True)
            # Symbolic links are followed before the comparison, so one that leads out of the project is outside.
            if os.path.commonpath((path, self.root.resolve())) != str(self.root.resolve()):
                raise ProjectError(f"{what} lies outside the project {str(self.root)!r}; move it inside")
            if not path.is_file():
                raise ProjectError(f"{what} is not a file")
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ProjectError(f"{what} is larger than {_MAX_FILE_BYTES:,} bytes, more than a prompt can hold")
            return path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ProjectError(f"{what} does not exist in {str(self.folder)!r}") from None
        except UnicodeDecodeError as error:
            raise ProjectError(f"{what} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
        except (OSError, ValueError, RuntimeError) as error:
            # ValueError: a NUL in the path, or another drive; RuntimeError: a loop of links, before Python 3.13.
            if isinstance(error, ProjectError):
                raise
            raise ProjectError(f"{what} cannot be read: {_reason(error)}") from None


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        text = _read_regular(path)
        table = None if text is None else json.loads(text)
    except FileNotFoundError:
        raise ProjectError(f"there is no {str(path)!r}; give the path of the project's claude.json") from None
    except IsADirectoryError:
        raise ProjectError(f"{str(path)!r} is a folder; give the path of the claude.json in it") from None
    except json.JSONDecodeError as error:
        raise ProjectError(
            f"{str(path)!r} is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except UnicodeDecodeError as error:
        raise ProjectError(f"{str(path)!r} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except RecursionError:
        raise ProjectError(f"{str(path)!r} is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ProjectError(f"{str(path)!r} cannot be read: {_reason(error)}") from None
    if text is None:
        raise ProjectError(f"{str(path)!r} is not a file; give the path of the project's claude.json")
    if not isinstance(table, dict):
        raise ProjectError(f"{str(path)!r} must hold a JSON object, not {kind_of(table)}")
    return table


def _read_regular(path: Path) -> Optional[str]:
    """Return a file's text, or None for a pipe or a device, which may never end."""
    mode = path.stat().st_mode
    return path.read_text(encoding="utf-8-sig") if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None


def _read_entry(path: Path, name: str, entry: object) -> AgentEntry:
    where = f"{path}: agent {name[:80]!r}"
    if not is_agent_name(name):
        raise ProjectError(f"{where}: a name consists of letters, digits, - and _")
    if not isinstance(entry, dict):
        raise ProjectError(f"{where} must be an object with 'file', not {kind_of(entry)}")
    file, contract, model = entry.get("file"), entry.get("contract"), entry.get("model")
    if not isinstance(file, str) or not file:
        raise ProjectError(f"{where}: 'file' must be the path of its definition, not {kind_of(file)}")
    if contract is not None and (not isinstance(contract, str) or not contract):
        raise ProjectError(f"{where}: 'contract' must be a path, not {kind_of(contract)}")
    if model is not None:
        try:
            check_model(model)
        except InvalidTaskError as error:
            raise ProjectError(f"{where}: {error}") from None
    cached, freshness = _read_agent_cache(where, entry.get("cache"))
    return AgentEntry(name, file, contract, model, cached, freshness)


def _read_agent_cache(where: str, section: object) -> Tuple[bool, Freshness]:
    """Return whether an agent is cached, and how fresh its answers have to be."""
    if section is None:
        return True, Freshness()
    if not isinstance(section, dict):
        raise ProjectError(f"{where}: 'cache' must be an object, not {kind_of(section)}")
    enabled = section.get("enabled")
    if enabled is not None and not isinstance(enabled, bool):
        raise ProjectError(f"{where}: cache.enabled must be true or false, not {kind_of(enabled)}")
    unknown = sorted(section.keys() - {"enabled", *FRESHNESS_KEYS})
    if unknown:
        _logger.warning("%s: cache has keys without meaning, which are ignored: %s", where, ", ".join(unknown))
    return enabled is not False, Freshness.of_table(f"{where}: cache", section)


def _near(name: str, known: Iterable[str]) -> Sequence[str]:
    by_folded: Dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.lower(), candidate)
    return [by_folded[match] for match in difflib.get_close_matches(name.lower(), by_folded, n=3)]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
