import asyncio
from typing import Any, Dict, List, Tuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from claude_force_cache import open_cache
from claude_force_cache._codecs import copy_of
from claude_force_cache._tier import _OVERHEAD, Tier

LIMIT = 3 * (_OVERHEAD + 1) + 60
MAX_AGE = 5.0


class TierMachine(RuleBasedStateMachine):
    """The tier against a list in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = Tier(LIMIT, MAX_AGE)
        self.now = 0.0
        self.model: List[Tuple[str, Dict[str, Any]]] = []

    def remove(self, key: str) -> None:
        self.model = [pair for pair in self.model if pair[0] != key]

    @rule(key=st.sampled_from("abcd"), length=st.integers(0, 120), life=st.none() | st.integers(1, 8))
    def put(self, key: str, length: int, life: int) -> None:
        expires_at = None if life is None else self.now + life
        self.tier.put(key, length, make=None, length=length, created_at=self.now, expires_at=expires_at, now=self.now)
        self.remove(key)
        size = 1 + length + _OVERHEAD
        if size <= LIMIT:
            end = self.now + MAX_AGE if expires_at is None else min(self.now + MAX_AGE, expires_at)
            self.model.append((key, {"value": length, "size": size, "end": end}))
            while sum(entry["size"] for _, entry in self.model) > LIMIT:
                self.model.pop(0)

    @rule(key=st.sampled_from("abcd"))
    def get(self, key: str) -> None:
        found = self.tier.get(key, self.now)
        entry = dict(self.model).get(key)
        if entry is None or self.now >= entry["end"]:
            assert found is None
            self.remove(key)
        else:
            assert found is not None
            assert found.value == entry["value"]
            self.remove(key)
            self.model.append((key, entry))

    @rule(key=st.sampled_from("abcd"), length=st.integers(0, 120))
    def exchange(self, key: str, length: int) -> None:
        found = self.tier._entries.get(key)
        if found is not None:
            self.tier.exchange(found, bytes(length), len)
            self.tier.exchange(found, b"somebody was faster", len)
            entry = dict(self.model)[key]
            entry.update(value=bytes(length), size=1 + length + _OVERHEAD)
            while sum(entry["size"] for _, entry in self.model) > LIMIT:
                self.model.pop(0)

    @rule(key=st.sampled_from("abcd"))
    def discard(self, key: str) -> None:
        self.tier.discard(key)
        self.remove(key)

    @rule()
    def clear(self) -> None:
        self.tier.clear()
        self.model = []

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def the_account_is_right_and_within_the_limit(self) -> None:
        assert self.tier._bytes == sum(entry["size"] for _, entry in self.model) <= LIMIT
        assert list(self.tier._entries) == [key for key, _ in self.model]


TestTier = TierMachine.TestCase
TestTier.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_clock_that_steps_back_makes_no_entry_fresh_for_longer() -> None:
    tier = Tier(LIMIT, MAX_AGE)
    tier.put("a", "value", make=None, length=1, created_at=1000.0, expires_at=None, now=1000.0)
    assert tier.get("a", 900.0) is None
    assert tier.get("a", 1000.0) is None


def test_what_the_store_did_not_take_ages_only_once_it_is_back() -> None:
    tier = Tier(LIMIT, MAX_AGE)

    def keep(key: str) -> None:
        tier.put(key, key, make=None, length=1, created_at=0.0, expires_at=100.0, now=0.0)

    keep("a")
    keep("b")
    tier.leave_alone("b")
    tier.leave_alone("nothing")
    tier.away_until(float("inf"))
    assert tier.get("a", MAX_AGE) is None, "others may have changed what is in the store"
    assert tier.get("b", 50.0) is not None
    tier.away_until(50.0)
    assert tier.get("b", 50.0 + MAX_AGE - 1) is not None
    assert tier.get("b", 50.0 + MAX_AGE) is None
    keep("b")
    tier.leave_alone("b")
    tier.away_until(float("inf"))
    assert tier.get("b", 100.0) is None, "its own life is over"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(value=_JSON)
@settings(max_examples=200, deadline=None)
def test_everybody_gets_what_was_stored_and_no_one_elses(value: Any) -> None:
    """The first reader decodes it; those after get copies that are made another way, and so do many at once."""

    async def main() -> None:
        async with open_cache("memory://", tier_bytes=1_000_000) as cache:
            written = [await cache.get_or_compute("key", give)]
            written += [await cache.get("key") for _ in range(3)]
            crowd = await asyncio.gather(*(cache.get_or_compute("other", give) for _ in range(3)))
            # What repr shows is types, order, the sign of zero and every digit.
            assert {repr(each) for each in (*written, *crowd)} == {repr(value)}
            if isinstance(value, (list, dict)):
                assert len({id(each) for each in (*written, *crowd[1:])}) == len(written) + len(crowd) - 1

    async def give() -> Any:
        await asyncio.sleep(0)
        return value

    asyncio.run(main())


def test_what_lies_too_deep_to_be_copied_has_no_copy() -> None:
    value: Any = "the heart of it"
    for _ in range(5000):
        value = [value]
    assert copy_of(value) is None
