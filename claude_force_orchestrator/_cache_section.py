"""The section ``cache`` of claude.json, and the choice of a cache that it takes part in."""

from __future__ import annotations

import logging
from typing import Any, FrozenSet, Mapping, Optional, Tuple, Union

from claude_force_cache import BackendURL, ConfigurationError, resolve_source

from ._errors import ConfigError, ProjectError
from ._freshness import FRESHNESS_KEYS, MOST_HOURS, Freshness
from ._project import Project
from ._validation import check_number, is_agent_name, kind_of

__all__ = ["MOST_MEGABYTES", "choose_limit", "choose_source", "own_options", "read_cache_section"]

MOST_MEGABYTES = 1024 * 1024 * 1024

_KNOWN_KEYS = frozenset(
    {
        "enabled",
        "max_size_mb",
        "exclude_agents",
        "use_integrity_check",
        "url",
        "backend",
        "options",
        *FRESHNESS_KEYS,
    }
)
_logger = logging.getLogger("claude_force_orchestrator")


def read_cache_section(project: Project) -> Mapping[str, Any]:
    """Return the section ``cache``, its values checked.

    :raises ProjectError: if one of them cannot be used.
    """
    section = project.cache
    where = f"{project.path}: cache"
    types = {
        "enabled": bool,
        "use_integrity_check": bool,
        "url": str,
        "backend": str,
        "options": dict,
        "exclude_agents": list,
    }
    for name, kind in types.items():
        value = section.get(name)
        if value is not None and not isinstance(value, kind):
            words = {bool: "true or false", str: "text", dict: "an object", list: "a list of agents"}
            raise ProjectError(f"{where}.{name} must be {words[kind]}, not {kind_of(value)}")
    if section.get("max_size_mb") is not None:
        try:
            check_number(f"{where}.max_size_mb", section["max_size_mb"], above=0, most=MOST_MEGABYTES)
        except ConfigError as error:
            raise ProjectError(str(error)) from None
    Freshness.of_table(where, section)
    for name in section.get("exclude_agents") or ():
        if not isinstance(name, str) or not is_agent_name(name):
            raise ProjectError(f"{where}.exclude_agents must list agents by name, which {name!r} is not")
    if section.get("url") is not None and section.get("backend") is not None:
        raise ProjectError(f"{where} has both 'url' and 'backend'; keep one")
    if section.get("options") is not None and section.get("url") is None and section.get("backend") is None:
        raise ProjectError(f"{where} has 'options' without 'url' or 'backend' that they belong to")
    strangers = sorted(set(section.get("exclude_agents") or ()) - project.agents.keys())
    if strangers:
        _logger.warning("%s.exclude_agents names agents that do not exist: %s", where, ", ".join(strangers))
    unknown = sorted(section.keys() - _KNOWN_KEYS)
    if unknown:
        _logger.warning("%s has keys without meaning, which are ignored: %s", where, ", ".join(unknown))
    return section


def choose_source(
    argument: Union[str, Mapping[str, object], None],
    section: Mapping[str, Any],
    project: Project,
    environ: Mapping[str, str],
) -> Tuple[Union[str, Mapping[str, object]], str]:
    """Return the URL or table in force, argument, CLAUDE_CACHE_URL, claude.json or default, and which it is.

    :raises ConfigError: if the argument is of another type.
    """
    if argument is not None and not isinstance(argument, (str, Mapping)):
        raise ConfigError(f"cache must be a URL, a table or a Cache, not a {type(argument).__name__}")
    default: Mapping[str, object] = {"backend": "disk", "options": {"path": str(project.folder / "cache")}}
    table = {name: section[name] for name in ("url", "backend", "options") if section.get(name) is not None}
    options = table.get("options")
    if table.get("backend") == "disk" and options and isinstance(options.get("path"), str):
        # Paths in claude.json are relative to it, whatever the current folder is.
        table["options"] = {**options, "path": str(project.folder / options["path"])}
    source, origin = resolve_source(argument, table or default, environ)
    return source, "claude.json" if table and origin == "default" else origin


def own_options(source: Union[str, Mapping[str, object]]) -> FrozenSet[str]:
    """Return the names of the options that the URL or table sets itself."""
    if isinstance(source, str):
        try:
            return frozenset(BackendURL.parse(source)[1])
        except ConfigurationError:
            return frozenset()  # open_cache says what is wrong with it
    options = source.get("options")
    names = frozenset(options) if isinstance(options, Mapping) else frozenset()
    url = source.get("url")
    return names | (own_options(url) if isinstance(url, str) else frozenset())


def choose_limit(
    argument: Any, section: Mapping[str, Any], *, name: str, key: str, option: str, own: FrozenSet[str]
) -> Tuple[Optional[float], str]:
    """Return a limit that overrides the cache's own, or None to leave that, and where the one in force is from.

    :raises ConfigError: if the argument cannot be used.
    """
    if argument is not None:
        most = MOST_HOURS if option == "ttl" else MOST_MEGABYTES
        return check_number(name, argument, above=0, most=most), "argument"
    if option in own:
        return None, "cache"
    value = section.get(key)
    return (None, "default") if value is None else (float(value), "claude.json")
