"""Settings: what is in force, out of arguments, the environment and claude.json, and where each came from."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Mapping, Optional, Tuple, Union
from urllib.parse import urlsplit

from claude_force_cache import BackendURL, Cache, ConfigurationError, open_cache, resolve_source

from ._answer import Answer, AnswerCodec
from ._errors import ConfigError, ProjectError
from ._project import Project
from ._validation import check_number, check_whole, is_agent_name

__all__ = ["DEFAULT_BASE_URL", "DEFAULT_MODEL", "MOST_TTL_HOURS", "CacheArgument", "Setting", "Settings"]

DEFAULT_MODEL = "claude-haiku-5-5"
"""The model of agents that name none."""

DEFAULT_BASE_URL = "https://api.anthropic.com"

CacheArgument = Union[None, str, Mapping[str, object], Cache[Answer]]

_MEGABYTE = 1024 * 1024
MOST_TTL_HOURS = 24 * 366 * 100
_MOST_MEGABYTES = 1024 * 1024 * 1024
_MOST_SECONDS = 24 * 3600.0
_KNOWN_CACHE_KEYS = frozenset(
    {
        "enabled",
        "ttl_hours",
        "max_size_mb",
        "exclude_agents",
        "use_integrity_check",
        "url",
        "backend",
        "options",
    }
)
_logger = logging.getLogger("claude_force_orchestrator")


@dataclass(frozen=True)
class Setting:
    """One effective setting.

    :param name: its name, as the constructor calls it.
    :param value: its value, fit to be shown: secrets are masked.
    :param origin: ``argument``, the environment variable, ``claude.json`` or ``default``.
    """

    name: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Settings:
    """Everything that an orchestrator goes by. Printing it shows no secret.

    :param project: the project.
    :param api_key: the key as given, or None to let the SDK find one when a call is needed.
    :param base_url: where the Messages API is.
    :param max_concurrent: how many API calls may be under way at once.
    :param timeout_seconds: the bound of each attempt, in seconds.
    :param max_retries: how many attempts may follow the first.
    :param enable_cache: whether answers are looked up and stored.
    :param enable_tracking: whether executions are recorded.
    :param cache: a Cache made by the caller, or None.
    :param cache_source: the URL or table of the cache to make, where ``cache`` is None.
    :param cache_options: what overrides the options in ``cache_source``.
    :param call_ttl: the life of stored answers in seconds, or None for that of the cache.
    :param exclude_agents: agents whose answers are neither looked up nor stored.
    :param origins: where each setting came from.
    """

    project: Project
    api_key: Optional[str] = field(repr=False)
    base_url: str
    max_concurrent: int
    timeout_seconds: float
    max_retries: int
    enable_cache: bool
    enable_tracking: bool
    cache: Optional[Cache[Answer]] = field(repr=False)
    cache_source: Union[str, Mapping[str, object]] = field(repr=False)
    cache_options: Mapping[str, object]
    call_ttl: Optional[float]
    exclude_agents: FrozenSet[str]
    origins: Mapping[str, str] = field(repr=False)

    @classmethod
    def resolve(
        cls,
        config_path: Union[str, os.PathLike[str], Project] = Path(".claude/claude.json"),
        *,
        api_key: Optional[str] = None,
        base_url: Optional[str] = None,
        max_concurrent: int = 10,
        timeout_seconds: float = 30,
        max_retries: int = 3,
        enable_cache: Optional[bool] = None,
        cache_ttl_hours: Optional[float] = None,
        cache_max_size_mb: Optional[float] = None,
        enable_tracking: bool = True,
        cache: CacheArgument = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Settings:
        """Return the settings that are in force. Reads claude.json, blocking; opens nothing.

        :raises ProjectError: if claude.json cannot be used.
        :raises ConfigError: if an argument or a variable of the environment cannot be used.
        """
        project = config_path if isinstance(config_path, Project) else Project.load(config_path)
        origins: Dict[str, str] = {"project": "argument"}
        section = _read_section(project)

        origins["api_key"] = "argument"
        if api_key is None:
            origins["api_key"] = "ANTHROPIC_API_KEY" if environ.get("ANTHROPIC_API_KEY") else "default"
            api_key = environ.get("ANTHROPIC_API_KEY") or None
        check_api_key(api_key)

        origins["base_url"] = "argument"
        if base_url is None:
            origins["base_url"] = "ANTHROPIC_BASE_URL" if environ.get("ANTHROPIC_BASE_URL") else "default"
            base_url = environ.get("ANTHROPIC_BASE_URL") or DEFAULT_BASE_URL

        enable_cache, origins["enable_cache"] = _first(
            (enable_cache, "argument"), (section.get("enabled"), "claude.json"), (True, "default")
        )
        made = cache if isinstance(cache, Cache) else None
        if made is not None and cache_max_size_mb is not None:
            raise ConfigError("cache_max_size_mb cannot change a Cache that is made already; set max_bytes there")
        source, origins["cache"] = (
            _choose_source(None if made else cache, section, project, environ)  # type: ignore[arg-type]  # not a Cache
            if made is None
            else ("", "argument")
        )
        own = _own_options(source)
        ttl, origins["cache_ttl_hours"] = _limit(
            cache_ttl_hours, section, name="cache_ttl_hours", key="ttl_hours", option="ttl", own=own
        )
        size, origins["cache_max_size_mb"] = _limit(
            cache_max_size_mb, section, name="cache_max_size_mb", key="max_size_mb", option="max_bytes", own=own
        )
        options: Dict[str, object] = {}
        if ttl is not None:
            options["ttl"] = ttl * 3600
        if size is not None:
            options["max_bytes"] = int(size * _MEGABYTE)
        for name, value in (("enable_tracking", enable_tracking), ("enable_cache", enable_cache)):
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be True or False, not {value!r}")
        origins.update(
            dict.fromkeys(("max_concurrent", "timeout_seconds", "max_retries", "enable_tracking"), "argument")
        )
        origins["exclude_agents"] = "claude.json" if section.get("exclude_agents") else "default"
        return cls(
            project=project,
            api_key=api_key,
            base_url=check_base_url(base_url),
            max_concurrent=check_whole("max_concurrent", max_concurrent, least=1),
            timeout_seconds=check_number("timeout_seconds", timeout_seconds, above=0, most=_MOST_SECONDS),
            max_retries=check_whole("max_retries", max_retries, least=0),
            enable_cache=enable_cache,
            enable_tracking=enable_tracking,
            cache=made,
            cache_source=source,
            cache_options={} if made is not None else options,
            call_ttl=None if made is None or cache_ttl_hours is None else cache_ttl_hours * 3600,
            exclude_agents=frozenset(section.get("exclude_agents") or ()),
            origins=origins,
        )

    def make_cache(self, *, clock: Optional[Callable[[], float]] = None, **options: object) -> Cache[Answer]:
        """Return the cache that the settings describe, unopened; its caller closes it.

        ``enable_cache`` is not asked: tools look into a cache that is switched off, too.

        :param options: further options, which override the settings.
        :raises claude_force_cache.ConfigurationError: if the settings do not describe a cache.
        """
        merged: Dict[str, Any] = {**self.cache_options, **options}
        return open_cache(self.cache_source, codec=AnswerCodec(), clock=clock, **merged)

    def describe(self) -> Tuple[Setting, ...]:
        """Return every setting with its origin, fit to be shown.

        :raises claude_force_cache.ConfigurationError: if the settings do not describe a cache.
        """
        cache = self.cache if self.cache is not None else self.make_cache()
        ttl = self.call_ttl if self.call_ttl is not None else cache.settings.ttl
        size = cache.settings.max_bytes
        values: Dict[str, Any] = {
            "project": str(self.project.path),
            "api_key": "***" if self.api_key else None,
            "base_url": _masked(self.base_url),
            "max_concurrent": self.max_concurrent,
            "timeout_seconds": self.timeout_seconds,
            "max_retries": self.max_retries,
            "enable_tracking": self.enable_tracking,
            "enable_cache": self.enable_cache,
            "cache": cache.url,
            "cache_ttl_hours": None if ttl is None else ttl / 3600,
            "cache_max_size_mb": None if size is None else size / _MEGABYTE,
            "exclude_agents": sorted(self.exclude_agents),
        }
        return tuple(Setting(name, value, self.origins[name]) for name, value in values.items())


def check_api_key(api_key: Optional[str]) -> None:
    """Accept a key that can be sent, and say nothing about one that cannot.

    :raises ConfigError: if it is not printable ASCII without blanks: libraries below quote such a key in errors.
    """
    if api_key is None:
        return
    if (
        not isinstance(api_key, str)
        or not api_key
        or not api_key.isascii()
        or not api_key.isprintable()
        or " " in api_key
    ):
        raise ConfigError("the API key is empty, or holds blanks, line ends or letters no key has; copy it anew")


def check_base_url(base_url: str) -> str:
    """Return the URL of a Messages API without a slash at the end.

    :raises ConfigError: if it is no http or https URL. The message never quotes a login.
    """
    remedy = "expected https://host or http://host:port/path"
    if not isinstance(base_url, str) or not base_url.isprintable() or any(map(str.isspace, base_url)):
        raise ConfigError(f"the base URL of the API is malformed; {remedy}")
    try:
        parts = urlsplit(base_url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ConfigError(f"the base URL of the API, {_masked(base_url)!r}, is malformed; {remedy}")
    return base_url.rstrip("/")


def _masked(url: str) -> str:
    head, separator, rest = url.partition("://")
    login, at, host = rest.partition("?")[0].rpartition("@")
    return f"{head}{separator}{'***@' if at else ''}{host}" if separator or not login else "***"


def _first(*candidates: Tuple[Any, str]) -> Tuple[Any, str]:
    return next(candidate for candidate in candidates if candidate[0] is not None)


def _read_section(project: Project) -> Mapping[str, Any]:
    """Return the section ``cache``, its values checked."""
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
            raise ProjectError(f"{where}.{name} must be {words[kind]}, not {value!r}")
    for name, most in (("ttl_hours", MOST_TTL_HOURS), ("max_size_mb", _MOST_MEGABYTES)):
        if section.get(name) is not None:
            try:
                check_number(f"{where}.{name}", section[name], above=0, most=most)
            except ConfigError as error:
                raise ProjectError(str(error)) from None
    for name in section.get("exclude_agents") or ():
        if not isinstance(name, str) or not is_agent_name(name):
            raise ProjectError(f"{where}.exclude_agents must list agents by name, which {name!r} is not")
    if section.get("url") is not None and section.get("backend") is not None:
        raise ProjectError(f"{where} has both 'url' and 'backend'; keep one")
    if section.get("options") is not None and section.get("url") is None and section.get("backend") is None:
        raise ProjectError(f"{where} has 'options' without 'url' or 'backend' that they belong to")
    unknown = sorted(section.keys() - _KNOWN_CACHE_KEYS)
    if unknown:
        _logger.warning("%s has keys without meaning, which are ignored: %s", where, ", ".join(unknown))
    return section


def _choose_source(
    argument: Union[str, Mapping[str, object], None],
    section: Mapping[str, Any],
    project: Project,
    environ: Mapping[str, str],
) -> Tuple[Union[str, Mapping[str, object]], str]:
    """Return the URL or table in force: argument, CLAUDE_CACHE_URL, claude.json, default."""
    if argument is not None and not isinstance(argument, (str, Mapping)):
        raise ConfigError(f"cache must be a URL, a table or a Cache, not a {type(argument).__name__}")
    default: Mapping[str, object] = {"backend": "disk", "options": {"path": str(project.folder / "cache")}}
    table = {name: section[name] for name in ("url", "backend", "options") if section.get(name) is not None}
    options = table.get("options")
    if "backend" in table and options and isinstance(options.get("path"), str) and options["path"][:1] not in {"", "/"}:
        # Paths in claude.json are relative to it, whatever the current folder is.
        table["options"] = {**options, "path": str(project.folder / options["path"])}
    source, origin = resolve_source(argument, table or default, environ)
    return source, "claude.json" if table and origin == "default" else origin


def _own_options(source: Union[str, Mapping[str, object]]) -> FrozenSet[str]:
    """Return the names of the options that the URL or table sets itself."""
    if isinstance(source, str):
        try:
            return frozenset(BackendURL.parse(source)[1])
        except ConfigurationError:
            return frozenset()  # open_cache says what is wrong with it
    options = source.get("options")
    names = frozenset(options) if isinstance(options, Mapping) else frozenset()
    url = source.get("url")
    return names | (_own_options(url) if isinstance(url, str) else frozenset())


def _limit(
    argument: Any, section: Mapping[str, Any], *, name: str, key: str, option: str, own: FrozenSet[str]
) -> Tuple[Optional[float], str]:
    """Return a limit that overrides the cache's own, or None to leave that, and where the one in force is from."""
    if argument is not None:
        most = MOST_TTL_HOURS if option == "ttl" else _MOST_MEGABYTES
        return check_number(name, argument, above=0, most=most), "argument"
    if option in own:
        return None, "cache"
    value = section.get(key)
    return (None, "default") if value is None else (float(value), "claude.json")
