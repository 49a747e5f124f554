"""What printing does not show: secrets, passwords, and the tables and environments that may hold them.

Reports of crashes print the local variables of every frame, so hiding has to begin where a secret comes in and not
where a message is written. Each of these is what it hides, in everything but its ``repr``, and refuses to be pickled.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, NoReturn, TypeVar, Union, overload

__all__ = ["Hidden", "HiddenBytes", "HiddenTable", "HiddenText", "hide"]

T = TypeVar("T")
Hidden = Union["HiddenText", "HiddenBytes"]

_SHOWN = "'***'"


class _Unpickled:
    """Refuses to be pickled; copies are the object itself."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("what is secret is not pickled: read it again in the other process, from its environment")

    def __copy__(self: T) -> T:
        return self

    def __deepcopy__(self: T, memo: object) -> T:
        return self


class HiddenText(_Unpickled, str):
    """Text that printing does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _SHOWN


class HiddenBytes(_Unpickled, bytes):
    """Bytes that printing does not show."""

    # Bytes have no room for slots.

    def __repr__(self) -> str:
        return _SHOWN


class HiddenTable(_Unpickled, Dict[str, Any]):
    """A table of which printing shows the names alone. Tables in it, texts of URLs and passwords are hidden, too."""

    __slots__ = ()

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__({name: _hide_in_table(name, value) for name, value in table.items()})

    def __repr__(self) -> str:
        return repr(dict.fromkeys(self, "***"))


@overload
def hide(value: str) -> HiddenText: ...
@overload
def hide(value: bytes) -> HiddenBytes: ...
@overload
def hide(value: Mapping[str, Any]) -> HiddenTable: ...
@overload
def hide(value: T) -> T: ...


def hide(value: Any) -> Any:
    """Return text, bytes, a table, or a sequence of such, as what printing does not show; anything else as it is."""
    if isinstance(value, str):
        return HiddenText(value)
    if isinstance(value, bytes):
        return HiddenBytes(value)
    if isinstance(value, Mapping):
        return HiddenTable(value)
    if isinstance(value, (list, tuple)):
        return [hide(item) for item in value]
    return value


def _hide_in_table(name: object, value: Any) -> Any:
    return hide(value) if name in {"password", "url"} or isinstance(value, Mapping) else value
