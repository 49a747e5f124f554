"""Checks of versions: what was read is deleted and touched only while it is still there."""

from __future__ import annotations

from typing import Hashable, List, Optional

from ._checks import check
from ._kit import Kit
from ._needs import writable_time
from ._stage import Stage


@check()
def version_of_each_write(kit: Kit) -> None:
    """A version is the same at every read of one write, and another for every write, also after delete and clear."""
    for value, ttl in ((b"value", None), (b"worth comparing " * 8, 60.0)):
        with kit.stage() as stage:
            _write_again_and_again(stage, value, ttl)


def _write_again_and_again(stage: Stage, value: bytes, ttl: Optional[float]) -> None:
    handle = stage.handle()
    seen: List[Hashable] = []
    for turn in ("set", "set", "delete", "add", "delete", "set_many", "clear", "set"):
        if turn in {"delete", "clear"}:
            getattr(handle, turn)(*(["key"] if turn == "delete" else []))
            continue
        stage.sum_up(f"'key' was written {len(seen)} times" if seen else "")
        if turn == "set_many":
            handle.set_many({"key": (value, ttl)})
        else:
            getattr(handle, turn)("key", value, ttl=ttl)
        version = handle.version("key")
        stage.require(version is not None, "the version is None: nothing could be made conditional on it")
        stage.require(_has_hash(version), f"the version {version!r} cannot be hashed")
        stage.expect("the version at a second read", handle.version("key"), version)
        stage.expect("the version in a bulk read", handle.get_many(["key"])["key"].version, version)
        stage.require(version not in seen, f"the version {version!r} stands for two writes of the same key")
        seen.append(version)


@check(writable_time)
def version_after_expiry(kit: Kit) -> None:
    """A version does not come back with the successor of an expired entry."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("key", b"value", ttl=kit.tick)
        stale = handle.version("key")
        stage.advance(kit.tick + kit.late)
        stage.expect("delete of an expired version", handle.delete("key", version=stale), False)
        stage.expect("touch of an expired version", handle.touch("key", ttl=60, version=stale), False)
        stage.account(handle, 0, 0)
        handle.set("key", b"value")
        stage.expect("delete by the version before expiry", handle.delete("key", version=stale), False)
        stage.account(handle, 1, 8)


@check()
def version_guards_delete(kit: Kit) -> None:
    """A delete by a version that is out of date deletes nothing and leaves the account; by the current one, it does."""
    for write in ("set", "add", "set_many"):
        with kit.stage() as stage:
            handle = stage.handle()
            handle.set("key", b"old")
            stale = handle.version("key")
            if write == "add":
                handle.delete("key")
                handle.add("key", b"value")
            elif write == "set_many":
                handle.set_many({"key": (b"value", None)})
            else:
                handle.set("key", b"value")
            stage.sum_up("'key' is stored, and the version of an entry before it was read")
            for _ in range(2):
                stage.expect("delete by a version out of date", handle.delete("key", version=stale), False)
                stage.expect("get", handle.value("key"), b"value")
                stage.account(handle, 1, 8)
            current = handle.version("key")
            stage.expect("delete by the current version", handle.delete("key", version=current), True)
            stage.account(handle, 0, 0)
            stage.expect("a second delete by that version", handle.delete("key", version=current), False)
            stage.expect("delete of a missing key by a version", handle.delete("other", version=current), False)
            stage.account(handle, 0, 0)


@check()
def version_guards_touch(kit: Kit) -> None:
    """A touch by a version that is out of date changes nothing; by the current one, it gives the new life."""
    with kit.stage() as stage:
        handle = stage.handle()
        handle.set("key", b"old")
        stale = handle.version("key")
        handle.set("key", b"value")
        stage.expect("touch by a version out of date", handle.touch("key", ttl=60, version=stale), False)
        stage.expect("scan", [tuple(info) for info in handle.scan()], [("key", 8, None)])
        stage.sum_up("'key' is stored")
        handle.set("ends", b"", ttl=600)
        old = handle.version("ends")
        handle.set("ends", b"", ttl=600)
        stage.expect("touch by a version out of date", handle.touch("ends", ttl=None, version=old), False)
        lives = [info.ttl for info in handle.scan() if info.key == "ends"]
        stage.require(lives != [None], "the entry lives for ever after touch(ttl=None) by a version out of date")
        handle.delete("ends")
        current = handle.version("key")
        stage.expect("touch by the current version", handle.touch("key", ttl=600, version=current), True)
        lives = [info.ttl for info in handle.scan()]
        stage.require(lives != [None], "the entry lives for ever after touch(ttl=600)")
        stage.expect("get", handle.value("key"), b"value")
        stage.account(handle, 1, 8)
        stage.sum_up("'key' is stored, and its version was read")
        handle.delete("key")
        stage.expect("touch of what is gone", handle.touch("key", ttl=60, version=current), False)
        stage.account(handle, 0, 0)


@check()
def touch_keeps_the_value(kit: Kit) -> None:
    """A touch says whether there is an entry, and leaves its value and size as they are."""
    with kit.stage() as stage:
        handle = stage.handle()
        stage.expect("touch of a missing key", handle.touch("key", ttl=60), False)
        stage.account(handle, 0, 0)
        handle.set("key", b"value")
        for ttl in (600, None, 1000):
            stage.sum_up("'key' is stored")
            stage.expect("touch", handle.touch("key", ttl=ttl), True)
            stage.expect("get", handle.value("key"), b"value")
            stage.account(handle, 1, 8)
        stage.sum_up("'key' is stored, and was touched")
        version = handle.version("key")
        stage.expect("delete by the version that is read after a touch", handle.delete("key", version=version), True)
        stage.account(handle, 0, 0)


def _has_hash(version: Hashable) -> bool:
    try:
        hash(version)
    except TypeError:
        return False
    return True
