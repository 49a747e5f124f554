"""Checks of capabilities: what is declared is so, and what is declared as a weakness is one."""

from __future__ import annotations

from dataclasses import asdict

from .._errors import ConfigurationError, EntryTooLargeError
from ._checks import check
from ._clock import ManualClock
from ._failure import ConformanceError
from ._kit import Kit
from ._needs import coarse_lives, settable_clock, unable

_MEGABYTES = 4 * 1000 * 1000
_LONGEST_TRIED = 2 * _MEGABYTES
# The store may turn out to take more than its author can know beforehand.
_AT_LEAST = ("max_value_bytes", "max_ttl")


@check()
def capabilities_as_declared(kit: Kit) -> None:
    """An opened backend has the capabilities that its suite declares; it may take larger values and longer lives."""
    with kit.stage() as stage:
        opened = asdict(stage.handle().backend.capabilities)
        for name, declared in asdict(kit.capabilities).items():
            seen = opened[name]
            if name in _AT_LEAST and declared is not None and (seen is None or seen >= declared):
                continue
            stage.expect(f"{name} of the opened backend, as the suite declares it,", seen, declared)


@check()
def capability_max_value_bytes(kit: Kit) -> None:
    """A value of the greatest declared length is stored under any key, and one byte more is refused."""
    with kit.stage() as stage:
        handle = stage.handle()
        longest = handle.backend.capabilities.max_value_bytes
        for key in ("k", "k" * 128):
            if longest is None or longest > _LONGEST_TRIED:
                # Too long to try; but a limit that nobody declared would be lower.
                handle.set(key, bytes(_MEGABYTES))
                stage.require(handle.value(key) == bytes(_MEGABYTES), f"{_MEGABYTES} bytes do not come back")
                stage.account(handle, 1, len(key) + _MEGABYTES)
            else:
                handle.set(key, bytes(longest))
                stage.require(handle.value(key) == bytes(longest), f"{longest} bytes do not come back")
                stage.account(handle, 1, len(key) + longest)
                with stage.raises(EntryTooLargeError, f"set of {longest + 1} bytes") as caught:
                    handle.set(key, bytes(longest + 1))
                seen = (caught.error.size, caught.error.limit)
                stage.expect("(size, limit) of the error", seen, (len(key) + longest + 1, len(key) + longest))
                stage.account(handle, 0, 0)
                with stage.raises(EntryTooLargeError, f"add of {longest + 1} bytes"):
                    handle.add(key, bytes(longest + 1))
            handle.delete(key)
            stage.account(handle, 0, 0)


@check(settable_clock, coarse_lives)
def capability_ttl_resolution(kit: Kit) -> None:
    """A resolution that is declared is needed: some entry outlives its life, as declared, and none by more."""
    with kit.stage() as stage:
        handle = stage.handle()
        latest = 0.0
        for quarters in range(1, 9):
            handle.set("key", b"value", ttl=quarters / 4 + 1)
            stage.advance(quarters / 4 + 1)
            late = 0.0
            while handle.get("key") is not None:
                stage.require(late < kit.late, f"an entry is there {late:g} s after its life: {kit.late:g} is declared")
                step = kit.late / 16
                stage.advance(step)
                late += step
            latest = max(latest, late)
        stage.sum_up("'key' is stored for 1.25 s, 1.5 s and so on, and is read from then on")
        stage.require(latest > 0, f"lives end exactly, and ttl_resolution={kit.late:g} is declared")


@check(unable("injectable_clock"))
def capability_injectable_clock(kit: Kit) -> None:
    """A backend that is declared to take no clock does not follow one: what it can do has to be declared."""
    with kit.stage() as stage:
        stage.clock = clock = ManualClock()
        try:
            handle = stage.handle()
        except ConfigurationError:
            return
        except ConformanceError as failure:
            if isinstance(failure.__cause__, ConfigurationError):
                return
            raise
        handle.set("key", b"value", ttl=1000)
        clock.advance(2000 + kit.late)
        stage.require(handle.get("key") is not None, "lives follow the clock that was given: declare injectable_clock")
