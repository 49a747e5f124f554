"""What is fuzzed: each target takes any bytes, and fails if they bring about what may not happen.

A target whose name begins with ``forge`` has no secret, as an attacker who can write to the store: whatever it
takes for genuine must be what was sealed. One whose name begins with ``signed`` has the secret, as a later
version of this package or a careless colleague: what it is given is genuine and may be nonsense all the same.
The others read texts and replies. All may fail only with the error that they declare.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import socket
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from claude_force_backends._memcached_server import Server, _Bytes, _Wire
from claude_force_backends.redis import _entry
from claude_force_cache import (
    BackendUnavailableError,
    BackendURL,
    ConfigurationError,
    InvalidKeyError,
    InvalidURLError,
    InvalidValueError,
    JSONCodec,
    Option,
    open_cache,
    parse_boolean,
    parse_duration,
    parse_size,
)
from claude_force_cache._backend import Entry
from claude_force_cache._chunks import Limits, Manifest, cut
from claude_force_cache._keys import encode_key
from claude_force_cache._lease import Lease, Leases
from claude_force_cache._sealing import AES, HMAC, CorruptEntryError, Life, Sealer
from claude_force_cache._secrets import derive_keys
from claude_force_cache._tags import pack_epochs, unpack_epochs
from claude_force_orchestrator import ProjectError
from claude_force_orchestrator._answer import AnswerCodec, read_answer
from claude_force_orchestrator._errors import InvalidAnswerError
from claude_force_orchestrator._project import Project

__all__ = ["TARGETS", "Target"]

SECRET = b"a secret of the fuzzer"
PASSWORD = "pass-of-the-fuzzer"
NAME = "k" * 64
OTHER = "l" * 64
NOW = 1_800_000_000.0
EPOCHS = {"agent:reviewer": b"e" * 16, "model:m": b"f" * 16}


class Target:
    """Something to fuzz.

    :param check: takes the bytes; raises what it should not.
    :param seeds: bytes to begin with, so that mutations start from what has an effect.
    :param words: byte strings that the format knows.
    """

    def __init__(self, check: Callable[[bytes], object], seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> None:
        self.check = check
        self.seeds = list(seeds)
        self.words = list(words)


def _sealer(algorithm: str, *, secret: bytes = SECRET, tenant: str = "", namespace: str = "default") -> Sealer:
    keys = derive_keys(secret, algorithm=algorithm, namespace=namespace, tenant=tenant)
    return Sealer(keys, algorithm=algorithm, namespace=namespace, tenant=tenant, schema="json 1", compress=True)


_LIFE = Life(NOW, NOW + 60, NOW + 90)
_VALUES = (b"", b'"an answer"', b'["a long answer"]' * 60, os.urandom(700))


def _forge(algorithm: str) -> Target:
    """Whatever is accepted must be, to the byte, what was sealed under this very name."""
    sealer = _sealer(algorithm)
    genuine: Dict[bytes, Tuple[bytes, bytes]] = {}
    for value in _VALUES:
        for labels in (b"", pack_epochs(EPOCHS)):
            genuine[sealer.seal(NAME, value, _LIFE, labels)] = (value, labels)
    whole = sealer.seal(NAME, bytes(5000), _LIFE)
    genuine[whole] = (bytes(5000), b"")
    stand_in = sealer.seal_stand_in(NAME, whole, Manifest(whole[-16:], len(whole), 3).pack())
    # What an attacker finds in the store beside them: other keys, tenants, namespaces, secrets, algorithms.
    strangers = [
        sealer.seal(OTHER, b"another answer", _LIFE),
        _sealer(algorithm, tenant="other").seal(NAME, b"another answer", _LIFE),
        _sealer(algorithm, namespace="other").seal(NAME, b"another answer", _LIFE),
        _sealer(algorithm, secret=b"another secret of it").seal(NAME, b"another answer", _LIFE),
        _sealer(AES if algorithm == HMAC else HMAC).seal(NAME, b"another answer", _LIFE),
    ]

    def check(data: bytes) -> None:
        try:
            opened = sealer.open(NAME, data)
        except CorruptEntryError:
            assert data not in genuine, "an entry that was sealed is taken for a corrupt one"
        else:
            assert genuine.get(data) == (opened.value, opened.labels), "a forgery was accepted"
            assert (opened.created_at, opened.expires_at, opened.kept_until) == tuple(_LIFE)
        try:
            payload = sealer.open_stand_in(NAME, data)
        except CorruptEntryError:
            assert data != stand_in
        else:
            assert data == stand_in, "a forged stand-in was accepted"
            assert Manifest.unpack(payload).length == len(whole)

    return Target(check, [*genuine, *strangers, stand_in], [entry[:53] for entry in genuine])


def _signed(algorithm: str) -> Target:
    """Contents that are nonsense under a tag that is right: opened whole, or corrupt, within the declared memory."""
    sealer = _sealer(algorithm)
    codec = AnswerCodec()
    fields = struct.Struct(">BQQQIH")

    def check(data: bytes) -> None:
        if len(data) < fields.size:
            return
        coding, created, expires, kept, length, labels = fields.unpack_from(data)
        payload = data[fields.size :]
        if coding & 0x80:  # most lengths are wrong, so half of them are put right
            length, coding = len(payload), coding & 0x7F
        sealed = sealer._lock(NAME, coding, (created, expires, kept), (length & 0xFFFFF, labels), payload)
        try:
            opened = sealer.open(NAME, sealed)
        except CorruptEntryError:
            pass
        else:
            assert len(opened.value) + len(opened.labels) == length & 0xFFFFF
            for decode in (unpack_epochs, JSONCodec().decode, codec.decode):
                try:
                    decode(opened.labels if decode is unpack_epochs else opened.value)
                except ValueError:
                    pass
        try:
            manifest = Manifest.unpack(sealer.open_stand_in(NAME, sealed))
        except CorruptEntryError:
            return
        assert len(manifest.names(NAME)) == manifest.parts <= 4096

    def seed(coding: int, payload: bytes, length: int, labels: int = 0) -> bytes:
        return fields.pack(coding, 1, 2, 3, length, labels) + payload

    packed = pack_epochs(EPOCHS)
    sealed = sealer.seal(NAME, b"x" * 900, _LIFE)
    compressed = sealed[53 : -sealer._tag_length] if algorithm == HMAC else b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00hello"
    return Target(
        check,
        [
            seed(0x80, b'{"a": [1, 2]}', 0),
            seed(0x80, packed + b'"text"', 0, len(packed)),
            seed(1, compressed, 900),
            seed(0x82, Manifest(b"m" * 16, 5000, 3).pack(), 0),
            seed(0x80, codec.encode(_ANSWERS[0]), 0),
        ],
        [b"\x28\xb5\x2f\xfd", packed, b"null"],
    )


def _forge_lease() -> Target:
    """No record makes anybody wait that was not stamped for this name, and none for longer than a lease lives."""
    sealer_stamp = _stamp(SECRET)
    leases = Leases(
        None,  # type: ignore[arg-type]  # it is not asked
        seconds=6.0,
        patience=0.25,
        call=None,  # type: ignore[arg-type]  # likewise
        stamp=sealer_stamp,
        clock=lambda: NOW,
    )
    name = NAME + ".lease"
    genuine = [leases._record(Lease(leases, name)) for _ in range(3)]
    for_ever = struct.pack(">16sQ", b"t" * 16, 2**64 - 1)
    genuine.append(for_ever + sealer_stamp(name.encode() + for_ever))  # by somebody whose clock is far ahead
    strangers = [
        leases._record(Lease(leases, OTHER + ".lease")),
        Leases(None, seconds=6.0, patience=0.25, call=None, stamp=_stamp(b"other"), clock=lambda: NOW)._record(  # type: ignore[arg-type]
            Lease(leases, name)
        ),
    ]

    def check(data: bytes) -> None:
        held = leases._held(name, data)
        assert held.until <= NOW + 6.0, "a lease that lasts longer than a lease"
        if held.until > NOW:
            assert data in genuine, "a forged lease was accepted"

    return Target(check, [*genuine, *strangers])


def _stamp(secret: bytes) -> Callable[[bytes], bytes]:
    from claude_force_cache._vault import _Ring

    settings: Any = SimpleNamespace(encrypt=False, namespace="default", tenant="", compress=True)
    return _Ring(secret, settings, "json 1").stamp


def _forge_parts() -> Target:
    """A value in parts is put together as it was cut, or not at all."""
    sealer = _sealer(HMAC)
    value = bytes(random.Random(1).getrandbits(8) for _ in range(6000))
    sealed = sealer.seal(NAME, value, _LIFE)
    whole = cut(NAME, sealed, Limits(1024, None, None, 1024))
    names = whole.manifest.names(NAME)
    other = cut(NAME, sealer.seal(NAME, value[::-1], _LIFE), Limits(1024, None, None, 1024))

    def check(data: bytes) -> None:
        # The first byte of each step says what happens to a part, the second to which one.
        parts = dict(whole.parts)
        rest = data
        while len(rest) >= 2:
            deed, at, rest = rest[0] % 5, rest[1] % len(names), rest[2:]
            part = parts[names[at]]
            if deed == 0:
                parts[names[at]] = part[: len(rest) * 7]
            elif deed == 1:
                parts[names[at]] = part + rest
            elif deed == 2 and part and rest:
                parts[names[at]] = part[:-1] + rest[:1]
            elif deed == 3:
                parts[names[at]] = parts[names[at - 1]]
            else:
                parts[names[at]] = other.parts[other.manifest.names(NAME)[at]]
        try:
            joined = whole.manifest.join(NAME, {part: Entry(data, b"") for part, data in parts.items()})
            opened = sealer.open(NAME, joined)
        except CorruptEntryError:
            assert parts != whole.parts
        else:
            assert opened.value == value, "parts of something else were accepted"

    return Target(check, [b"", b"\x00\x01", b"\x01\x02more", b"\x02\x00x", b"\x03\x01", b"\x04\x02\x04\x03"])


def _manifest(data: bytes) -> None:
    try:
        manifest = Manifest.unpack(data)
    except CorruptEntryError:
        return
    assert manifest.pack() == data
    assert 0 < manifest.parts <= 4096
    assert manifest.length < 1 << 29


def _url(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape").replace("PASSWORD", PASSWORD)
    try:
        url, options = BackendURL.parse(text)
    except InvalidURLError as error:
        login = text.partition("://")[2].rpartition("@")[0]
        assert PASSWORD not in str(error) or PASSWORD not in login or text.count(PASSWORD) > 1, "it shows a password"
        return
    assert BackendURL.parse(str(url))[0] == (
        url if url.password is None else BackendURL(url.scheme, url.hosts, url.path, url.username, "***")
    )
    if PASSWORD in (url.password or "") and PASSWORD not in f"{url.scheme}{url.hosts}{url.path}{url.username}":
        assert PASSWORD not in f"{url} {url!r}", "it shows a password"
    assert all(isinstance(value, str) for value in options.values())


def _source(data: bytes) -> None:
    """A cache on any URL or table is refused with an error of the configuration, or made; it is not opened."""
    text = data.decode("utf-8", "surrogateescape")
    source: Any = text
    if text.startswith("{"):
        try:
            source = json.loads(text)
        except (ValueError, RecursionError):
            return
    scheme = source.partition(":")[0] if isinstance(source, str) else source.get("backend", source.get("url"))
    if isinstance(scheme, str) and scheme.partition(":")[0] not in {"memory", "disk", "redis", "memcached"}:
        return  # names are looked up among the installed distributions, which is slow and not a parser
    try:
        open_cache(source, secrets=SECRET)
    except ConfigurationError as error:
        assert "\n" not in str(error)


def _settings(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (parse_size, parse_duration, parse_boolean):
        try:
            value = parse(text)
        except ValueError:
            continue
        except OverflowError:
            raise AssertionError(f"{parse.__name__} overflows") from None
        assert value >= 0
    for kind in (int, float, str, parse_size, parse_duration, parse_boolean):
        option = Option("name", kind, None, "help", minimum=None if kind is str else 0, secret=True)
        given: Any = text
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            pass
        try:
            value = option.convert(given)
        except ConfigurationError as error:
            assert len(text) < 8 or text not in str(error), "it shows a secret option"
        else:
            assert not isinstance(value, float) or math.isfinite(value)


def _keys(data: bytes) -> None:
    """Different keys have different encodings, for each is read back as what it was."""
    part = _build(iter(data), 0)
    try:
        encoded = encode_key(part)
    except InvalidKeyError:
        return
    read, rest = _read_key(encoded)
    assert not rest
    assert _same(read, part), "an encoding that stands for something else"


def _build(data: Iterator[int], depth: int) -> Any:
    kind = next(data, 0)
    count = min(next(data, 0), 12)
    makers: List[Callable[[], Any]] = [
        lambda: None,
        lambda: bool(count % 2),
        lambda: _text(data, count),
        lambda: bytes(next(data, 0) for _ in range(count)),
        lambda: int.from_bytes(bytes(next(data, 0) for _ in range(count)), "big", signed=True),
        lambda: struct.unpack(">d", bytes(next(data, 0) for _ in range(8)))[0],
        lambda: [_build(data, depth + 1) for _ in range(count % 6)],
        lambda: {_text(data, count): _build(data, depth + 1) for _ in range(count % 6)},
    ]
    return makers[kind % (8 if depth < 40 else 6)]()


def _text(data: Iterator[int], count: int) -> str:
    return bytes(next(data, 0) for _ in range(count)).decode("utf-8", "surrogateescape")


def _read_key(data: bytes) -> Tuple[Any, bytes]:
    kind, rest = data[:1], data[1:]
    if kind in {b"N", b"T", b"F"}:
        return {b"N": None, b"T": True, b"F": False}[kind], rest
    if kind == b"D":
        return struct.unpack(">d", rest[:8])[0], rest[8:]
    length, rest = int.from_bytes(rest[:8], "big"), rest[8:]
    if kind in {b"S", b"B", b"I"}:
        part, rest = rest[:length], rest[length:]
        assert len(part) == length
        return {b"S": bytes.decode, b"B": bytes, b"I": int}[kind](part), rest  # type: ignore[operator]
    items: List[Any] = []
    for _ in range(length if kind == b"L" else 2 * length):
        item, rest = _read_key(rest)
        items.append(item)
    return items if kind == b"L" else dict(zip(items[::2], items[1::2])), rest


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return struct.pack(">d", one) == struct.pack(">d", other) if isinstance(one, float) else bool(one == other)


def _message(text: str) -> bytes:
    usage = {"input_tokens": 3, "output_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": 1}}
    content = [{"type": "text", "text": text}, {"type": "thinking", "thinking": "hm"}]
    message = {"model": "m", "content": content, "usage": usage, "stop_reason": "end_turn"}
    return json.dumps(message).encode()


def _stream() -> bytes:
    events: List[Dict[str, Any]] = [
        {"type": "message_start", "message": {"model": "m", "content": [], "usage": {"input_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return b"".join(b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


_ANSWERS = [
    read_answer(_message("hello"), content_type="application/json", parts=(("model", "m"),), suspicions=("s",)),
    read_answer(_stream(), content_type="text/event-stream", request_id="r", account="a"),
]


def _answer(data: bytes) -> None:
    codec = AnswerCodec()
    try:
        answer = codec.decode(data)
    except ValueError:
        pass
    else:
        assert codec.decode(codec.encode(answer)) == answer
    for content_type in ("application/json", "text/event-stream"):
        try:
            read_answer(data, content_type=content_type)
        except InvalidAnswerError as error:
            assert "\n" not in str(error)


def _json(data: bytes) -> None:
    codec = JSONCodec()
    try:
        value = codec.decode(data)
    except ValueError:
        return
    try:
        encoded = codec.encode(value)
    except InvalidValueError:
        return  # NaN is read and not written
    assert codec.decode(encoded) == value


def _memcached(data: bytes) -> None:
    """What a server may send, read by the wire that is ours. The client library reads the rest.

    The times are short, for one that says "busy" again and again is asked again until they are over.
    """
    for verb in (
        Server.settings,
        lambda server: server.read(["a", "b"]),
        lambda server: server.items("cfc:ns:"),
        lambda server: server.delete_all(["a"]),
    ):
        server = Server("127.0.0.1", 1, connect_timeout=0.02, timeout=0.02, patience=0.02, threads=1)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            wire = _Given(ours)
            server._wires.append(wire)
            try:
                verb(server)
            except BackendUnavailableError as error:
                assert "\n" not in str(error)
            finally:
                wire.close()
                server.close()


class _Given(_Wire):
    """A connection that has everything already, before it is asked."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._bytes = _Bytes(ours)
        self._reader = io.BufferedReader(self._bytes)

    def is_quiet(self) -> bool:
        return True


def _blob(data: bytes) -> None:
    now = NOW
    entry = _entry(data, now)
    if entry is not None:
        assert data.endswith(entry.value)
        assert len(entry.value) == len(data) - 16


def _project(data: bytes) -> None:
    """A claude.json, a zero byte, and the Markdown of the agent ``a``."""
    table, _, markdown = data.partition(b"\0")
    path = _FOLDER / "claude.json"
    path.write_bytes(table)
    (_FOLDER / "a.md").write_bytes(markdown)
    try:
        project = Project.load(path)
        for name in project.agents:
            definition = project.read_definition(name)
            # Read as text: every line end becomes a line feed.
            assert definition.blocks[0] == io.TextIOWrapper(io.BytesIO(markdown), "utf-8-sig").read()
    except ProjectError as error:
        assert "\n" not in str(error)


_SCRATCH = tempfile.TemporaryDirectory(prefix="fuzz-")
_FOLDER = Path(_SCRATCH.name)

_URLS = [
    b"redis://user:PASSWORD@host:6379/0?namespace=team&max_bytes=1GB&encrypt=true",
    b"memcached://a:11211,[::1]:11211?ttl=24h",
    b"disk:///var/cache/answers?busy_timeout=5s",
    b"memory://?max_bytes=100MB&ttl_jitter=0.1",
    b"redis://:PASSWORD@h/?socket_path=/run/redis.sock&tls=yes",
]
_TABLES = [
    b'{"backend": "redis", "options": {"host": "h", "port": 1, "path": "/0", "password": "p", "max_bytes": "1GB"}}',
    b'{"url": "memory://", "options": {"lease": 0, "ttl": null}}',
    b'{"backend": "memcached", "options": {"hosts": ["a:1", "b:2"], "timeout": 0.5}}',
]
_DUMP = (
    b"key=cfc%3Ans%3Aabc exp=-1 la=1700000000 cas=7 fetch=no cls=1 size=80\r\n"
    b"key=other exp=1 la=2 cas=3\r\nEND\r\nHD kcfc:ns:abc s5 t-1 c7\r\nMN\r\n"
)
_CLAUDE_JSON = (
    b'{"version": "1.0.0", "agents": {"a": {"file": "a.md", "model": "claude-haiku-4-5", "cache": {"enabled": true, '
    b'"ttl_hours": 2}}}, "cache": {"url": "memory://", "exclude_agents": ["a"], "max_size_mb": 3}}\0# You review\n'
)

TARGETS: Dict[str, Callable[[], Target]] = {
    "forge-hmac": lambda: _forge(HMAC),
    "forge-aes": lambda: _forge(AES),
    "forge-lease": _forge_lease,
    "forge-parts": _forge_parts,
    "signed-hmac": lambda: _signed(HMAC),
    "signed-aes": lambda: _signed(AES),
    "manifest": lambda: Target(_manifest, [Manifest(b"m" * 16, 5000, 3).pack()]),
    "keys": lambda: Target(_keys, [bytes(range(64)), b"\x02\x03\x03\x01a\x00\x02\x05\x04\x01\x02\x03\x04"]),
    "url": lambda: Target(_url, _URLS, [b"://", b"@", b"PASSWORD", b"%3A", b"[::1]", b"?", b"&", b"="]),
    "source": lambda: Target(_source, [*_URLS, *_TABLES], [b"://", b"tenant=", b"namespace=", b"lease="]),
    "settings": lambda: Target(
        _settings, [b"100MB", b"64MiB", b"1.5h", b"250ms", b"true", b"1e400", b"-1", b"[1]"], [b"KiB", b"days", b"e9"]
    ),
    "answer": lambda: Target(
        _answer,
        [*map(AnswerCodec().encode, _ANSWERS), _message("text"), _stream(), b"[" * 8000, b"{}\n" + b"[" * 8000],
        [b"data: ", b"event: error\n", b'"content":', b'"usage":', b"null", b"[[", b"1e999"],
    ),
    "json": lambda: Target(
        _json, [b'{"a": [1, 2.5, null, true, "\\u00e9"]}', b"[" * 8000], [b"NaN", b"\\ud800", b"1" * 99]
    ),
    "memcached": lambda: Target(
        _memcached, [_DUMP, b"STAT item_size_max 1048576\r\nEND\r\n", b"DELETED\r\n"], [b"END\r\n", b"%0D%0A", b"BUSY"]
    ),
    "redis-entry": lambda: Target(_blob, [b"v" * 8 + struct.pack(">d", NOW + 5) + b"value", b"short"]),
    "project": lambda: Target(
        _project,
        [_CLAUDE_JSON, b'{"agents": {}}', b"\xef\xbb\xbf{}"],
        [b'"contract":', b"../", b"null", b"\xff", b"\0"],
    ),
}
