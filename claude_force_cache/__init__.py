"""A cache for answers that were paid for, with backends that are chosen by one setting."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, List

if TYPE_CHECKING:
    from ._backend import Backend, Clock, Entry, EntryInfo, SyncBackend, Usage
    from ._blocking import BlockingCache
    from ._cache import Cache
    from ._capabilities import Capabilities
    from ._codecs import BytesCodec, Codec, JSONCodec
    from ._errors import (
        AccessDeniedError,
        BackendClosedError,
        BackendError,
        BackendUnavailableError,
        CacheError,
        ConfigurationError,
        DuplicateBackendError,
        EntryTooLargeError,
        ForeignStoreError,
        IncompatibleBackendError,
        InvalidKeyError,
        InvalidOptionError,
        InvalidURLError,
        InvalidValueError,
        MissingClientError,
        PartlyUnavailableError,
        SecretError,
        UnknownBackendError,
    )
    from ._events import CacheEvents
    from ._keys import Digest, KeyPart, digest
    from ._open import CORE_OPTIONS, open_cache, resolve_source
    from ._plugins import API_VERSION, GROUP, BackendInfo, BackendPlugin, hookimpl, list_backends, load_backend
    from ._results import MISSING, CacheEntry, CacheStats, Missing, StoredEntry, VerifyReport
    from ._settings import BackendSettings, BackendURL, CacheSettings, Option, parse_boolean, parse_duration, parse_size

__all__ = [
    "API_VERSION",
    "CORE_OPTIONS",
    "GROUP",
    "MISSING",
    "AccessDeniedError",
    "Backend",
    "BackendClosedError",
    "BackendError",
    "BackendInfo",
    "BackendPlugin",
    "BackendSettings",
    "BackendURL",
    "BackendUnavailableError",
    "BlockingCache",
    "BytesCodec",
    "Cache",
    "CacheEntry",
    "CacheError",
    "CacheEvents",
    "CacheSettings",
    "CacheStats",
    "Capabilities",
    "Clock",
    "Codec",
    "ConfigurationError",
    "Digest",
    "DuplicateBackendError",
    "Entry",
    "EntryInfo",
    "EntryTooLargeError",
    "ForeignStoreError",
    "IncompatibleBackendError",
    "InvalidKeyError",
    "InvalidOptionError",
    "InvalidURLError",
    "InvalidValueError",
    "JSONCodec",
    "KeyPart",
    "Missing",
    "MissingClientError",
    "Option",
    "PartlyUnavailableError",
    "SecretError",
    "StoredEntry",
    "SyncBackend",
    "UnknownBackendError",
    "Usage",
    "VerifyReport",
    "digest",
    "hookimpl",
    "list_backends",
    "load_backend",
    "open_cache",
    "parse_boolean",
    "parse_duration",
    "parse_size",
    "resolve_source",
]

# The modules that define the public names, the lightest first. They are imported when a name of theirs is asked for:
# who only reads the contract, or lists backends, is not to wait for asyncio and cryptography.
_MODULES = (
    "_errors",
    "_capabilities",
    "_results",
    "_settings",
    "_codecs",
    "_keys",
    "_plugins",
    "_backend",
    "_events",
    "_cache",
    "_open",
    "_blocking",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if name in module.__all__:
                value = globals()[name] = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
