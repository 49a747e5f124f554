"""Making a cache out of its settings."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, TypeVar, Union, overload

from ._backend import Backend, Clock, SyncBackend
from ._cache import Cache
from ._capabilities import Capabilities
from ._codecs import Codec, JSONCodec
from ._errors import IncompatibleBackendError, InvalidOptionError, InvalidURLError
from ._hidden import HiddenTable, hide
from ._plugins import load_backend, require_client
from ._secrets import Secrets
from ._settings import (
    BackendSettings,
    BackendURL,
    CacheSettings,
    Option,
    convert_options,
    parse_boolean,
    parse_duration,
    parse_size,
)
from ._threads import ThreadedBackend

__all__ = ["CORE_OPTIONS", "URL_VARIABLE", "open_cache", "resolve_source"]

V = TypeVar("V")

URL_VARIABLE = "CLAUDE_CACHE_URL"
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_TENANT = re.compile(r"[^\x00-\x1f\x7f]{0,256}\Z")


def _namespace(text: str) -> str:
    if not _NAMESPACE.match(text):
        raise ValueError("expected 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit")
    return text


def _tenant(text: str) -> str:
    if not _TENANT.match(text):
        raise ValueError("expected at most 256 characters, none a control character")
    return text


def _size_limit(text: str) -> Optional[int]:
    if text.strip().lower() == "none":
        return None
    size = parse_size(text)
    if size <= 0:
        raise ValueError("expected a size above zero, or none for no limit")
    return size


def _life(text: str) -> Optional[float]:
    if text.strip().lower() == "none":
        return None
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("expected a duration above zero, or none for no expiry")
    return seconds


def _above_zero(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("expected a duration above zero")
    return seconds


def _lease(text: str) -> float:
    seconds = parse_duration(text)
    if seconds and seconds < 1:
        raise ValueError("expected a duration of 1s and more, or 0 for no leases")
    return seconds


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share < 1:
        raise ValueError("expected a number from 0 to below 1")
    return share


CORE_OPTIONS: Tuple[Option, ...] = (
    Option("namespace", _namespace, "default", "the part of the store that belongs to this cache"),
    Option("tenant", _tenant, "", "whose entries these are; tenants cannot read each other's"),
    Option("max_bytes", _size_limit, 100 * 1024 * 1024, "the hard limit of the namespace, such as 100MB, or none"),
    Option("ttl", _life, 24 * 3600.0, "how long an entry lives, such as 24h, or none for ever"),
    Option("ttl_jitter", _share, 0.0, "the share of the life by which it may be shorter, at random"),
    Option("encrypt", parse_boolean, False, "seal with AES-256-GCM instead of HMAC-SHA256"),
    Option("compress", parse_boolean, True, "compress values of 512 bytes and more with zstd"),
    Option(
        "tier_bytes",
        parse_size,
        None,
        "the in-process tier's limit; 16MiB, for memory:// 0, which means none",
    ),
    Option("tier_ttl", _above_zero, 60.0, "how long the in-process tier may not notice what other processes do"),
    Option(
        "timeout",
        _above_zero,
        0.25,
        "seconds that a look-up may cost; a store may cost 4 times that",
    ),
    Option(
        "lease",
        _lease,
        6.0,
        "how long other processes wait for one that makes a value and gives no sign of life; 0: all make their own",
    ),
)
"""The options that every cache has, in URLs, tables and as arguments of :func:`open_cache`."""


def resolve_source(
    source: Union[str, Mapping[str, object], None],
    default: Union[str, Mapping[str, object]],
    environ: Mapping[str, str] = os.environ,
) -> Tuple[Union[str, Mapping[str, object]], str]:
    """Return the URL or table that is in force, and where it comes from.

    :returns: the origin is ``argument``, ``CLAUDE_CACHE_URL`` or ``default``.
    """
    environ = hide(environ)
    if source is not None:
        return source, "argument"
    if environ.get(URL_VARIABLE):
        return environ[URL_VARIABLE], URL_VARIABLE
    return default, "default"


@overload
def open_cache(
    source: Union[str, Mapping[str, object], Backend, SyncBackend, None] = ...,
    *,
    codec: Codec[V],
    default: Union[str, Mapping[str, object]] = ...,
    secrets: Union[str, bytes, Sequence[Union[str, bytes]], None] = ...,
    clock: Optional[Clock] = ...,
    **options: object,
) -> Cache[V]: ...


@overload
def open_cache(
    source: Union[str, Mapping[str, object], Backend, SyncBackend, None] = ...,
    *,
    codec: None = ...,
    default: Union[str, Mapping[str, object]] = ...,
    secrets: Union[str, bytes, Sequence[Union[str, bytes]], None] = ...,
    clock: Optional[Clock] = ...,
    **options: object,
) -> Cache[Any]: ...


def open_cache(
    source: Union[str, Mapping[str, object], Backend, SyncBackend, None] = None,
    *,
    codec: Optional[Codec[Any]] = None,
    default: Union[str, Mapping[str, object]] = "disk://",
    secrets: Union[str, bytes, Sequence[Union[str, bytes]], None] = None,
    clock: Optional[Clock] = None,
    **options: object,
) -> Cache[Any]:
    """Return a cache on the backend that ``source`` chooses. Reads the environment, and nothing else yet.

    :param source: a URL, ``redis://host/0?namespace=team&max_bytes=1GB``, or a table that says the same,
        ``{"backend": "redis", "options": {"host": "host", "path": "/0", "max_bytes": "1GB"}}`` or
        ``{"url": "redis://host/0", "options": {"max_bytes": "1GB"}}``. Without it, ``CLAUDE_CACHE_URL`` is
        used, and without that ``default``. Or a backend that was made and not opened yet: it has its own
        limit and clock, ``max_bytes`` is no option then, and the cache opens and closes it.
    :param codec: how values become bytes; :class:`JSONCodec` by default.
    :param secrets: the secret that entries are sealed with, or several, the first for new entries. Without it
        ``CLAUDE_CACHE_SECRET``; without that, where the store allows it, this machine's own.
    :param clock: where the cache and its backend read the time from, for tests.
    :param options: any of :data:`CORE_OPTIONS` and of the backend's options; they override the source's.
    :raises ConfigurationError: of the kind that tells what is wrong; see the tree of errors.
    """
    # The names that a traceback with local variables shows are bound to what does not show itself.
    source, options, secrets = hide(source), HiddenTable(options), hide(secrets)
    arguments: Dict[str, Any] = {
        "codec": JSONCodec() if codec is None else codec,
        "secrets": Secrets.given(secrets) if secrets is not None else Secrets.from_environment(os.environ),
        **({} if clock is None else {"clock": clock}),
    }
    chosen_options = HiddenTable({name: value for name, value in options.items() if value is not None})
    if isinstance(source, (Backend, SyncBackend)):
        return _on_backend(source, chosen_options, arguments)
    chosen, _ = resolve_source(source, hide(default))
    chosen = hide(chosen)
    url, given = _read_source(chosen)
    given.update(chosen_options)

    plugin = load_backend(url.scheme)
    core_names = {option.name for option in CORE_OPTIONS}
    taken = sorted(core_names.intersection(option.name for option in plugin.options))
    if taken:
        raise IncompatibleBackendError(
            f"backend {url.scheme!r} has an option {taken[0]!r}, which every cache has already: upgrade the backend"
        )
    given = HiddenTable(given)
    everything = convert_options([*CORE_OPTIONS, *plugin.options], given, owner=f"backend {url.scheme!r}")
    require_client(url.scheme, plugin)

    core = _core_settings(everything, plugin.capabilities)
    own = {option.name: everything[option.name] for option in plugin.options}
    backend = plugin.create(
        BackendSettings(url=url, namespace=core.namespace, max_bytes=core.max_bytes, clock=clock, options=own)
    )
    shown = {option.name: "***" for option in plugin.options if option.secret and everything[option.name]}
    return Cache(
        _driven(backend),
        name=url.scheme,
        url=str(url),
        settings=core,
        options={**everything, **shown},
        **arguments,
    )


def _on_backend(
    backend: Union[Backend, SyncBackend], given: Mapping[str, object], arguments: Mapping[str, Any]
) -> Cache[Any]:
    name = type(backend).__name__
    known = [option for option in CORE_OPTIONS if option.name != "max_bytes"]
    everything = {**convert_options(known, given, owner=f"a cache on a {name}"), "max_bytes": None}
    core = _core_settings(everything, backend.capabilities)
    return Cache(_driven(backend), name=name, url=name, settings=core, options=everything, **arguments)


def _core_settings(everything: Dict[str, Any], capabilities: Capabilities) -> CacheSettings:
    """Return what is the core's among all settings, after filling in what depends on the store."""
    if everything["tier_bytes"] is None:
        everything["tier_bytes"] = 16 * 1024 * 1024 if capabilities.shared_between_processes else 0
    return CacheSettings(**{option.name: everything[option.name] for option in CORE_OPTIONS})


def _driven(backend: Union[Backend, SyncBackend]) -> Backend:
    return ThreadedBackend(backend) if isinstance(backend, SyncBackend) else backend


def _read_source(source: Union[str, Mapping[str, object]]) -> Tuple[BackendURL, Dict[str, object]]:
    if isinstance(source, str):
        url, query = BackendURL.parse(source)
        return url, HiddenTable(query)
    if not isinstance(source, Mapping):
        raise InvalidURLError(f"a cache is chosen by a URL or a table, not by a {type(source).__name__}")
    unknown = sorted(str(name) for name in source if name not in {"url", "backend", "options"})
    if unknown:
        raise InvalidOptionError(f"a cache table has no entry {unknown[0]!r}; it knows: backend, options, url")
    options = source.get("options", {})
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise InvalidOptionError("the entry 'options' of a cache table must be a table")
    if ("url" in source) == ("backend" in source):
        raise InvalidURLError("a cache table needs either 'url' or 'backend'")
    if "url" in source:
        url, query = BackendURL.parse(source["url"])  # type: ignore[arg-type]  # checked there
        return url, HiddenTable({**query, **options})
    name = source["backend"]
    if not isinstance(name, str):
        raise InvalidURLError("the entry 'backend' of a cache table must be a backend's name")
    return BackendURL.from_options(name, options)
