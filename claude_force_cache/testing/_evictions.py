"""Checks of the limit: it holds after every verb, and the right entries go for it, no more than needed."""

from __future__ import annotations

from typing import Callable, Dict, Hashable, List, Optional, Set, Tuple

from hypothesis import strategies as st

from ._checks import check
from ._handle import Handle
from ._kit import Kit
from ._needs import able, exact_order, one_partition, usage_order, writable_time
from ._stage import Stage

_SIZES = {"k0": 8, "k1": 12, "k2": 10, "k3": 6}
_FULL = sum(_SIZES.values())
_ENTRY = 10
_MANY = 90
_SHARE = 60
_MOST_WRITES = 200


def _fill(kit: Kit, stage: Stage, handle: Optional[Handle] = None) -> Handle:
    """Store entries, whose uses can be told apart, up to the limit; the oldest is neither the largest nor the least."""
    handle = handle or stage.handle()
    for name, size in _SIZES.items():
        handle.set(name, bytes(size - len(name)))
        _let_uses_part(kit, stage)
    stage.sum_up(f"{', '.join(_SIZES)} are stored in this order, with {', '.join(map(str, _SIZES.values()))} bytes")
    return handle


def _first(order: List[str], size: int) -> List[str]:
    """Return those of ``order`` that have to go for an entry of ``size`` bytes."""
    return next(order[:count] for count in range(len(order) + 1) if sum(_SIZES[k] for k in order[:count]) >= size)


def _let_uses_part(kit: Kit, stage: Stage) -> None:
    if kit.capabilities.recency:
        stage.advance(kit.capabilities.recency + kit.tick)


def _gone(stage: Stage, handle: Handle, before: Set[str]) -> Set[str]:
    return before - set(handle.scanned_keys())


@check()
def limit_is_hard(kit: Kit) -> None:
    """The account is within max_bytes whenever a write returns."""
    write = st.tuples(st.sampled_from(["set", "add", "set_many"]), st.integers(0, 9), st.integers(0, 48))

    @kit.examples(writes=st.lists(write, min_size=1, max_size=12))
    def writing(writes: List[Tuple[str, int, int]]) -> None:
        with kit.stage(50) as stage:
            handle = stage.handle()
            for verb, key, length in writes:
                if verb == "set_many":
                    handle.set_many({f"k{key}": (bytes(length), None), f"k{(key + 1) % 10}": (bytes(length), None)})
                else:
                    getattr(handle, verb)(f"k{key}", bytes(length))
                stage.account(handle)

    for verb in ("set", "add"):
        with kit.stage(50) as stage:
            handle = stage.handle()
            handle.set("a", bytes(24))
            getattr(handle, verb)("b", bytes(24))
            stage.account(handle)
            getattr(handle, verb)("c", b"")
            stage.account(handle)
    with kit.stage(_MANY * 5) as stage:
        handle = stage.handle()
        handle.set_many({f"k{number:02}": (bytes(2), None) for number in range(_MANY)})
        stage.sum_up(f"{_MANY} entries of 5 bytes are stored")
        before = set(handle.scanned_keys())
        evicted = handle.set("large", bytes(_MANY * 5 - 6))
        stage.account(handle)
        stage.expect("what set returned", evicted, len(_gone(stage, handle, before)))


@check(usage_order)
def eviction_order(kit: Kit) -> None:
    """The least recently used go first; reads, writes, touches and an add that finds an entry are uses."""
    uses: Dict[str, Callable[[Handle, str], object]] = {
        "get": lambda handle, key: handle.get(key),
        "get_many": lambda handle, key: handle.get_many([key]),
        "set": lambda handle, key: handle.set(key, bytes(_SIZES[key] - 2)),
        "set_many": lambda handle, key: handle.set_many({key: (bytes(_SIZES[key] - 2), None)}),
        "touch": lambda handle, key: handle.touch(key, ttl=None),
        "add": lambda handle, key: handle.add(key, b""),
    }
    use = st.tuples(st.sampled_from(sorted(uses)), st.sampled_from(sorted(_SIZES)))

    @kit.examples(order=st.lists(use, max_size=5), size=st.integers(3, 30))
    def using(order: List[Tuple[str, str]], size: int) -> None:
        with kit.stage(_FULL) as stage:
            handle = _fill(kit, stage)
            recency = list(_SIZES)
            for verb, name in order:
                uses[verb](handle, name)
                recency.append(recency.pop(recency.index(name)))
                _let_uses_part(kit, stage)
            handle.scan()
            handle.set("new", bytes(size - 3))
            gone = _gone(stage, handle, set(_SIZES))
            right = recency[: max(len(_first(recency, size)), len(gone))]
            stage.require(gone == set(right), f"{sorted(gone)} went, of which the least recently used are {right}")


@check(usage_order)
def eviction_ignores_scans(kit: Kit) -> None:
    """A scan, a look at the account, and a delete or touch that does not apply are no uses."""
    looks: Dict[str, Callable[[Handle, Hashable], object]] = {
        "usage": lambda handle, _: handle.usage(),
        "scan": lambda handle, _: handle.scan(),
        "touch by a version out of date": lambda handle, stale: handle.touch("k0", ttl=None, version=stale),
        "delete by a version out of date": lambda handle, stale: handle.delete("k0", version=stale),
    }
    for name, look in looks.items():
        with kit.stage(_FULL) as stage:
            handle = stage.handle()
            handle.set("k0", b"")
            stale = handle.version("k0")
            _fill(kit, stage, handle)
            look(handle, stale)
            stage.note(name)
            handle.set("new", bytes(_SIZES["k0"] - 3))
            gone = _gone(stage, handle, set(_SIZES))
            right = set(list(_SIZES)[: len(gone)])
            stage.require(bool(gone) and gone == right, f"{sorted(gone)} went after {name}, expected the oldest")


@check(able("shared_between_processes"), usage_order, exact_order)
def eviction_order_of_all_backends(kit: Kit) -> None:
    """A use is one, whichever backend on the namespace it was made by, also by one that was opened later."""
    for when in ("together", "later"):
        with kit.stage(_FULL) as stage:
            one = stage.handle(name="one")
            two = stage.handle(name="two") if when == "together" else one
            _fill(kit, stage, one)
            if when == "later":
                two = stage.handle(name="two")
            two.get("k0")
            two.set("new", bytes(_SIZES["k1"] - 3))
            gone = _gone(stage, one, set(_SIZES))
            stage.require(gone == {"k1"}, f"{sorted(gone)} went, the least recently used is k1")
            two.get("k2")
            one.set("more", bytes(_SIZES["k3"] - 4))
            gone = _gone(stage, two, {"k0", "k2", "k3"})
            stage.require(gone == {"k3"}, f"{sorted(gone)} went, the least recently used is k3")


@check()
def eviction_count(kit: Kit) -> None:
    """A set returns how many other live entries it evicted, not counting its predecessor."""
    write = st.tuples(st.sampled_from(["set", "set_many"]), st.sampled_from("abc"), st.integers(0, 40))

    @kit.examples(writes=st.lists(write, min_size=2, max_size=8))
    def counting(writes: List[Tuple[str, str, int]]) -> None:
        with kit.stage(50) as stage:
            handle = stage.handle()
            there: Set[str] = set()
            for verb, key, length in writes:
                value = bytes(length)
                evicted = handle.set(key, value) if verb == "set" else handle.set_many({key: (value, None)})
                gone = _gone(stage, handle, there - {key})
                stage.expect(f"what {verb} of {key!r} returned, when {sorted(gone)} went,", evicted, len(gone))
                there = {*there - gone, key}


@check(writable_time)
def eviction_count_without_expired(kit: Kit) -> None:
    """An expired entry that goes to make room is not counted among the evicted."""
    with kit.stage(30) as stage:
        handle = stage.handle()
        handle.set("dead", bytes(20), ttl=kit.tick)
        stage.advance(kit.tick + kit.late)
        stage.expect("set, for which only an expired entry had to go,", handle.set("new", bytes(25)), 0)
        stage.account(handle, 1, 28)


@check()
def eviction_no_more_than_needed(kit: Kit) -> None:
    """Entries go only when a write does not fit, and no more than it needs, apart from the declared slack."""

    @kit.examples(writes=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40)), min_size=2, max_size=8))
    def needing(writes: List[Tuple[str, int]]) -> None:
        with kit.stage(_SHARE) as stage:
            handle = stage.handle()
            sizes: Dict[str, int] = {}
            for key, length in writes:
                handle.set(key, bytes(length))
                sizes[key] = len(key) + length
                _went_for_need(kit, stage, handle, sizes)

    with kit.stage(_SHARE) as stage:
        handle = stage.handle()
        handle.set("a", bytes(29))
        handle.set("b", bytes(29))
        stage.expect("scan of what fills the limit exactly", handle.scanned_keys(), ["a", "b"])
    with kit.stage(_SHARE) as stage:
        handle, sizes = stage.handle(), {}
        # Whichever partitions they go to, one of them is full in the end; of very many, one may be before.
        for number in range(min(_SHARE // 20 * kit.capabilities.partitions + 1, _MOST_WRITES)):
            stage.sum_up(f"{number} entries of 20 bytes are stored" if number else "")
            key = f"k{number}"
            handle.set(key, bytes(20 - len(key)))
            sizes[key] = 20
            if _went_for_need(kit, stage, handle, sizes):
                return


def _went_for_need(kit: Kit, stage: Stage, handle: Handle, sizes: Dict[str, int]) -> bool:
    """Take those that a write evicted out of ``sizes``, return whether there are any, and fail if one had to stay."""
    total = sum(sizes.values())
    gone = {name: sizes.pop(name) for name in _gone(stage, handle, set(sizes))}
    if gone:
        # Who shares a partition is not known. At the most all of them do.
        left, least = sum(sizes.values()), _SHARE * (1 - kit.capabilities.eviction_slack)
        stage.require(total > _SHARE, f"{sorted(gone)} went, and {total} bytes fit")
        stage.require(left + max(gone.values()) > least, f"{sorted(gone)} went, {left} bytes are left")
    return bool(gone)


@check()
def eviction_spares_the_new(kit: Kit) -> None:
    """What was just written is never the victim of its own write."""
    with kit.stage(50) as stage:
        handle = stage.handle()
        for number in range(12):
            stage.sum_up(f"{number} entries were stored, and more each time" if number else "")
            key, verb = f"k{number}", ("set", "add")[number % 2]
            getattr(handle, verb)(key, bytes(20 + number))
            stage.expect(f"get({key!r}) after its {verb}", handle.value(key), bytes(20 + number))
            stage.account(handle)


@check(writable_time, one_partition)
def eviction_of_the_expired_first(kit: Kit) -> None:
    """Expired entries go before live ones, although they were used later."""
    with kit.stage(30) as stage:
        handle = stage.handle()
        handle.set("old", bytes(7))
        handle.set("dead", bytes(6), ttl=kit.tick)
        stage.advance(kit.tick + kit.late)
        stage.expect("set", handle.set("new", bytes(17)), 0)
        stage.expect("get of the live entry", handle.value("old"), bytes(7))
        stage.account(handle, 2, 30)


@check(able("persistent"))
def limit_at_open(kit: Kit) -> None:
    """A namespace above max_bytes is brought within it by open, and the account agrees."""
    with kit.stage() as stage:
        handle = stage.handle()
        for number in range(10):
            handle.set(f"k{number}", bytes(_ENTRY - 2))
            if usage_order(kit) is None:
                _let_uses_part(kit, stage)
        stage.sum_up(f"k0 to k9 are stored in this order, {_ENTRY} bytes each")
        handle.get("k0")
        handle.close()
        limit = 50 * kit.capabilities.partitions
        stage.max_bytes = limit
        stage.note(f"max_bytes is {limit}")
        handle = stage.handle()
        stage.account(handle)
        left = handle.scanned_keys()
        stage.expect("usage", tuple(handle.usage()), (len(left), _ENTRY * len(left)))
        if usage_order(kit) is None:
            right = {"k0", *(f"k{number}" for number in range(10 - len(left) + 1, 10))}
            stage.require(set(left) == right, f"{left} are left, not the most recently used")
