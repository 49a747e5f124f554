"""Checks of lives: when an entry ends, to the second, and what begins and does not begin a new life."""

from __future__ import annotations

import time
from typing import Callable, Dict, Hashable, List, Tuple

from hypothesis import strategies as st

from ._checks import check
from ._handle import Handle
from ._kit import Kit
from ._needs import able, settable_clock, writable_time
from ._stage import Stage

_QUARTER = 0.25
# Above what is lost where times are added and rounded to the millisecond.
_FINE = 0.002
_LONG = 1000.0
_YEARS = 100 * 365.25 * 24 * 3600
_PATIENCE = 15.0
_POLL = 0.02


@check(settable_clock)
def ttl_edge(kit: Kit) -> None:
    """An entry is live up to the last moment of its life, and gone when it ends, later only by the resolution."""

    @kit.examples(quarters=st.one_of(st.integers(1, 12), st.integers(1, 40_000)))
    def edges(quarters: int) -> None:
        ttl = quarters * _QUARTER
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set("key", b"value", ttl=ttl)
            stage.advance(ttl - _QUARTER)
            stage.require(handle.get("key") is not None, f"a life of {ttl} s ended {_QUARTER} s early")
            stage.account(handle, 1, 8)
            stage.advance(_QUARTER + kit.late)
            stage.require(handle.get("key") is None, f"an entry is there {kit.late:g} s after its life of {ttl} s")
            stage.account(handle, 0, 0)

    @kit.examples(milliseconds=st.integers(5, 5000))
    def fine_edges(milliseconds: int) -> None:
        ttl = milliseconds / 1000
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set("key", b"value", ttl=ttl)
            stage.advance(ttl - _FINE)
            stage.require(handle.get("key") is not None, f"a life of {ttl} s ended {_FINE} s early")
            stage.advance(2 * _FINE + kit.late)
            stage.require(handle.get("key") is None, f"an entry is there {_FINE + kit.late:g} s after {ttl} s of life")


@check(settable_clock)
def ttl_in_scan(kit: Kit) -> None:
    """A scan tells how long each entry has to live, and that one without an end has none."""

    @kit.examples(quarters=st.integers(2, 4000), passed=st.integers(0, 4000))
    def lives(quarters: int, passed: int) -> None:
        ttl, gone = quarters * _QUARTER, min(passed, quarters - 1) * _QUARTER
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set("ends", b"value", ttl=ttl)
            handle.set("stays", b"value")
            stage.advance(gone)
            left = {info.key: info.ttl for info in handle.scan()}
            stage.expect("the life of an entry without an end", left.get("stays", 0.0), None)
            seen = left.get("ends")
            if seen is None or not -0.001 <= seen - (ttl - gone) <= kit.late + 0.001:
                stage.fail(f"scan says that {seen} s are left: expected {ttl - gone}")


@check(writable_time)
def ttl_of_every_verb(kit: Kit) -> None:
    """An expired entry is gone for every verb: not found, deleted, touched, counted, scanned or cleared."""
    verbs: Dict[str, Tuple[Callable[[Handle, Hashable], object], object]] = {
        "get": (lambda handle, _: handle.get("key"), None),
        "get_many": (lambda handle, _: handle.get_many(["key", "other"]), {}),
        "delete": (lambda handle, _: handle.delete("key"), False),
        "delete by version": (lambda handle, version: handle.delete("key", version=version), False),
        "touch": (lambda handle, _: handle.touch("key", ttl=60), False),
        "touch by version": (lambda handle, version: handle.touch("key", ttl=60, version=version), False),
        "add": (lambda handle, _: handle.add("key", b"new"), True),
        "scan": (lambda handle, _: handle.scanned_keys(), []),
        "usage": (lambda handle, _: tuple(handle.usage()), (0, 0)),
        "clear": (lambda handle, _: handle.clear(), 0),
    }
    with kit.stage() as stage:
        # Each verb is the first to meet an expired entry, in a namespace of its own: one may clear it away for all.
        met = []
        for number, (name, (verb, right)) in enumerate(verbs.items()):
            handle = stage.handle(namespace=f"{stage.namespace}-{number}")
            handle.set("key", b"value", ttl=kit.tick)
            met.append((name, verb, right, handle, handle.version("key")))
        stage.advance(kit.tick + kit.late)
        for name, verb, right, handle, version in met:
            stage.sum_up(f"'key' is stored for {kit.tick:g} s, and {kit.tick + kit.late:g} s pass")
            stage.expect(f"{name} of an expired entry", verb(handle, version), right)
            stage.account(handle, *((1, 6) if name == "add" else (0, 0)))


@check()
def ttl_far_future(kit: Kit) -> None:
    """The longest life that is declared is given, a hundred years where none is, and does not end at once."""
    with kit.stage() as stage:
        handle = stage.handle()
        longest = handle.backend.capabilities.max_ttl or _YEARS
        for ttl in (longest, longest / 2, 40 * 24 * 3600.0, 20 * 24 * 3600.0):
            if ttl > longest:
                continue
            handle.clear()
            stage.sum_up()
            handle.set("set", b"value", ttl=ttl)
            handle.add("add", b"value", ttl=ttl)
            handle.set("touched", b"value")
            handle.touch("touched", ttl=ttl)
            for key in ("set", "add", "touched"):
                stage.expect(f"get({key!r}) at once", handle.value(key), b"value", about=key)
            if stage.clock is not None:
                stage.advance(ttl - 1)
                for key in ("set", "add", "touched"):
                    stage.expect(f"get({key!r}) a second before its end", handle.value(key), b"value", about=key)
                stage.advance(1 + kit.late)
                for key in ("set", "add", "touched"):
                    stage.expect(f"get({key!r}) after its end", handle.get(key), None, about=key)
                stage.account(handle, 0, 0)
            else:
                stage.account(handle, 3, 28)


@check(writable_time)
def ttl_renewed_by_overwrite(kit: Kit) -> None:
    """An overwrite begins a new life, longer or shorter than the one before."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("longer", b"value", ttl=kit.tick)
        handle.set("longer", b"value", ttl=_LONG)
        handle.set("shorter", b"value", ttl=_LONG)
        handle.set("shorter", b"value", ttl=kit.tick)
        handle.set("began", b"value")
        handle.set("began", b"value", ttl=kit.tick)
        stage.advance(kit.tick + kit.late)
        stage.expect("get of what was overwritten with a longer life", handle.value("longer"), b"value", about="longer")
        for key in ("shorter", "began"):
            stage.expect("get of what was overwritten with a shorter life", handle.get(key), None, about=key)
        stage.account(handle, 1, 11)


@check(writable_time)
def ttl_dropped_by_overwrite(kit: Kit) -> None:
    """An overwrite without an end forgets the life of its predecessor."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("set", b"value", ttl=kit.tick)
        handle.set("set", b"value")
        handle.set("bulk", b"value", ttl=kit.tick)
        handle.set_many({"bulk": (b"value", None)})
        handle.set("deleted", b"value", ttl=kit.tick)
        handle.delete("deleted")
        handle.add("deleted", b"value")
        stage.advance(2 * kit.tick + kit.late)
        for key in ("set", "bulk", "deleted"):
            stage.expect(f"get({key!r}), overwritten with ttl=None,", handle.value(key), b"value", about=key)
        stage.account(handle, 3, 29)


@check(writable_time)
def ttl_not_renewed_by_reading(kit: Kit) -> None:
    """Reads, scans and an add that finds the key taken do not prolong a life."""
    with kit.stage() as stage:
        handle = stage.handle()
        life = 2 * kit.tick + kit.late
        for key in ("get", "get_many", "add"):
            handle.set(key, b"value", ttl=life)
        stage.advance(kit.tick)
        handle.get("get")
        handle.get_many(["get_many"])
        handle.add("add", b"other", ttl=_LONG)
        handle.scan()
        stage.advance(kit.tick + 2 * kit.late)
        for key in ("get", "get_many", "add"):
            stage.expect(f"get({key!r}) after its life", handle.get(key), None, about=key)
        stage.account(handle, 0, 0)


@check(writable_time)
def ttl_set_by_touch(kit: Kit) -> None:
    """A touch begins a new life from now: longer, shorter, or without an end."""
    with kit.stage() as stage:
        handle = stage.handle()
        short, longer = kit.tick, 2 * kit.tick
        for key, before, after in (("longer", longer, _LONG), ("shorter", _LONG, short), ("ever", longer, None)):
            handle.set(key, b"value", ttl=before)
            stage.expect(f"touch({key!r})", handle.touch(key, ttl=after), True)
        handle.set("guarded", b"value")
        version = handle.version("guarded")
        stage.expect("touch by version", handle.touch("guarded", ttl=kit.tick, version=version), True)
        stage.advance(2 * kit.tick + kit.late)
        there = handle.scanned_keys()
        for key in ("longer", "shorter", "ever", "guarded"):
            right = key in {"longer", "ever"}
            stage.expect(f"whether {key!r} is there after that", key in there, right, about=key)
        stage.account(handle, 2, 20)


@check(settable_clock)
def ttl_when_the_clock_is_set_back(kit: Kit) -> None:
    """An entry that was found to be over does not come back when the clock is set back."""
    finders: Dict[str, Callable[[Handle], object]] = {
        "get": lambda handle: handle.get("key"),
        "get_many": lambda handle: handle.get_many(["key"]),
        "usage": lambda handle: handle.usage(),
        "touch": lambda handle: handle.touch("key", ttl=60),
        "delete": lambda handle: handle.delete("key"),
        "clear": lambda handle: handle.clear(),
    }
    for name, find in finders.items():
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set("key", b"value", ttl=5)
            stage.advance(5 + kit.late)
            find(handle)
            stage.note(f"{name} finds nothing")
            stage.advance(-4 - kit.late)
            stage.expect("get", handle.get("key"), None)
            stage.account(handle, 0, 0)


@check(able("persistent"), settable_clock)
def ttl_across_reopening(kit: Kit) -> None:
    """A life goes on while the backend is closed: what ended meanwhile is gone, and stays gone."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("short", b"value", ttl=2)
        handle.set("long", b"value", ttl=10)
        stage.advance(1)
        handle.close()
        stage.advance(1 + kit.late)
        handle = stage.handle()
        stage.expect("get of what ended while the backend was closed", handle.get("short"), None, about="short")
        stage.expect("get of what is still live", handle.value("long"), b"value")
        stage.account(handle, 1, 9)
        stage.sum_up("'long' is stored for 10 s, of which 2 have passed")
        handle.close()
        stage.advance(8)
        handle = stage.handle()
        stage.account(handle, 0, 0)
        stage.advance(-9 - kit.late)
        stage.expect("scan after the clock was set back", handle.scanned_keys(), [])


@check()
def ttl_by_the_stores_own_clock(kit: Kit) -> None:
    """Without a clock that is given, lives end in real time: never early, and not much later than declared."""
    with kit.stage(real_time=True) as stage:
        handle = stage.handle()
        life = 0.25 if kit.late < 1 else 1.0
        for key in ("shortened", "kept"):
            handle.set(key, b"value", ttl=_LONG)
        for key in ("dropped", "prolonged", "touched"):
            handle.set(key, b"value", ttl=life)
        handle.set("touched", b"value")
        handle.set("dropped", b"value")
        handle.set("prolonged", b"value", ttl=_LONG)
        ending = ["set", "add", "bulk", "shortened", "touched"]
        began = time.monotonic()
        handle.set("set", b"value", ttl=life)
        handle.add("add", b"value", ttl=life)
        handle.set_many({"bulk": (b"value", life)})
        handle.set("shortened", b"value", ttl=life)
        handle.touch("touched", ttl=life)
        _wait_for_end(stage, ending, began, life, kit.late)
        for key in ending:
            stage.expect(f"delete({key!r}) after its life", handle.delete(key), False, about=key)
        for key in ("dropped", "kept", "prolonged"):
            stage.expect(f"get({key!r}), whose life goes on,", handle.value(key), b"value", about=key)
        stage.account(handle, 3, 35)


def _wait_for_end(stage: Stage, keys: List[str], began: float, life: float, late: float) -> None:
    """Poll until none of the entries is there, and fail if one ends early or does not end."""
    (handle,) = stage.handles
    shown = len(stage.steps)
    while True:
        found = handle.get_many(keys)
        del stage.steps[shown:]
        passed = time.monotonic() - began
        if passed < life:
            for key in keys:
                if key not in found:
                    stage.fail(f"{key!r} ended early: {passed:.3f} s after a life of {life:g} s began", key)
        if not found:
            return
        # A machine under load may be late by itself, so the bound is a generous one.
        limit = life + late + _PATIENCE
        if passed > limit:
            late_one = min(found)
            stage.fail(f"{late_one!r} is there {passed:.1f} s after a life of {life:g} s began", late_one)
        time.sleep(_POLL)
