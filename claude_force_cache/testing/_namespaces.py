"""Checks of namespaces, and of several backends on the same one."""

from __future__ import annotations

from typing import Dict

from .._errors import EntryTooLargeError
from ._checks import check
from ._handle import Handle
from ._kit import Kit
from ._needs import able
from ._stage import Stage

# What is appended to a namespace: names that only differ in case, or in what a store may take for a separator.
_LONGEST = 64
_SUFFIXES = ("", "a", "A", "_", ".k", "-k", "_k", "k")


def _neighbours(stage: Stage) -> Dict[str, Handle]:
    suffixes = (*_SUFFIXES, *(end.rjust(_LONGEST - len(stage.namespace), "l") for end in "pq"))
    return {suffix: stage.handle(namespace=stage.namespace + suffix, name=f"namespace{suffix}") for suffix in suffixes}


# With a suffix before them, or a part of one, these can be taken for one another.
_KEYS = ("x", ".x", "k.x", "k-x", "k_x", ".k.x", "kx", "a")


@check()
def namespace_of_entries(kit: Kit) -> None:
    """Namespaces do not see each other's entries, however alike their names and keys are."""
    with kit.stage() as stage:
        handles = _neighbours(stage)
        for suffix, handle in handles.items():
            for key in _KEYS:
                value = f"{suffix} {key}".encode()
                stage.expect(f"add({key!r}) in namespace {suffix!r}", handle.add(key, value), True)
                stage.sum_up(f"add of {key!r} and others before, in namespaces that differ in their ends")
        for suffix, handle in handles.items():
            for key in _KEYS:
                stage.expect(f"get({key!r}) in {suffix!r}", handle.value(key), f"{suffix} {key}".encode(), about=key)
            stage.expect(f"scan of {suffix!r}", handle.scanned_keys(), sorted(_KEYS))
        stage.sum_up(f"{len(_KEYS)} entries are stored in each of {len(handles)} namespaces")
        stage.expect("delete", handles[""].delete("x"), True)
        for suffix in [*handles][1:]:
            stage.require(handles[suffix].get("x") is not None, f"a delete in one namespace deleted in {suffix!r}")


@check()
def namespace_of_the_account(kit: Kit) -> None:
    """Namespaces do not count each other's entries, and do not evict for each other."""
    with kit.stage(50) as stage:
        handles = _neighbours(stage)
        for number, handle in enumerate(handles.values()):
            handle.set("key", bytes(number))
        stage.sum_up(f"'key' is stored in each of {len(handles)} namespaces, 3 bytes long, 4 and so on")
        for number, handle in enumerate(handles.values()):
            stage.account(handle, 1, 3 + number)
        for handle in handles.values():
            stage.expect("set in a namespace that is not full", handle.set("more", bytes(20)), 0)
        for number, handle in enumerate(handles.values()):
            stage.account(handle, 2, 27 + number)


@check()
def namespace_of_clear(kit: Kit) -> None:
    """A clear takes its own namespace and nothing else, and counts no other's entries."""
    with kit.stage() as stage:
        handles = _neighbours(stage)
        for handle in handles.values():
            handle.set_many(dict.fromkeys(_KEYS, (b"value", None)))
        right = (len(_KEYS), sum(len(key) + 5 for key in _KEYS))
        left = dict(handles)
        for suffix in handles:
            stage.sum_up(f"{len(_KEYS)} entries are stored in each of {len(left)} namespaces")
            stage.expect(f"clear of {suffix!r}", left.pop(suffix).clear(), len(_KEYS))
            stage.account(handles[suffix], 0, 0)
            for other, handle in left.items():
                stage.expect(f"usage of {other!r} after a clear of {suffix!r}", tuple(handle.usage()), right)


@check(able("shared_between_processes"))
def shared_entries(kit: Kit) -> None:
    """Two backends on one namespace see the same entries, versions and account at once."""
    with kit.stage(100) as stage:
        one, two = stage.handle(name="one"), stage.handle(name="two")
        for handle in (one, two):
            stage.account(handle, 0, 0)
        one.set("a", bytes(9))
        stage.expect("two.get('a')", two.value("a"), bytes(9))
        stage.expect("two.add('a')", two.add("a", b""), False)
        for handle in (two, one):
            stage.account(handle, 1, 10)
        two.set("b", bytes(19))
        two.set("a", bytes(29))
        for handle in (one, two):
            stage.account(handle, 2, 50)
        stage.sum_up("'a' and 'b' are stored")
        version = one.version("a")
        stage.expect("the version that two reads", two.version("a"), version)
        two.set("a", b"new")
        stage.expect("one.get('a')", one.value("a"), b"new")
        stage.expect("one.delete('a') by a version out of date", one.delete("a", version=version), False)
        stage.sum_up("'a' and 'b' are stored, and two has read them")
        two.get_many(["a", "b"])
        stage.expect("one.delete('b')", one.delete("b"), True)
        stage.expect("two.get('b')", two.get("b"), None)
        stage.sum_up("'a' is stored")
        for verb in (one.set, one.add):
            with stage.raises(EntryTooLargeError, "an entry that cannot fit"):
                verb("d", bytes(100 * kit.capabilities.partitions))
            stage.expect("two.set after a refusal of one's", two.set("e", b""), 0)
        two.delete("e")
        one.set("c", bytes(4))
        stage.expect("two.clear()", two.clear(), 2)
        for handle in (one, two):
            stage.expect("get after clear", handle.get("c"), None)
            stage.account(handle, 0, 0)


@check(able("shared_between_processes"))
def shared_limit(kit: Kit) -> None:
    """The limit holds for what several backends store together in one namespace."""
    with kit.stage(60) as stage:
        handles = [stage.handle(name=name) for name in ("one", "two", "three")]
        for number in range(24):
            stage.sum_up(f"{number} entries were stored, by each of three in turn" if number else "")
            handles[number % 3].set(f"k{number}", bytes(5 + number))
            for handle in handles:
                stage.account(handle)
