"""Checks of damage, through the cache: a damaged entry is a miss, gone, counted once, and no newer one goes with it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Sequence, Tuple

from hypothesis import strategies as st

from .._results import MISSING
from ._checks import check
from ._handle import show
from ._kit import Kit
from ._needs import hook, settable_clock
from ._sealed import ANSWER, Late, Sealed
from ._stage import Stage

# Backends and the core keep notes of their own at the beginning, so that is where damage tells the most.
_places = st.one_of(st.integers(0, 40), st.integers(0, 10_000))
_flips = st.tuples(_places, st.integers(1, 255))
_extensions = st.binary(min_size=1, max_size=40)


@contextmanager
def _quiet_stage(kit: Kit) -> Iterator[Stage]:
    """Set up an example, and keep back the cache's warnings about the damage that the kit does itself."""
    logger = logging.getLogger("claude_force_cache")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with kit.stage() as stage:
            yield stage
    finally:
        logger.setLevel(level)


@contextmanager
def _sealed(kit: Kit) -> Iterator[Sealed]:
    with _quiet_stage(kit) as stage:
        yield Sealed(stage, stage.handle(opened=False))


def _flip(data: bytes, flip: Tuple[int, int]) -> bytes:
    place = flip[0] % len(data)
    return data[:place] + bytes([data[place] ^ flip[1]]) + data[place + 1 :]


@check()
def corrupt_by_flip(kit: Kit) -> None:
    """A stored value with any bit changed is a miss through the cache, evicted, uncounted, and reported once."""

    @kit.examples(flip=_flips)
    def damage(flip: Tuple[int, int]) -> None:
        with _sealed(kit) as cache:
            cache.handle.set(cache.name, _flip(cache.sealed(), flip))
            cache.expect_discarded()
            cache.expect_well()


@check()
def corrupt_by_truncation(kit: Kit) -> None:
    """A stored value that was cut short, also to nothing, is a miss, evicted, uncounted, and reported once."""

    @kit.examples(left=_places)
    def damage(left: int) -> None:
        with _sealed(kit) as cache:
            sealed = cache.sealed()
            cache.handle.set(cache.name, sealed[: left % len(sealed)])
            cache.expect_discarded()
            cache.expect_well()


@check()
def corrupt_by_extension(kit: Kit) -> None:
    """A stored value with anything appended or prepended is a miss, evicted, uncounted, and reported once."""

    @kit.examples(more=_extensions, before=st.booleans())
    def damage(more: bytes, before: bool) -> None:
        with _sealed(kit) as cache:
            sealed = cache.sealed()
            cache.handle.set(cache.name, more + sealed if before else sealed + more)
            cache.expect_discarded()
            cache.expect_well()


@check()
def corrupt_by_garbage(kit: Kit) -> None:
    """Bytes that no cache sealed are a miss, evicted, uncounted, and reported once."""

    @kit.examples(garbage=st.one_of(st.binary(max_size=200), st.just(b"\x80\x04cos\nsystem\n.")))
    def damage(garbage: bytes) -> None:
        with _sealed(kit) as cache:
            cache.handle.set(cache.name, garbage)
            cache.expect_discarded()
            cache.expect_well()


@check()
def corrupt_by_swap(kit: Kit) -> None:
    """Values that changed places are no answers to each other's questions: both are misses and evicted."""
    with _sealed(kit) as cache:
        one, two = cache.sealed(), cache.handle.value(cache.other_name) or b""
        cache.handle.set(cache.name, two)
        cache.handle.set(cache.other_name, one)
        cache.stage.sum_up("a cache stores two answers, and their stored values change places")
        cache.expect_discarded()
        cache.stage.expect("cache.get of the other", cache.get("other"), MISSING)
        cache.stage.expect("the number of corrupt entries that the cache counted", cache.corrupt, 2)
        cache.stage.account(cache.handle, 0, 0)


@check()
def corrupt_spares_the_newer(kit: Kit) -> None:
    """A good value that arrives while a damaged one is being evicted is not taken with it, and is found."""
    with _quiet_stage(kit) as stage:
        handle = stage.handle()
        late = Late(stage.view(handle))
        cache = Sealed(stage, handle, late)
        good = cache.sealed()
        handle.set(cache.name, b"damaged")
        late.arrives = (cache.name, good)
        stage.expect("cache.get of a damaged entry", cache.get("question"), MISSING)
        stage.note("... while a good entry arrived before its eviction")
        stage.expect("the arrival", late.arrives, None)
        stage.expect("get of the newer entry", handle.value(cache.name), good)
        stage.expect("the number of corrupt entries that the cache counted", cache.corrupt, 0)
        stage.expect("cache.get of the newer entry", cache.get("question"), ANSWER)
        stage.account(handle)


@check(settable_clock)
def corrupt_by_an_older_version(kit: Kit) -> None:
    """An older version that is put back is no answer once its own life is over."""
    with _quiet_stage(kit) as stage:
        cache = Sealed(stage, stage.handle(opened=False))
        cache.set("question", ANSWER, ttl=10)
        older = cache.sealed()
        cache.set("question", {"answer": "newer"}, ttl=100)
        stage.advance(10 + kit.late)
        stage.sum_up("a cache stores an answer for 10 s, then another one for 100 s, and 10 s pass")
        cache.handle.set(cache.name, older)
        stage.expect("cache.get of an older version, put back after its life,", cache.get("question"), MISSING)
        stage.account(cache.handle)
        cache.expect_well()


@check(hook("read_raw"), hook("write_raw"))
def corrupt_by_raw_damage(kit: Kit) -> None:
    """Whatever a stranger does to stored bytes, the cache gives the true answer or a miss, and the account holds."""
    kinds = st.one_of(
        st.tuples(st.just("flip"), _flips),
        st.tuples(st.just("truncate"), _places),
        st.tuples(st.just("extend"), _extensions),
        st.tuples(st.just("replace"), st.binary(max_size=60)),
    )

    @kit.examples(damage=kinds)
    def raw(damage: Tuple[str, Any]) -> None:
        with _sealed(kit) as cache:
            data = _read(kit, cache, cache.name)
            kind, detail = damage
            changed: Dict[str, Any] = {
                "flip": lambda: _flip(data, detail),
                "truncate": lambda: data[: detail % len(data)],
                "extend": lambda: data + detail,
                "replace": lambda: detail,
            }
            _write(kit, cache, cache.name, changed[kind]())
            _expect_sound(cache, [ANSWER])
            cache.expect_well()


@check(hook("read_raw"), hook("write_raw"))
def corrupt_by_raw_swap(kit: Kit) -> None:
    """Stored bytes that a stranger swapped between two keys are no answers to each other's questions."""
    with _sealed(kit) as cache:
        one, two = _read(kit, cache, cache.name), _read(kit, cache, cache.other_name)
        _write(kit, cache, cache.name, two)
        _write(kit, cache, cache.other_name, one)
        _expect_sound(cache, [])
        cache.stage.expect("cache.get of the other", cache.get("other"), MISSING)
        cache.stage.account(cache.handle, 0, 0)


@check(hook("read_raw"), hook("write_raw"))
def corrupt_by_raw_older_version(kit: Kit) -> None:
    """Stored bytes of an older version, put back by a stranger, are a whole answer or a miss, and counted rightly."""
    with _sealed(kit) as cache:
        older = _read(kit, cache, cache.name)
        cache.set("question", {"answer": "newer, and longer than the older answer was, by a good deal"})
        _write(kit, cache, cache.name, older)
        # Nothing in the store tells an older answer that is still fresh from the newest one.
        _expect_sound(cache, [ANSWER])
        cache.expect_well()


def _expect_sound(cache: Sealed, answers: Sequence[object]) -> None:
    stage, handle = cache.stage, cache.handle
    stage.account(handle)
    answer = cache.get("question")
    stage.require(answer in [MISSING, *answers], f"cache.get is {answer!r}, which is not the answer that was stored")
    stage.account(handle)
    if answer is MISSING:
        left = [info.key for info in handle.scan()]
        stage.require(cache.name not in left, "the damaged entry is a miss, and is still counted")
        stage.require(cache.corrupt <= 1, f"one damaged entry was counted {cache.corrupt} times")
    stage.expect("cache.get, a second time,", cache.get("question"), answer)


def _read(kit: Kit, cache: Sealed, key: str) -> bytes:
    data = cache.stage.run(kit.suite.read_raw(cache.handle.backend, key))
    if not data:
        cache.stage.fail(f"read_raw returned {data!r} for an entry that is there: expected its stored bytes")
    return data


def _write(kit: Kit, cache: Sealed, key: str, data: bytes) -> None:
    cache.stage.note(f"a stranger writes {show(data)} over the entry")
    cache.stage.run(kit.suite.write_raw(cache.handle.backend, key, data))
