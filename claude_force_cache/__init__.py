"""A cache for answers that were paid for, with backends that are chosen by one setting."""

from __future__ import annotations

from ._backend import Backend, Clock, Entry, EntryInfo, SyncBackend, Usage
from ._capabilities import Capabilities
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
    SecretError,
    UnknownBackendError,
)
from ._plugins import API_VERSION, GROUP, BackendInfo, BackendPlugin, hookimpl, list_backends, load_backend
from ._settings import BackendSettings, BackendURL, Option, parse_boolean, parse_duration, parse_size

__all__ = [
    "API_VERSION",
    "GROUP",
    "AccessDeniedError",
    "Backend",
    "BackendClosedError",
    "BackendError",
    "BackendInfo",
    "BackendPlugin",
    "BackendSettings",
    "BackendURL",
    "BackendUnavailableError",
    "CacheError",
    "Capabilities",
    "Clock",
    "ConfigurationError",
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
    "MissingClientError",
    "Option",
    "SecretError",
    "SyncBackend",
    "UnknownBackendError",
    "Usage",
    "hookimpl",
    "list_backends",
    "load_backend",
    "parse_boolean",
    "parse_duration",
    "parse_size",
]
