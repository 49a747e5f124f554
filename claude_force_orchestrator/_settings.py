"""Settings: what is in force, out of arguments, the environment and claude.json, and where each came from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Mapping, Optional, Tuple, Union
from urllib.parse import urlsplit

from claude_force_cache import Cache, open_cache

from ._answer import Answer, AnswerCodec, check_codec
from ._budget import Budget
from ._cache_section import choose_limit, choose_source, own_options, read_cache_section
from ._errors import ConfigError
from ._freshness import Freshness
from ._memory import MemorySettings
from ._options import SuspicionPolicy
from ._project import Project
from ._tracking import TrackingSettings
from ._validation import check_number, check_whole

__all__ = [
    "DEFAULT_BASE_URL",
    "DEFAULT_MODEL",
    "CacheArgument",
    "Setting",
    "Settings",
    "check_api_key",
    "check_base_url",
    "check_deadline",
]

DEFAULT_MODEL = "claude-haiku-5-5"
"""The model of agents that name none."""

DEFAULT_BASE_URL = "https://api.anthropic.com"

CacheArgument = Union[None, str, Mapping[str, object], Cache[Answer]]

_MEGABYTE = 1024 * 1024
_MOST_SECONDS = 24 * 3600.0
_MAX_CONCURRENT = 10
_TIMEOUT_SECONDS = 30.0
_MAX_RETRIES = 3
_POLICIES = ("report", "refuse")


@dataclass(frozen=True)
class Setting:
    """One effective setting.

    :param name: its name, as the constructor calls it.
    :param value: its value, fit to be shown: secrets are masked.
    :param origin: ``argument``, the environment variable, ``claude.json``, ``cache`` for what the cache's own URL
        or table says, or ``default``.
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
    :param deadline_seconds: the bound of each execution, in seconds, or None.
    :param raise_errors: whether ``execute_agent`` raises errors instead of returning them.
    :param enable_cache: whether answers are looked up and stored.
    :param tracking: where executions are recorded, if they are.
    :param memory: what agents remember.
    :param cache: a Cache made by the caller, or None.
    :param cache_source: the URL or table of the cache to make, where ``cache`` is None.
    :param cache_options: what overrides the options in ``cache_source``.
    :param freshness: how old answers may be, where neither a call nor its agent says so.
    :param exclude_agents: agents whose answers are neither looked up nor stored.
    :param on_suspicion: what to do about suspicious text.
    :param budget: what may be spent.
    :param prompt_caching: whether definitions are marked for the API's own prompt cache where that pays.
    :param origins: where each setting came from.
    """

    project: Project
    api_key: Optional[str] = field(repr=False)
    base_url: str
    max_concurrent: int
    timeout_seconds: float
    max_retries: int
    deadline_seconds: Optional[float]
    raise_errors: bool
    enable_cache: bool
    tracking: TrackingSettings
    memory: MemorySettings
    cache: Optional[Cache[Answer]] = field(repr=False)
    cache_source: Union[str, Mapping[str, object]] = field(repr=False)
    cache_options: Mapping[str, object]
    freshness: Freshness
    exclude_agents: FrozenSet[str]
    on_suspicion: SuspicionPolicy
    budget: Budget
    prompt_caching: bool
    origins: Mapping[str, str] = field(repr=False)

    @classmethod
    def resolve(
        cls,
        config_path: Union[str, os.PathLike[str], Project] = Path(".claude/claude.json"),
        *,
        api_key: Optional[str] = None,
        base_url: Optional[str] = None,
        max_concurrent: int = _MAX_CONCURRENT,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        max_retries: int = _MAX_RETRIES,
        deadline_seconds: Optional[float] = None,
        raise_errors: bool = False,
        enable_cache: Optional[bool] = None,
        cache_ttl_hours: Optional[float] = None,
        cache_max_size_mb: Optional[float] = None,
        enable_tracking: Optional[bool] = None,
        enable_memory: Optional[bool] = None,
        cache: CacheArgument = None,
        on_suspicion: SuspicionPolicy = "report",
        max_usd: Union[float, Budget, None] = None,
        prompt_caching: Optional[bool] = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Settings:
        """Return the settings that are in force. Reads claude.json, blocking; opens nothing.

        :raises ProjectError: if claude.json cannot be used.
        :raises ConfigError: if an argument or a variable of the environment cannot be used.
        """
        project = config_path if isinstance(config_path, Project) else Project.load(config_path)
        section = read_cache_section(project)
        memory = MemorySettings.of_project(project, enabled=enable_memory)
        tracking = TrackingSettings.of_project(project, enabled=enable_tracking)
        origins: Dict[str, str] = {"project": "argument"}
        for name, value, default in (
            ("max_concurrent", max_concurrent, _MAX_CONCURRENT),
            ("timeout_seconds", timeout_seconds, _TIMEOUT_SECONDS),
            ("max_retries", max_retries, _MAX_RETRIES),
            ("deadline_seconds", deadline_seconds, None),
            ("raise_errors", raise_errors, False),
            ("on_suspicion", on_suspicion, "report"),
            ("max_usd", max_usd, None),
        ):
            origins[name] = "default" if value == default else "argument"
        key, origins["api_key"] = _first(
            (api_key, "argument"), (environ.get("ANTHROPIC_API_KEY") or None, "ANTHROPIC_API_KEY")
        )
        url, origins["base_url"] = _first(
            (base_url, "argument"),
            (environ.get("ANTHROPIC_BASE_URL") or None, "ANTHROPIC_BASE_URL"),
            (DEFAULT_BASE_URL, "default"),
        )
        enabled, origins["enable_cache"] = _first(
            (enable_cache, "argument"), (section.get("enabled"), "claude.json"), (True, "default")
        )
        remember, origins["enable_memory"] = _first(
            (enable_memory, "argument"), (project.memory.get("enabled"), "claude.json"), (False, "default")
        )
        track, origins["enable_tracking"] = _first(
            (enable_tracking, "argument"), (project.tracking.get("enabled"), "claude.json"), (True, "default")
        )
        mark, origins["prompt_caching"] = _first(
            (prompt_caching, "argument"), (project.performance.get("prompt_caching"), "claude.json"), (True, "default")
        )
        for name, value in (
            ("prompt_caching", mark),
            ("enable_tracking", track),
            ("enable_memory", remember),
            ("enable_cache", enabled),
            ("raise_errors", raise_errors),
        ):
            if not isinstance(value, bool):
                raise ConfigError(f"{name} must be True or False, not {value!r}")
        if on_suspicion not in _POLICIES:
            raise ConfigError(f"on_suspicion must be {' or '.join(_POLICIES)}, not {on_suspicion!r:.80}")
        made = cache if isinstance(cache, Cache) else None
        source: Union[str, Mapping[str, object]]
        if made is not None and cache_max_size_mb is not None:
            raise ConfigError("cache_max_size_mb cannot change a Cache that is made already; set max_bytes there")
        if isinstance(cache, Cache):
            check_codec(cache)
            source, origins["cache"] = cache.url, "argument"
        else:
            source, origins["cache"] = choose_source(cache, section, project, environ)
        # The options of a cache that is made already are its own; those of one to be made may be overridden.
        own = frozenset(("ttl", "max_bytes")) if made is not None else own_options(source)
        hours, origins["cache_ttl_hours"] = choose_limit(
            cache_ttl_hours, section, name="cache_ttl_hours", key="ttl_hours", option="ttl", own=own
        )
        megabytes, origins["cache_max_size_mb"] = choose_limit(
            cache_max_size_mb, section, name="cache_max_size_mb", key="max_size_mb", option="max_bytes", own=own
        )
        options: Dict[str, object] = {}
        if hours is not None:
            options["ttl"] = hours * 3600
        if megabytes is not None:
            options["max_bytes"] = int(megabytes * _MEGABYTE)
        freshness = Freshness.of_table(f"{project.path}: cache", section)
        for name, value in asdict(freshness).items():
            origins[name] = "default" if value is None else "claude.json"
        # The life of a cache that is made here is the cache's own; one that is made already is told with each answer.
        freshness = replace(freshness, ttl_hours=hours if made is not None else None)
        excluded = frozenset(section.get("exclude_agents") or ())
        excluded |= {agent.name for agent in project.agents.values() if not agent.cached}
        origins["exclude_agents"] = "claude.json" if excluded else "default"
        return cls(
            project=project,
            api_key=check_api_key(key),
            base_url=check_base_url(url),
            max_concurrent=check_whole("max_concurrent", max_concurrent, least=1),
            timeout_seconds=check_number("timeout_seconds", timeout_seconds, above=0, most=_MOST_SECONDS),
            max_retries=check_whole("max_retries", max_retries, least=0),
            deadline_seconds=check_deadline(deadline_seconds),
            raise_errors=raise_errors,
            enable_cache=enabled,
            tracking=tracking,
            memory=memory,
            cache=made,
            cache_source=source,
            cache_options=options,
            freshness=freshness,
            exclude_agents=excluded,
            on_suspicion=on_suspicion,
            budget=max_usd if isinstance(max_usd, Budget) else Budget(max_usd),
            prompt_caching=mark,
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
        ttl, hours = cache.settings.ttl, self.freshness.ttl_hours
        if hours is None and ttl is not None:
            hours = ttl / 3600
        size = cache.settings.max_bytes
        values: Dict[str, Any] = {
            "project": str(self.project.path),
            "api_key": "***" if self.api_key else None,
            "base_url": _masked(self.base_url),
            "max_concurrent": self.max_concurrent,
            "timeout_seconds": self.timeout_seconds,
            "max_retries": self.max_retries,
            "deadline_seconds": self.deadline_seconds,
            "raise_errors": self.raise_errors,
            "enable_tracking": self.tracking.enabled,
            "enable_memory": self.memory.enabled,
            "enable_cache": self.enable_cache,
            "cache": cache.url,
            "cache_ttl_hours": hours,
            "cache_max_size_mb": None if size is None else size / _MEGABYTE,
            "max_age_hours": self.freshness.max_age_hours,
            "stale_while_revalidate_hours": self.freshness.stale_while_revalidate_hours or 0.0,
            "stale_if_error_hours": self.freshness.stale_if_error_hours or 0.0,
            "refresh_ahead": self.freshness.refresh_ahead or 0.0,
            "variants": self.freshness.variants or 1,
            "exclude_agents": sorted(self.exclude_agents),
            "on_suspicion": self.on_suspicion,
            "max_usd": self.budget.max_usd,
            "prompt_caching": self.prompt_caching,
        }
        return tuple(Setting(name, value, self.origins[name]) for name, value in values.items())


def check_deadline(deadline_seconds: Optional[float]) -> Optional[float]:
    """Return the bound of an execution in seconds, or None for none.

    :raises ConfigError: if it is not a number above 0, or longer than a day.
    """
    if deadline_seconds is None:
        return None
    return check_number("deadline_seconds", deadline_seconds, above=0, most=_MOST_SECONDS)


def check_api_key(api_key: Optional[str]) -> Optional[str]:
    """Return a key that can be sent, or None for none.

    :raises ConfigError: if it is not printable ASCII without blanks: libraries below quote such a key in errors.
    """
    if api_key is not None and (
        not isinstance(api_key, str)
        or not api_key.isascii()
        or not api_key.isprintable()
        or not api_key
        or " " in api_key
    ):
        raise ConfigError("api_key is empty, or holds blanks, line ends or letters that no key has; copy it anew")
    return api_key


def check_base_url(base_url: str) -> str:
    """Return the URL of a Messages API without a slash at the end.

    :raises ConfigError: if it is no http or https URL. The message never quotes a login.
    """
    remedy = "expected https://host or http://host:port/path"
    if not isinstance(base_url, str) or not base_url.isprintable() or any(map(str.isspace, base_url)):
        raise ConfigError(f"base_url is malformed; {remedy}")
    try:
        parts = urlsplit(base_url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ConfigError(f"base_url {_masked(base_url)!r} is malformed; {remedy}")
    return base_url.rstrip("/")


def _masked(url: str) -> str:
    head, separator, rest = url.partition("://")
    login, at, host = rest.partition("?")[0].rpartition("@")
    return f"{head}{separator}{'***@' if at else ''}{host}" if separator or not login else "***"


def _first(*candidates: Tuple[Any, str]) -> Tuple[Any, str]:
    """Return the first candidate that has a value, or else nothing by default."""
    return next((candidate for candidate in candidates if candidate[0] is not None), (None, "default"))
