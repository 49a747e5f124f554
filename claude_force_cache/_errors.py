"""The errors that a cache raises.

::

    CacheError
    |-- ConfigurationError (also a ValueError)   the settings cannot be used; nothing was touched
    |   |-- InvalidURLError
    |   |-- InvalidOptionError
    |   |-- UnknownBackendError
    |   |-- DuplicateBackendError
    |   |-- MissingClientError
    |   |-- IncompatibleBackendError
    |   |-- SecretError
    |   `-- ForeignStoreError
    |-- InvalidKeyError (also a ValueError)      what was given as a key cannot be encoded
    |-- InvalidValueError (also a ValueError)    the codec cannot encode the value
    |-- EntryTooLargeError                       one entry above the limit; nothing else was evicted
    `-- BackendError
        |-- BackendUnavailableError              the store does not answer, or not as it should
        |   |-- AccessDeniedError                the store refuses the credentials
        |   `-- PartlyUnavailableError           one of several servers does not answer; other keys work
        `-- BackendClosedError                   used before ``open`` or after ``close``

Every message names the cause and the remedy on one line. None contains a password or a secret.
"""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "BackendClosedError",
    "BackendError",
    "BackendUnavailableError",
    "CacheError",
    "ConfigurationError",
    "DuplicateBackendError",
    "EntryTooLargeError",
    "ForeignStoreError",
    "IncompatibleBackendError",
    "InvalidKeyError",
    "InvalidOptionError",
    "InvalidURLError",
    "InvalidValueError",
    "MissingClientError",
    "PartlyUnavailableError",
    "SecretError",
    "UnknownBackendError",
]


class CacheError(Exception):
    """Base class of every error of this package."""


class ConfigurationError(CacheError, ValueError):
    """Raised when the settings cannot be used; nothing was opened, read or written."""


class InvalidURLError(ConfigurationError):
    """Raised when a cache URL, or the table that stands for one, is malformed."""


class InvalidOptionError(ConfigurationError):
    """Raised when an option is unknown or its value does not fit."""


class UnknownBackendError(ConfigurationError):
    """Raised when no installed distribution provides a backend of the name that was chosen."""


class DuplicateBackendError(ConfigurationError):
    """Raised when two installed distributions provide a backend of the name that was chosen."""


class MissingClientError(ConfigurationError):
    """Raised when the client library of the chosen backend is not installed."""


class IncompatibleBackendError(ConfigurationError):
    """Raised when the chosen plugin cannot be loaded or was built for another API version."""


class SecretError(ConfigurationError):
    """Raised when a secret is needed and missing, too short, or its file is not safe to use."""


class ForeignStoreError(ConfigurationError):
    """Raised when a store holds something that this package did not write there."""


class InvalidKeyError(CacheError, ValueError):
    """Raised when a key holds a value that has no unambiguous encoding."""


class InvalidValueError(CacheError, ValueError):
    """Raised when the codec cannot encode a value."""


class EntryTooLargeError(CacheError):
    """Raised when one entry is above the limit of the cache or of its store.

    The predecessor under the same key is gone, since it is out of date; no other entry was touched.

    :param size: the size of the refused entry in bytes, ``len(key) + len(value)``.
    :param limit: the largest size in bytes that would have been accepted.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"an entry of {self.size} bytes does not fit: this cache takes at most {self.limit} bytes an entry "
            f"(raise max_bytes, or choose a backend without the limit)"
        )


class BackendError(CacheError):
    """Base class of what a backend raises while it works."""


class BackendUnavailableError(BackendError):
    """Raised when the store cannot be reached, does not answer in time, is full, or is read-only.

    The core treats it as a passing fault: a read becomes a miss, a write is dropped and counted.
    """


class AccessDeniedError(BackendUnavailableError):
    """Raised when the store refuses the credentials or the file permissions do not suffice."""


class PartlyUnavailableError(BackendUnavailableError):
    """Raised when the part of a store that a key belongs to does not answer, while other keys can be used.

    It does not open the circuit breaker: the rest of the store goes on.
    """


class BackendClosedError(BackendError):
    """Raised when a backend or a cache is used before ``open`` or after ``close``."""
