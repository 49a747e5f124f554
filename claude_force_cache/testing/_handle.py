"""A backend of either kind, driven by plain calls that are written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple, Union

from .._backend import Backend, Entry, EntryInfo, SyncBackend, Usage
from ._failure import ConformanceError

if TYPE_CHECKING:
    from ._stage import Stage

__all__ = ["AnyBackend", "Handle", "show"]

AnyBackend = Union[Backend, SyncBackend]

_LONGEST_SHOWN = 16
_MOST_SHOWN = 8


def show(value: object) -> str:
    """Return how a value reads in a step: what is long by its length."""
    shown = repr(value)
    if isinstance(value, (bytes, bytearray)) and len(value) > _LONGEST_SHOWN:
        shown = f"<{len(value)} bytes>"
    elif isinstance(value, str) and len(value) > 2 * _LONGEST_SHOWN:
        shown = f"<{len(value)} characters, {value[:8]!r}...>"
    elif isinstance(value, (Mapping, list)) and len(value) > _MOST_SHOWN:
        shown = f"<{len(value)} items>"
    elif isinstance(value, Mapping):
        shown = "{" + ", ".join(f"{show(key)}: {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, Entry):
        shown = f"Entry({show(value.value)})"
    elif type(value) is tuple:
        shown = "(" + ", ".join(map(show, value)) + ")"
    return shown


def _is_count(result: object) -> bool:
    return type(result) is int


def _is_entries(result: object) -> bool:
    return isinstance(result, dict) and all(isinstance(entry, Entry) for entry in result.values())


def _is_info(info: object) -> bool:
    return (
        isinstance(info, EntryInfo)
        and isinstance(info.key, str)
        and _is_count(info.size)
        and (info.ttl is None or type(info.ttl) in {int, float})
    )


# A wrong type has to be told as such: what reckons with it would raise something that nobody understands.
_RESULTS: Dict[str, Callable[[Any], bool]] = {
    "open": lambda result: result is None,
    "close": lambda result: result is None,
    "ping": lambda result: result is None,
    "get": lambda result: result is None or isinstance(result, Entry),
    "get_many": _is_entries,
    "set": _is_count,
    "set_many": _is_count,
    "add": lambda result: isinstance(result, bool),
    "delete": lambda result: isinstance(result, bool),
    "touch": lambda result: isinstance(result, bool),
    "scan": lambda result: all(map(_is_info, result)),
    "usage": lambda result: isinstance(result, Usage) and all(map(_is_count, result)),
    "clear": _is_count,
}


class Handle:
    """One backend on a stage. Every verb is as in the contract, without ``async``; ``scan`` returns a list.

    A verb that raises anything but what :meth:`Stage.raises` is waiting for is a failure of the check.
    """

    def __init__(self, backend: AnyBackend, stage: Stage, namespace: str, name: str = "") -> None:
        self.backend = backend
        self.namespace = namespace
        self._stage = stage
        self._prefix = name and f"{name}."

    def open(self) -> None:
        self._call("open")

    def close(self) -> None:
        self._call("close")

    def get(self, key: str) -> Optional[Entry]:
        return self._call("get", key)  # type: ignore[no-any-return]  # the contract's type

    def value(self, key: str) -> Optional[bytes]:
        """Return the value of the live entry under ``key``, or None."""
        entry = self.get(key)
        return None if entry is None else entry.value

    def version(self, key: str) -> Hashable:
        """Return the version of the entry under ``key``, which has to be there."""
        entry = self.get(key)
        if entry is None:
            raise ConformanceError(f"get({key!r}) is None: the entry was stored and is live", self._stage.steps)
        return entry.version

    def get_many(self, keys: Sequence[str]) -> Dict[str, Entry]:
        return self._call("get_many", keys)  # type: ignore[no-any-return]  # the contract's type

    def set(self, key: str, value: bytes, *, ttl: Optional[float] = None) -> int:
        return self._call("set", key, value, ttl=ttl)  # type: ignore[no-any-return]  # the contract's type

    def set_many(self, items: Mapping[str, Tuple[bytes, Optional[float]]]) -> int:
        return self._call("set_many", items)  # type: ignore[no-any-return]  # the contract's type

    def add(self, key: str, value: bytes, *, ttl: Optional[float] = None) -> bool:
        return self._call("add", key, value, ttl=ttl)  # type: ignore[no-any-return]  # the contract's type

    def delete(self, key: str, *, version: Optional[Hashable] = None) -> bool:
        given: Dict[str, Any] = {} if version is None else {"version": version}
        return self._call("delete", key, **given)  # type: ignore[no-any-return]  # the contract's type

    def touch(self, key: str, *, ttl: Optional[float], version: Optional[Hashable] = None) -> bool:
        given: Dict[str, Any] = {} if version is None else {"version": version}
        return self._call("touch", key, ttl=ttl, **given)  # type: ignore[no-any-return]  # the contract's type

    def clear(self) -> int:
        return self._call("clear")  # type: ignore[no-any-return]  # the contract's type

    def ping(self) -> None:
        self._call("ping", quiet=True)

    def usage(self) -> Usage:
        return self._call("usage", quiet=True)  # type: ignore[no-any-return]  # the contract's type

    def scan(self) -> List[EntryInfo]:
        return self._call("scan", quiet=True)  # type: ignore[no-any-return]  # the contract's type

    def scanned_keys(self) -> List[str]:
        """Return the keys that a scan yields, sorted."""
        return sorted(info.key for info in self.scan())

    def _call(self, verb: str, *args: Any, quiet: bool = False, **kwargs: Any) -> Any:
        given = [*map(show, args), *(f"{name}={show(value)}" for name, value in kwargs.items())]
        call = f"{self._prefix}{verb}({', '.join(given)})"
        try:
            result = self._run(verb, *args, **kwargs)
        except self._stage.expected as error:
            self._stage.steps.append(f"{call} raised {type(error).__name__}")
            raise
        except Exception as error:
            raise ConformanceError(f"{call} raised {type(error).__name__}: {error}", self._stage.steps) from error
        if not quiet:
            self._stage.steps.append(f"{call} -> {show(result)}")
        if not _RESULTS[verb](result):
            self._stage.fail(f"{call} returned {result!r}, which is not what the contract says")
        return result

    def _run(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.backend, verb)
        if isinstance(self.backend, SyncBackend):
            return list(method()) if verb == "scan" else method(*args, **kwargs)
        if verb == "scan":
            return self._stage.run(self._collect())
        return self._stage.run(method(*args, **kwargs))

    async def _collect(self) -> List[EntryInfo]:
        if not isinstance(self.backend, Backend):
            raise TypeError(f"{self.backend!r} is neither a Backend nor a SyncBackend")
        return [info async for info in self.backend.scan()]
