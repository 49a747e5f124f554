"""Checks of the account: every way in which the size of a namespace changes, each on its own."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from hypothesis import strategies as st

from .._errors import EntryTooLargeError
from ._checks import check
from ._kit import Kit
from ._needs import hook, writable_time

_SIZES = (10, 5, 0, 20)
_BULK = 1200


@check()
def size_of_set(kit: Kit) -> None:
    """An entry counts as one, with the length of its key and of its value and no overhead."""

    @kit.examples(lengths=st.lists(st.tuples(st.integers(1, 127), st.integers(0, 300)), max_size=4))
    def entries(lengths: List[Tuple[int, int]]) -> None:
        with kit.stage() as stage:
            handle = stage.handle()
            stage.account(handle, 0, 0)
            for number, (key, value) in enumerate(lengths):
                handle.set(str(number) + "k" * key, bytes(value))
            stage.account(handle, len(lengths), sum(1 + key + value for key, value in lengths))


@check()
def size_of_overwrite(kit: Kit) -> None:
    """An overwrite with a smaller, larger, equal or empty value leaves exactly the new size in the account."""
    for before in _SIZES:
        for after in _SIZES:
            with kit.stage() as stage:
                handle = stage.handle()
                handle.set("other", bytes(7))
                handle.set("key", bytes(before))
                stage.expect("set", handle.set("key", bytes(after)), 0)
                stage.account(handle, 2, 12 + 3 + after)


@check(writable_time)
def size_of_expired_overwrite(kit: Kit) -> None:
    """An expired entry that is overwritten or added again is not counted beside its successor."""
    for size in _SIZES:
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set("key", bytes(10), ttl=kit.tick)
            stage.advance(kit.tick + kit.late)
            handle.set("key", bytes(size))
            stage.account(handle, 1, 3 + size)
            handle.delete("key")
            handle.set("key", bytes(10), ttl=kit.tick)
            stage.advance(kit.tick + kit.late)
            stage.expect("add over an expired entry", handle.add("key", bytes(size)), True)
            stage.account(handle, 1, 3 + size)


@check()
def size_after_delete(kit: Kit) -> None:
    """A delete takes exactly the entry's size out of the account, once, and says whether it did."""
    with kit.stage() as stage:
        handle = stage.handle()
        stage.expect("delete of a key that never was", handle.delete("key"), False)
        stage.account(handle, 0, 0)
        handle.set("other", b"value")
        handle.set("key", b"value")
        stage.expect("delete", handle.delete("key"), True)
        stage.account(handle, 1, 10)
        stage.expect("a second delete", handle.delete("key"), False)
        stage.account(handle, 1, 10)
        handle.set("key", b"new")
        stage.account(handle, 2, 16)


@check(writable_time)
def size_after_expiry(kit: Kit) -> None:
    """An entry leaves the account when its life is over, although nobody looks at it, and leaves it once."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("kept", b"value")
        handle.set("short", b"value", ttl=kit.tick)
        handle.add("added", b"value", ttl=kit.tick)
        handle.set_many({"bulk": (b"value", kit.tick)})
        stage.advance(kit.tick + kit.late)
        stage.account(handle, 1, 9)
        for key in ("short", "added", "bulk"):
            stage.expect(f"get({key!r}) after its life", handle.get(key), None)
            stage.expect(f"delete({key!r}) after its life", handle.delete(key), False)
        stage.account(handle, 1, 9)


@check(writable_time)
def size_after_many_expiries(kit: Kit) -> None:
    """However many entries expire together, they leave the account together, and make room together."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("kept", b"value")
        handle.set_many({f"k{number}": (b"value", kit.tick) for number in range(_BULK)})
        stage.sum_up(f"'kept' is stored for ever, and {_BULK} entries for {kit.tick:g} s")
        stage.advance(kit.tick + kit.late)
        stage.account(handle, 1, 9)
        stage.expect("add over an expired entry", handle.add("k0", b"value"), True)
        stage.account(handle, 2, 16)


@check(hook("expire_natively"))
def size_after_native_expiry(kit: Kit) -> None:
    """An entry that the store drops by its own hand is gone for every verb, and from the account, once."""
    with kit.stage(real_time=True) as stage:
        handle = stage.handle()
        handle.set("kept", b"value")
        handle.set("key", b"value", ttl=1)
        stage.run(kit.suite.expire_natively(handle.backend, "key"))
        stage.note("the store drops 'key' by itself")
        stage.account(handle, 1, 9)
        stage.expect("get of what the store dropped", handle.get("key"), None)
        stage.expect("delete of what the store dropped", handle.delete("key"), False)
        stage.account(handle, 1, 9)
        stage.expect("add after the store dropped the entry", handle.add("key", b"new"), True)
        stage.account(handle, 2, 15)


@check()
def size_after_clear(kit: Kit) -> None:
    """A clear empties the namespace, returns how many entries were live, and counting begins anew."""
    with kit.stage() as stage:
        handle = stage.handle()
        stage.expect("clear of an empty namespace", handle.clear(), 0)
        for number in range(5):
            handle.set(f"k{number}", bytes(number))
        stage.expect("clear", handle.clear(), 5)
        stage.account(handle, 0, 0)
        stage.expect("get after clear", handle.get("k1"), None)
        stage.expect("a second clear", handle.clear(), 0)
        handle.set("k1", b"value")
        stage.account(handle, 1, 7)


@check()
def size_after_refusal(kit: Kit) -> None:
    """An entry that cannot fit is refused with its size and the limit, and takes only its predecessor with it."""
    with kit.stage(50) as stage:
        handle = stage.handle()
        limit = kit.largest("b", 50)
        handle.set("a", bytes(9))
        handle.set("b", bytes(9))
        for attempt in ("with a predecessor", "without a predecessor"):
            with stage.raises(EntryTooLargeError, f"set of 51 bytes {attempt}") as caught:
                handle.set("b", bytes(50))
            stage.expect("(size, limit) of the error", (caught.error.size, caught.error.limit), (51, limit))
            stage.expect("the predecessor after a refusal", handle.get("b"), None)
            stage.account(handle, 1, 10)
        stage.expect("the other entry", handle.value("a"), bytes(9))


@check()
def size_after_refused_add(kit: Kit) -> None:
    """An add that cannot fit is refused only if the key is free, and takes nothing with it."""
    with kit.stage(50) as stage:
        handle = stage.handle()
        handle.set("a", bytes(9))
        with stage.raises(EntryTooLargeError, "add of 51 bytes under a free key") as caught:
            handle.add("b", bytes(50))
        seen = (caught.error.size, caught.error.limit)
        stage.expect("(size, limit) of the error", seen, (51, kit.largest("b", 50)))
        stage.expect("add of 51 bytes under a taken key", handle.add("a", bytes(50)), False)
        stage.expect("the entry that was there", handle.value("a"), bytes(9))
        stage.account(handle, 1, 10)


@check()
def size_of_largest_entry(kit: Kit) -> None:
    """An entry of exactly the limit is accepted, alone and in place of itself."""
    limit = kit.largest("a", 50) or 50
    with kit.stage(50) as stage:
        handle = stage.handle()
        handle.set("a", bytes(limit - 1))
        stage.account(handle, 1, limit)
        stage.expect("set", handle.set("a", bytes(limit - 1)), 0)
        stage.account(handle, 1, limit)
        handle.delete("a")
        stage.expect("add", handle.add("a", bytes(limit - 1)), True)
        stage.account(handle, 1, limit)


@check()
def size_of_bulk(kit: Kit) -> None:
    """A bulk write counts each entry as a single write does, and stores the rest where one is refused."""
    with kit.stage(50) as stage:
        handle = stage.handle()
        stage.expect("set_many of nothing", handle.set_many({}), 0)
        handle.set_many({"a": (bytes(4), None), "b": (bytes(8), None)})
        stage.account(handle, 2, 14)
        with stage.raises(EntryTooLargeError, "set_many with entries of 61 and 71 bytes") as caught:
            items = {"a": bytes(2), "b": bytes(60), "c": bytes(4), "d": bytes(70)}
            handle.set_many({key: (value, None) for key, value in items.items()})
        stage.expect("the size in the error, which is of the first that was refused,", caught.error.size, 61)
        stage.expect("scan", handle.scanned_keys(), ["a", "c"])
        stage.account(handle, 2, 8)


@check()
def scan_of_many(kit: Kit) -> None:
    """A scan yields every live entry exactly once with its key and size, however many there are."""
    with kit.stage() as stage:
        handle = stage.handle()
        items: Dict[str, Tuple[bytes, Optional[float]]] = {
            f"k{number}": (bytes(number % 50), None) for number in range(_BULK)
        }
        handle.set_many(items)
        for number in range(0, _BULK, 7):
            handle.delete(f"k{number}")
            del items[f"k{number}"]
        stage.sum_up(f"{_BULK} entries are stored, and every seventh is deleted")
        stage.account(handle, len(items), sum(len(key) + len(value) for key, (value, _) in items.items()))
        seen = {info.key: info.size for info in handle.scan()}
        right = {key: len(key) + len(value) for key, (value, _) in items.items()}
        missing, wrong = sorted(set(right) - set(seen)), sorted(key for key in seen if seen[key] != right.get(key))
        stage.require(not missing, f"scan misses {len(missing)} of {len(right)} entries, {missing[:3]} among them")
        stage.require(not wrong, f"scan has keys or sizes that are not right: {wrong[:3]}")
        stage.expect("clear", handle.clear(), len(items))
        stage.account(handle, 0, 0)
