import marshal
import math
from collections import OrderedDict
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from claude_force_cache import Digest, InvalidKeyError, digest
from claude_force_cache._keys import encode_key, is_plain, spelling

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-300, 300)
    | st.floats(allow_nan=False)
    | text
    | st.binary(max_size=8)
    | st.binary(min_size=32, max_size=32).map(Digest)
)
parts = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
)


def identity(part: Any) -> Any:
    """A value that is equal for two parts only if they are the same, types included."""
    if isinstance(part, dict):
        return ("mapping", frozenset((name, identity(value)) for name, value in part.items()))
    if isinstance(part, (list, tuple)):
        return ("sequence", tuple(identity(item) for item in part))
    if isinstance(part, float):
        return ("float", part, math.copysign(1, part))
    return (type(part).__name__, part)


@given(parts, parts)
@example(["ab", "c"], ["a", "bc"])
@example({"a": None}, {})
@example([["a"], "b"], [["a", "b"]])
@example(1, True)
@example(1, 1.0)
@example("1", 1)
@example(b"x", "x")
@example(0.0, -0.0)
@example({"a": {"b": 1}}, {"a": {}, "b": 1})
def test_two_keys_have_the_same_encoding_only_if_they_are_the_same(one: Any, other: Any) -> None:
    assert (encode_key(one) == encode_key(other)) == (identity(one) == identity(other))


class _Text(str):
    pass


_DIGEST = b"x" * 32


@given(parts | st.lists(parts, max_size=3).map(tuple), parts | st.lists(parts, max_size=3).map(tuple))
@example([b"x"], [Digest(b"x" * 32)])
@example((Digest(_DIGEST), "a"), (_DIGEST, "a"))
@example((Digest(_DIGEST), "a"), b"\0" + _DIGEST + marshal.dumps(("a",), 2))
@example((Digest(_DIGEST), _DIGEST), (Digest(_DIGEST), Digest(_DIGEST)))
@example((Digest(_DIGEST), (Digest(_DIGEST), "a")), (Digest(_DIGEST), "a"))
@example((Digest(_DIGEST), [True]), (Digest(_DIGEST), [1]))
@example((Digest(_DIGEST),), Digest(_DIGEST))
@example([bytearray(b"x" * 32)], [Digest(b"x" * 32)])
@example({"a": _Text("b")}, {"a": "b"})
@example({1: "a"}, {"1": "a"})
@example([True, 1.0], [1, 1])
@example(OrderedDict(a=1), {"a": 1})
@example(("a",), ["a"])
@example([0.0], [-0.0])
@example([{"a"}], ["a"])
def test_a_key_that_is_spelt_as_a_plain_one_has_its_encoding(one: Any, other: Any) -> None:
    for known, key in ((one, other), (other, one), (one, one)):
        if is_plain(known) and spelling(known) is not None and spelling(known) == spelling(key):
            assert encode_key(known) == encode_key(key)


def test_the_request_of_an_agent_is_plain() -> None:
    key = (Digest(_DIGEST), [{"role": "user", "content": "a task"}])
    assert is_plain(key)
    assert spelling(key) == spelling((digest_like(_DIGEST), [{"role": "user", "content": "".join(["a ", "task"])}]))
    assert not is_plain([Digest(_DIGEST), "a task"])
    assert not is_plain((_DIGEST, "a task"))


def digest_like(data: bytes) -> Digest:
    return Digest(bytearray(data))


def test_a_key_is_spelt_by_its_values_and_not_by_its_objects() -> None:
    shared = "".join(["a long ", "text"])
    one = {"messages": [{"role": "user", "content": shared}, shared], "n": [300, 300]}
    other = {"messages": [{"role": "user", "content": "a long text"}, "".join(["a long", " text"])], "n": [300, 300]}
    assert is_plain(one)
    assert spelling(one) == spelling(other)


def test_what_cannot_be_spelt_is_no_error_here() -> None:
    loop: Any = []
    loop.append(loop)
    assert [spelling(part) for part in (object(), loop, IntEnum("Kind", "A").A)] == [None, None, None]  # type: ignore[attr-defined]


def test_whatever_can_be_encoded_can_be_looked_at_for_being_plain() -> None:
    key: Any = 0
    deepest = 0
    try:
        while deepest < 10_000:
            key = {"a": [key]}
            encode_key(key)
            assert is_plain(key)
            deepest += 1
    except InvalidKeyError:
        pass
    assert 50 < deepest < 10_000


@given(parts)
def test_an_encoding_is_no_prefix_of_another_so_that_keys_can_be_joined(part: Any) -> None:
    assert encode_key([part, part]) != encode_key([part]) + encode_key(part)
    assert not encode_key([part, None]).startswith(encode_key([part]))


def test_the_order_of_a_mapping_does_not_matter_and_that_of_a_sequence_does() -> None:
    assert encode_key(OrderedDict([("a", 1), ("b", 2)])) == encode_key({"b": 2, "a": 1})
    assert encode_key([1, 2]) != encode_key([2, 1])
    assert encode_key((1, 2)) == encode_key([1, 2])


def test_subclasses_of_plain_types_count_as_what_they_are() -> None:
    class Model(str, Enum):
        haiku = "claude-haiku"

    class Number(IntEnum):
        one = 1

    assert encode_key(Number.one) == encode_key(1)
    assert encode_key(Model.haiku) == encode_key("claude-haiku")


def test_a_digest_stands_for_its_part_without_being_it() -> None:
    assert encode_key([digest("definition")]) != encode_key(["definition"])
    assert encode_key(digest("a")) != encode_key(bytes(digest("a")))
    assert digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (float("nan"), "NaN"),
        ("\ud800", "lone surrogate at position 0"),
        ({"\udfff": 1}, "lone surrogate"),
        ({1: 2}, "key of type int"),
        ({1, 2}, "cannot hold a set"),
        (object(), "cannot hold a object"),
        pytest.param(10**5000, "thousands of digits", id="a long integer"),
    ],
)
def test_what_has_no_encoding_is_refused_with_the_reason(part: Any, reason: str) -> None:
    with pytest.raises(InvalidKeyError, match=reason):
        encode_key(["nested", part])


def test_a_key_that_holds_itself_is_refused() -> None:
    part: list = []
    part.append(part)
    with pytest.raises(InvalidKeyError, match="holds itself"):
        encode_key(part)


def test_the_encoding_is_the_one_that_stored_keys_were_made_with() -> None:
    # A change here changes every key in every store: it needs a new version in the derivation of keys.
    request = {"model": "m", "max_tokens": 4096, "messages": [None, True, 0.5, b"b"]}
    assert encode_key(request).hex() == (
        "4d0000000000000003"
        "53000000000000000a6d61785f746f6b656e734900000000000000" + "0434303936"
        "5300000000000000086d657373616765734c00000000000000044e54443fe0000000000000420000000000000001" + "62"
        "5300000000000000056d6f64656c5300000000000000016d"
    )
