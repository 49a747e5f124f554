"""What the errors of redis-py and of the servers mean to us. The one place where they become ours."""

from __future__ import annotations

from typing import Union

from redis.exceptions import (
    AuthenticationError,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from claude_force_cache import AccessDeniedError, BackendUnavailableError, CacheError, ForeignStoreError

__all__ = ["is_demoted", "is_moving", "reason_of", "translated"]

_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM")
_DENIED_IN_SCRIPT = "The user executing the script can't"
_READ_ONLY_IN_SCRIPT = "-READONLY"
_MOVING_IN_SCRIPT = "non local key"


def is_demoted(reply: object) -> bool:
    """Return whether a server said that it is a replica, and did nothing."""
    if isinstance(reply, (ReadOnlyError, MasterDownError)):
        return True
    return isinstance(reply, ResponseError) and _READ_ONLY_IN_SCRIPT in str(reply)


def is_moving(reply: object) -> bool:
    """Return whether a node of a cluster said that a slot is between two nodes, and did nothing that counts."""
    return isinstance(reply, TryAgainError) or (isinstance(reply, ResponseError) and _MOVING_IN_SCRIPT in str(reply))


def translated(error: Exception, where: object) -> CacheError:
    """Return the error to raise in place of one of the client's or the system's.

    :param where: the server's address.
    """
    reason = reason_of(error)
    denied = isinstance(error, (AuthenticationError, NoPermissionError)) or reason.startswith(_DENIED)
    if denied or _DENIED_IN_SCRIPT in reason:
        return AccessDeniedError(
            f"Redis at {where} refuses access ({reason}): check the user's name, password and permissions"
        )
    if "WRONGTYPE" in reason:
        return ForeignStoreError(
            f"Redis at {where} holds foreign data under the names of this cache: choose another namespace"
        )
    return BackendUnavailableError(
        f"Redis at {where} is not available ({reason}): check that it runs, has memory left and takes writes"
    )


def reason_of(error: Union[RedisError, Exception]) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
