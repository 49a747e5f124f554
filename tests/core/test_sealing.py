from typing import Optional

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from claude_force_cache._sealing import AES, HMAC, CorruptEntryError, Life, Sealer, key_id_of
from claude_force_cache._secrets import derive_keys

KEY = "k" * 64
algorithms = pytest.mark.parametrize("algorithm", [HMAC, AES])


def make(
    algorithm: str = HMAC,
    *,
    secret: bytes = b"a secret of the test",
    namespace: str = "default",
    tenant: str = "",
    schema: str = "bytes 1",
    compress: bool = True,
) -> Sealer:
    keys = derive_keys(secret, algorithm=algorithm, namespace=namespace, tenant=tenant)
    return Sealer(keys, algorithm=algorithm, namespace=namespace, tenant=tenant, schema=schema, compress=compress)


@algorithms
@given(
    value=st.binary(max_size=2000) | st.binary(max_size=40).map(lambda part: part * 50),
    expires_at=st.none() | st.floats(1, 1e10),
    compress=st.booleans(),
)
def test_what_was_sealed_is_opened(algorithm: str, value: bytes, expires_at: Optional[float], compress: bool) -> None:
    sealer = make(algorithm, compress=compress)
    opened = sealer.open(KEY, sealer.seal(KEY, value, Life(1000.5, expires_at, expires_at)))
    assert (opened.value, opened.created_at) == (value, 1000.5)
    if expires_at is None:
        assert opened.expires_at is None
    else:
        assert opened.expires_at is not None
        assert expires_at - 0.001 <= opened.expires_at <= expires_at


@algorithms
@given(value=st.binary(max_size=800), labels=st.binary(max_size=800), kept=st.none() | st.floats(1, 1e10))
def test_labels_travel_beside_the_value(algorithm: str, value: bytes, labels: bytes, kept: Optional[float]) -> None:
    sealer = make(algorithm)
    opened = sealer.open(KEY, sealer.seal(KEY, value, Life(1.0, 2.0, kept), labels))
    assert (opened.value, opened.labels) == (value, labels)
    assert (opened.kept_until is None) == (kept is None)


@algorithms
@pytest.mark.parametrize("value", [b"", b"short", b"long and compressible " * 100])
def test_any_flip_of_any_bit_is_corrupt(algorithm: str, value: bytes) -> None:
    sealer = make(algorithm)
    sealed = sealer.seal(KEY, value, Life(1.0, 2.0, 2.0))
    for position in range(len(sealed)):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[position] ^= 1 << bit
            with pytest.raises(CorruptEntryError):
                sealer.open(KEY, bytes(damaged))


@algorithms
@given(st.data())
def test_any_other_bytes_are_corrupt(algorithm: str, data: st.DataObject) -> None:
    sealer = make(algorithm)
    sealed = sealer.seal(KEY, b"an answer that was paid for" * 30, Life(1.0, None, None))
    cut = data.draw(st.integers(0, len(sealed) - 1))
    inserted = data.draw(st.binary(max_size=20))
    removed = data.draw(st.integers(0, 20))
    damaged = sealed[:cut] + inserted + sealed[cut + removed :]
    if damaged != sealed:
        with pytest.raises(CorruptEntryError):
            sealer.open(KEY, damaged)


@algorithms
@given(st.binary(max_size=300))
def test_garbage_is_corrupt(algorithm: str, garbage: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        make(algorithm).open(KEY, garbage)


@algorithms
@pytest.mark.parametrize(
    "other",
    [{"secret": b"another secret of it"}, {"namespace": "other"}, {"tenant": "other"}, {"schema": "bytes 2"}],
    ids=lambda other: next(iter(other)),
)
def test_an_entry_is_bound_to_where_and_for_whom_it_was_made(algorithm: str, other: dict) -> None:
    sealed = make(algorithm, **other).seal(KEY, b"value", Life(1.0, None, None))
    with pytest.raises(CorruptEntryError):
        make(algorithm).open(KEY, sealed)


@algorithms
def test_an_entry_copied_under_another_key_is_corrupt(algorithm: str) -> None:
    sealer = make(algorithm)
    with pytest.raises(CorruptEntryError):
        sealer.open("l" * 64, sealer.seal(KEY, b"value", Life(1.0, None, None)))


def test_the_algorithm_is_never_taken_from_the_entry() -> None:
    for ours, theirs in [(HMAC, AES), (AES, HMAC)]:
        with pytest.raises(CorruptEntryError):
            make(ours).open(KEY, make(theirs).seal(KEY, b"value", Life(1.0, None, None)))
        assert make(ours).key_id != make(theirs).key_id


def test_a_header_that_belongs_to_another_algorithm_does_not_open_with_its_key_id_forged() -> None:
    sealed = make(AES).seal(KEY, b"value" * 10, Life(1.0, None, None))
    forged = sealed[:3] + make(HMAC).key_id + sealed[11:]
    with pytest.raises(CorruptEntryError, match="tag"):
        make(HMAC).open(KEY, forged)


def test_encrypted_entries_show_nothing_of_the_value_and_differ_each_time() -> None:
    sealer = make(AES, compress=False)
    one, other = (sealer.seal(KEY, b"the answer is 42" * 4, Life(1.0, None, None)) for _ in range(2))
    assert b"answer" not in one
    assert one != other


def test_a_bomb_made_by_somebody_with_the_secret_is_not_expanded() -> None:
    sealer = make()
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(50_000_000))
    honest = sealer.seal(KEY, b"x" * 600, Life(1.0, None, None))
    header = honest[:2] + b"\x01" + honest[3:53]
    body = header + bomb
    with pytest.raises(CorruptEntryError, match="length"):
        sealer.open(KEY, body + sealer._tag(KEY, body))


def test_compression_is_used_only_where_it_helps() -> None:
    long = b"a sentence that repeats itself. " * 100
    assert len(make().seal(KEY, long, Life(1.0, None, None))) < len(long) / 4
    assert len(make(compress=False).seal(KEY, long, Life(1.0, None, None))) > len(long)
    import os

    noise = os.urandom(4000)
    assert len(make().seal(KEY, noise, Life(1.0, None, None))) == 4000 + 53 + 32


def test_the_key_id_names_the_secret_without_the_namespace_of_others() -> None:
    sealed = make().seal(KEY, b"value", Life(1.0, None, None))
    assert key_id_of(sealed) == make().key_id
    assert key_id_of(b"garbage") is None
    assert key_id_of(b"\x00" * 100) is None


def test_keys_for_each_purpose_and_context_are_independent() -> None:
    contexts = [(alg, ns, tenant) for alg in (HMAC, AES) for ns in ("a", "ab") for tenant in ("", "b", "bc")]
    derived = [derive_keys(b"secret" * 4, algorithm=a, namespace=n, tenant=t) for a, n, t in contexts]
    everything = [key for keys in derived for key in (keys.lookup, keys.seal)]
    assert len(set(everything)) == len(everything)


@algorithms
def test_an_entry_that_expires_when_the_clock_began_does_expire(algorithm: str) -> None:
    sealer = make(algorithm)
    opened = sealer.open(KEY, sealer.seal(KEY, b"value", Life(0.0, 0.0005, 0.0005)))
    assert opened.expires_at == 0.001
