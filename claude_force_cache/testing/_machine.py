"""The state machine: every verb in any order, against the model, after every step."""

from __future__ import annotations

from typing import Dict, Hashable, List, Optional, Sequence, Tuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from .._backend import Entry
from .._errors import EntryTooLargeError
from ._checks import check
from ._kit import Kit
from ._model import Known, Model, is_life, size_of

__all__ = ["ClearingMachine", "Machine"]

# Few keys, short lives and small steps of the clock meet the most often.
KEYS = ("a", "key.b", "k" * 16)
LIMIT = 100
SECONDS = (1, 2, 3)
_LONG = 1000
_STEPS = 30

_keys = st.sampled_from(KEYS)
# At a limit of 100: some always fit together, some push others out, some only just fit or do not.
_lengths = st.one_of(
    st.integers(0, 40), st.sampled_from([LIMIT - 17, LIMIT - 16, LIMIT - 5, LIMIT - 1, LIMIT, LIMIT + 1])
)
# One of the versions that were read. What is drawn must not depend on what a store did: it may evict differently
# next time, and Hypothesis takes that for an error of the test.
_versions = st.integers(0, 5)
_lives = st.one_of(st.none(), st.sampled_from(SECONDS))


class Machine(RuleBasedStateMachine):
    """Drives a backend and the model side by side.

    ``clear`` is missing on purpose: it empties the state in which faults would show.
    """

    kit: Kit

    def __init__(self) -> None:
        super().__init__()
        capabilities = self.kit.capabilities
        self.partitions = capabilities.partitions
        self.timed = capabilities.injectable_clock
        self.stage = self.kit.new_stage(LIMIT)
        try:
            self.handle = self.stage.handle()
        except BaseException:
            self.stage.close()  # a machine that was never made is never torn down
            raise
        limit = self.stage.max_bytes or 0
        self.model = Model(limit, self.largest, capabilities.ttl_resolution, self.now)
        self.written = 0
        # Versions that were read, with the write that they belong to.
        self.versions: Dict[str, List[Tuple[Hashable, int]]] = {key: [] for key in KEYS}

    def teardown(self) -> None:
        self.stage.close()

    def now(self) -> float:
        return self.stage.clock.now if self.stage.clock else 0.0

    @property
    def share(self) -> int:
        """How many bytes each partition holds."""
        return self.model.max_bytes // self.partitions

    def largest(self, key: str) -> int:
        return self.kit.largest(key, LIMIT) or LIMIT

    def life(self, ttl: Optional[float]) -> Optional[float]:
        """Return a life that cannot end during the example where the clock cannot be set."""
        return ttl if self.timed or ttl is None else ttl * _LONG

    def value(self, length: int) -> bytes:
        """Return a value of that length which no write before had."""
        self.written += 1
        return bytes([self.written % 256]) * length

    @rule(key=_keys, length=_lengths, ttl=_lives)
    def set(self, key: str, length: int, ttl: Optional[float]) -> None:
        self.settle()
        value, ttl = self.value(length), self.life(ttl)
        self.model.put(key, value, ttl)
        if self.fits(key, value):
            self.check_evictions(self.handle.set(key, value, ttl=ttl), [key])
            return
        del self.model.entries[key]
        with self.stage.raises(EntryTooLargeError, f"set({key!r}) of {size_of(key, value)} bytes") as caught:
            self.handle.set(key, value, ttl=ttl)
        seen = (caught.error.size, caught.error.limit)
        self.stage.expect("(size, limit) of the error", seen, (size_of(key, value), self.largest(key)))

    @rule(items=st.dictionaries(_keys, st.tuples(_lengths, _lives)))
    def set_many(self, items: Dict[str, Tuple[int, Optional[float]]]) -> None:
        self.settle()
        given = {key: (self.value(length), self.life(ttl)) for key, (length, ttl) in items.items()}
        refused = [size_of(key, value) for key, (value, _) in given.items() if not self.fits(key, value)]
        crowded = False
        for key, (value, ttl) in given.items():
            self.model.put(key, value, ttl)
            if not self.fits(key, value):
                del self.model.entries[key]
            crowded = crowded or self.model.total > self.share
        written = [key for key, (value, _) in given.items() if self.fits(key, value)]
        if not refused:
            self.check_evictions(self.handle.set_many(given), written, bulk=True, crowded=crowded)
            return
        with self.stage.raises(EntryTooLargeError, "set_many with an entry that cannot fit") as caught:
            self.handle.set_many(given)
        self.stage.require(caught.error.size in refused, f"the error's size is {caught.error.size}: one of {refused}")
        self.check_evictions(None, written, bulk=True, crowded=crowded)

    @rule(key=_keys, length=_lengths, ttl=_lives)
    def add(self, key: str, length: int, ttl: Optional[float]) -> None:
        self.settle()
        value, ttl = self.value(length), self.life(ttl)
        if self.model.find(key) is not None:
            self.stage.expect(f"add({key!r}) of a key that is taken", self.handle.add(key, value, ttl=ttl), False)
        elif not self.fits(key, value):
            with self.stage.raises(EntryTooLargeError, f"add({key!r}) of {size_of(key, value)} bytes"):
                self.handle.add(key, value, ttl=ttl)
        else:
            self.model.put(key, value, ttl)
            self.stage.expect(f"add({key!r}) of a key that is free", self.handle.add(key, value, ttl=ttl), True)
            self.check_evictions(None, [key])

    @rule(key=_keys)
    def get(self, key: str) -> None:
        self.settle()
        self.check_read(key, self.handle.get(key))

    @rule(wanted=st.lists(_keys, max_size=4))
    def get_many(self, wanted: List[str]) -> None:
        self.settle()
        found = self.handle.get_many(wanted)
        self.stage.require(set(found) <= set(wanted), f"get_many({wanted}) returned {sorted(found)}")
        for key in dict.fromkeys(wanted):
            self.check_read(key, found.get(key))

    @rule(key=_keys)
    def delete(self, key: str) -> None:
        self.settle()
        there = self.model.entries.pop(key, None) is not None
        self.stage.expect(f"delete({key!r})", self.handle.delete(key), there)

    @rule(key=_keys, ttl=_lives)
    def touch(self, key: str, ttl: Optional[float]) -> None:
        self.settle()
        self.check_touch(key, self.life(ttl), None)

    @rule(which=_versions)
    def delete_by_version(self, which: int) -> None:
        seen = self.seen_versions()
        if not seen:
            return
        self.settle()
        key, version, write = seen[which % len(seen)]
        entry = self.model.entries.get(key)
        current = entry is not None and entry.write == write
        self.stage.expect(
            f"delete({key!r}) by a version that is {'current' if current else 'out of date'}",
            self.handle.delete(key, version=version),
            current,
        )
        if current:
            del self.model.entries[key]

    @rule(which=_versions, ttl=_lives)
    def touch_by_version(self, which: int, ttl: Optional[float]) -> None:
        seen = self.seen_versions()
        if not seen:
            return
        self.settle()
        key, version, write = seen[which % len(seen)]
        self.check_touch(key, self.life(ttl), (version, write))

    @precondition(lambda self: self.timed)
    @rule(seconds=st.sampled_from(SECONDS))
    def wait(self, seconds: int) -> None:
        self.stage.advance(seconds)

    @precondition(lambda self: self.kit.capabilities.persistent)
    @rule()
    def reopen(self) -> None:
        self.handle.close()
        self.handle = self.stage.handle()

    @invariant()
    def account_is_exact(self) -> None:
        self.settle()
        stage, model = self.stage, self.model
        usage, infos = self.handle.usage(), self.handle.scan()
        stage.expect("scan", sorted(info.key for info in infos), sorted(model.entries))
        sizes = {info.key: info.size for info in infos}
        stage.expect("the sizes in scan", sizes, {key: model.size(key) for key in model.entries})
        stage.expect("usage", tuple(usage), (len(model.entries), model.total))
        stage.require(usage.bytes <= model.max_bytes, f"usage is {usage.bytes} bytes, above {model.max_bytes}")
        for info in infos:
            expires = model.entries[info.key].expires
            if not is_life(info.ttl, expires, self.now(), self.kit.late, exact=self.timed):
                right = None if expires is None else expires - self.now()
                stage.fail(f"scan says that {info.key!r} lives for {info.ttl} s more: expected {right}")

    def settle(self) -> None:
        """Bring the model up to the present. What is in its last moments may be gone already, then for good."""
        self.model.purge()
        if self.model.in_doubt():
            gone = set(self.model.in_doubt()) - set(self.handle.scanned_keys())
            self.model.remove(gone)

    def fits(self, key: str, value: bytes) -> bool:
        return size_of(key, value) <= self.largest(key)

    def check_read(self, key: str, entry: Optional[Entry]) -> None:
        known = self.model.find(key)
        right = None if known is None else known.value
        self.stage.expect(f"the value of {key!r}", None if entry is None else entry.value, right)
        if entry is None or known is None:
            return
        for version, write in self.versions[key]:
            same = write == known.write
            if (version == entry.version) is not same:
                told = "the same write" if same else "two writes"
                self.stage.fail(f"versions {version!r} and {entry.version!r} of {key!r} are of {told}")
        if all(write != known.write for _, write in self.versions[key]):
            self.versions[key].append((entry.version, known.write))

    def check_touch(self, key: str, ttl: Optional[float], of: Optional[Tuple[Hashable, int]]) -> None:
        entry = self.model.entries.get(key)
        right = entry is not None and (of is None or entry.write == of[1])
        touched = self.handle.touch(key, ttl=ttl, version=of[0] if of else None)
        self.stage.expect(f"touch({key!r})", touched, right)
        if right and entry is not None:
            self.model.touch(key, ttl)
            # A touch may change the version, so what was read before says nothing any more.
            self.versions[key] = [seen for seen in self.versions[key] if seen[1] != entry.write]

    def check_evictions(
        self, reported: Optional[int], written: Sequence[str], *, bulk: bool = False, crowded: bool = False
    ) -> None:
        """Find out who had to go for a write, and judge it."""
        before = self.model.total
        gone = self.model.remove(set(self.model.entries) - set(self.handle.scanned_keys()))
        stage, after = self.stage, self.model.total
        # In bulk, one entry may be pushed out by the next, and be written itself after that.
        most = len(gone) + (len(written) if bulk else 0)
        if reported is not None and not len(gone) <= reported <= most:
            stage.fail(f"{len(gone)} entries were evicted ({sorted(gone)}), the result says {reported}")
        if not bulk:
            stage.require(not set(written) & set(gone), f"{written} is gone right after it was written")
        if not gone:
            return
        if self.partitions == 1:
            self.check_order(gone, written)
        if crowded:
            # Some had to go on the way, and a later entry may be smaller than what it replaced.
            return
        # Who shares a partition is not known. At the most all of them do.
        share = self.share
        stage.require(before > share, f"{sorted(gone)} went for a write that fits: {before} bytes of {share}")
        slack = self.kit.capabilities.eviction_slack * share
        last = max(size_of(key, entry.value) for key, entry in self.last_of(gone))
        if after + last <= share - slack:
            stage.fail(f"{sorted(gone)} went, and {after} bytes of {share} are left: more than needed")

    def last_of(self, gone: Dict[str, Known]) -> List[Tuple[str, Known]]:
        """Return who may have been the last victim."""
        newest = max(entry.used for entry in gone.values())
        exact = self.kit.capabilities.recency == 0
        return [item for item in gone.items() if not exact or item[1].used == newest]

    def check_order(self, gone: Dict[str, Known], written: Sequence[str]) -> None:
        recency = self.kit.capabilities.recency
        if recency is None:
            return
        spared = {key: entry for key, entry in self.model.entries.items() if key not in written}
        for key, victim in gone.items():
            for other, survivor in spared.items():
                apart = victim.used_at - survivor.used_at
                if victim.used > survivor.used if recency == 0 else self.timed and apart > recency:
                    self.stage.fail(f"{key!r} was evicted, and {other!r} was not, whose last use is longer ago")

    def seen_versions(self) -> List[Tuple[str, Hashable, int]]:
        """Return what was read, with the key and the write it belongs to."""
        return [(key, version, write) for key, pairs in self.versions.items() for version, write in pairs]


class ClearingMachine(Machine):
    """The same, with ``clear`` among the verbs."""

    @rule()
    def clear(self) -> None:
        self.settle()
        self.stage.expect("clear", self.handle.clear(), len(self.model.entries))
        self.model.remove(list(self.model.entries))


@check()
def stateful_agreement(kit: Kit) -> None:
    """After any sequence of verbs, every answer, the account, the lives and the survivors are those of the model."""
    kit.machine(Machine, _STEPS)


@check()
def stateful_agreement_with_clear(kit: Kit) -> None:
    """All agrees with the model also where clear is among the verbs, which tells how many live entries it took."""
    kit.machine(ClearingMachine, _STEPS)
