"""Checks of keys and values: what goes in comes out, under its own key and no other."""

from __future__ import annotations

import string
from typing import Any, Tuple

from hypothesis import strategies as st

from .._backend import Entry
from ._checks import check
from ._failure import ConformanceError
from ._handle import show
from ._kit import Kit

_ALPHABET = string.ascii_lowercase + string.digits + "._-"
_LONGEST_KEY = 128
# More than a store may take in one command.
_BULK = 1200

_keys = st.one_of(
    st.text(_ALPHABET, min_size=1, max_size=_LONGEST_KEY),
    st.text(_ALPHABET, min_size=_LONGEST_KEY, max_size=_LONGEST_KEY),
)
# Words that stores, their clients and their protocols have a meaning for, besides any bytes at all.
_values = st.one_of(
    st.binary(max_size=3000),
    st.sampled_from(
        [b"", b"\0", b"0", b"-1", b"\r\n", b"END\r\n", b"null", b"\x80\x04N.", b"\xff" * 9, bytes(range(256))]
    ),
    # Around what buffers, packets and pages hold.
    st.sampled_from([4097, 16_385, 70_000]).map(lambda length: (bytes(range(251)) * 300)[:length]),
)


@st.composite
def _neighbours(draw: st.DrawFn) -> Tuple[str, str]:
    """Draw two keys that are easily mistaken for each other."""
    key = draw(_keys)
    place = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from(_ALPHABET))
    kind = draw(st.sampled_from(["one character", "the last character", "prefix", "longer"]))
    if kind == "one character":
        other = key[:place] + letter + key[place + 1 :]
    elif kind == "the last character":
        other = key[:-1] + letter
    elif kind == "prefix":
        other = key[:place] or letter
    else:
        other = (key + letter)[-_LONGEST_KEY:]
    return key, other


@check()
def value_round_trip(kit: Kit) -> None:
    """Any bytes come back as they were stored, as bytes, from a single read and from a read in bulk."""

    @kit.examples(value=_values)
    def any_value(value: bytes) -> None:
        value = value[: kit.capabilities.max_value_bytes]
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set("set", value)
            handle.add("add", value)
            handle.set_many({"bulk": (value, None)})
            for key in ("set", "add", "bulk"):
                entry = handle.get(key)
                if entry is None or entry.value != value or type(entry.value) is not bytes:
                    stage.fail(f"get({key!r}) is {show(entry)}: expected the bytes {show(value)}", key)
                stage.expect("get_many", handle.get_many([key]), {key: entry}, about=key)
            stage.account(handle, 3, 10 + 3 * len(value))


@check()
def value_not_aliased(kit: Kit) -> None:
    """A stored value does not change with the buffer that it was given in, and is bytes that nobody can change."""
    for verb in ("set", "add", "set_many"):
        with kit.stage() as stage:
            handle = stage.handle()
            buffer: Any = bytearray(b"value")
            try:
                if verb == "set_many":
                    handle.set_many({"key": (buffer, None)})
                else:
                    getattr(handle, verb)("key", buffer)
            except ConformanceError as failure:
                if isinstance(failure.__cause__, TypeError):
                    continue  # what takes nothing but bytes cannot be changed underneath
                raise
            buffer[:] = b"VALUE and more"
            stage.note("the buffer that was handed over changes")
            entry = handle.get("key")
            if entry is None or entry.value != b"value" or type(entry.value) is not bytes:
                stage.fail(f"get('key') is {entry!r}: expected b'value', as it was stored")
            stage.account(handle, 1, 8)


@check()
def key_round_trip(kit: Kit) -> None:
    """Every key of the contract's alphabet, of 1 to 128 characters, is found and scanned as it was written."""

    @kit.examples(key=_keys, value=st.binary(max_size=20))
    def any_key(key: str, value: bytes) -> None:
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set(key, value)
            stage.expect(f"get({key!r})", handle.value(key), value)
            stage.expect("scan", handle.scanned_keys(), [key])
            stage.account(handle, 1, len(key) + len(value))
            stage.expect(f"delete({key!r})", handle.delete(key), True)
            stage.account(handle, 0, 0)

    with kit.stage() as stage:
        handle = stage.handle()
        for letter in _ALPHABET:
            handle.set(letter, letter.encode())
        stage.expect("scan", handle.scanned_keys(), sorted(_ALPHABET))
        for letter in _ALPHABET:
            stage.expect(f"get({letter!r})", handle.value(letter), letter.encode())


@check()
def key_neighbours(kit: Kit) -> None:
    """Keys that differ in one character or are prefixes of each other are different keys, however long."""

    @kit.examples(keys=_neighbours())
    def two_keys(keys: Tuple[str, str]) -> None:
        one, two = keys
        if one == two:
            return
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set(one, b"one")
            stage.expect(f"get({two!r}), which was not stored,", handle.get(two), None)
            stage.expect(f"add({two!r})", handle.add(two, b"two"), True)
            stage.expect(f"get({one!r})", handle.value(one), b"one")
            stage.expect(f"get({two!r})", handle.value(two), b"two")
            stage.expect("scan", handle.scanned_keys(), sorted(keys))
            stage.expect(f"delete({two!r})", handle.delete(two), True)
            stage.expect(f"get({one!r})", handle.value(one), b"one")
            stage.account(handle, 1, len(one) + 3)


@check()
def read_in_bulk(kit: Kit) -> None:
    """A bulk read returns the same entries as single reads, leaves out what is missing, and takes repeated keys."""
    with kit.stage() as stage:
        handle = stage.handle()
        stage.expect("get_many of nothing", handle.get_many([]), {})
        stage.expect("get_many of a missing key", handle.get_many(["a"]), {})
        handle.set_many({key: (key.encode() * 3, None) for key in "abc"})
        single = {key: handle.get(key) for key in "abc"}
        for keys in (["c", "missing", "a", "c"], ["missing", "b"], ["a", "b", "c"]):
            stage.sum_up("'a', 'b' and 'c' are stored")
            right = {key: single[key] for key in keys if key in single}
            stage.expect(f"get_many({keys})", handle.get_many(keys), right)
        many = [f"k{number}" for number in range(_BULK)]
        handle.set_many({key: (key.encode(), None) for key in many})
        found = handle.get_many([*many, "missing"])
        wrong = sorted(key for key in many if key not in found or found[key].value != key.encode())
        stage.require(not wrong, f"get_many of {_BULK + 1} keys is wrong for {wrong[:3]}")
        stage.expect("the number of entries that get_many returned", len(found), _BULK)
        stage.require(all(isinstance(entry, Entry) for entry in found.values()), "get_many returned no Entry")


@check()
def add_only_if_absent(kit: Kit) -> None:
    """An add stores under a free key and says so; an entry that is there keeps its value, version and life."""
    with kit.stage() as stage:
        handle = stage.handle()
        stage.expect("add under a free key", handle.add("key", b"first"), True)
        version = handle.version("key")
        stage.sum_up("'key' is stored as b'first' by add")
        for _ in range(2):
            stage.expect("add under a taken key", handle.add("key", b"second", ttl=1000), False)
            stage.expect("get", handle.get("key"), Entry(b"first", version))
        stage.expect("scan", [tuple(info) for info in handle.scan()], [("key", 8, None)])
        stage.account(handle, 1, 8)
        stage.sum_up("'key' is stored")
        handle.set("key", b"set")
        stage.expect("add after set", handle.add("key", b"third"), False)
        handle.delete("key")
        stage.expect("add after delete", handle.add("key", b"fourth"), True)
        stage.expect("get", handle.value("key"), b"fourth")
        stage.account(handle, 1, 9)
