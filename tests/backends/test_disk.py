"""The backend ``disk``: the conformance kit, and what a folder that others can reach demands."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import pickle
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Hashable, Iterator, List, Optional, Tuple

import diskcache
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_force_backends import disk
from claude_force_backends._disk_folder import MARKER
from claude_force_backends._disk_store import BytesDisk, Store
from claude_force_backends.disk import DiskBackend, claude_force_cache_backend
from claude_force_cache import (
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Clock,
    EntryTooLargeError,
    ForeignStoreError,
    InvalidURLError,
    Usage,
    open_cache,
)
from claude_force_cache.testing import BackendConformance, ManualClock


def make_disk(
    folder: Path,
    namespace: str = "default",
    max_bytes: Optional[int] = None,
    clock: Optional[Clock] = None,
    **options: Any,
) -> DiskBackend:
    url = BackendURL("disk", path=str(folder))
    backend = claude_force_cache_backend().create(BackendSettings(url, namespace, max_bytes, clock, options))
    assert isinstance(backend, DiskBackend)
    return backend


class TestDisk(BackendConformance):
    capabilities = DiskBackend.capabilities

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "cache"

    def settings(self, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> BackendSettings:
        return BackendSettings(BackendURL("disk", path=str(self.folder)), namespace, max_bytes, clock)

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> Any:
        return claude_force_cache_backend().create(self.settings(namespace, max_bytes, clock))

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], Any]:
        return functools.partial(claude_force_cache_backend().create, self.settings(namespace, max_bytes, None))

    async def read_raw(self, backend: DiskBackend, key: str) -> Optional[bytes]:
        with sqlite3.connect(str(backend._store._path)) as connection:
            row = connection.execute("SELECT value FROM Cache WHERE key = ?", (key,)).fetchone()
        connection.close()
        return None if row is None else bytes(row[0])

    async def write_raw(self, backend: DiskBackend, key: str, data: bytes) -> None:
        with sqlite3.connect(str(backend._store._path)) as connection:
            connection.execute("UPDATE Cache SET value = ? WHERE key = ?", (data, key))
        connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[DiskBackend]:
    backend = make_disk(folder, **settings)
    backend.open()
    try:
        yield backend
    finally:
        backend.close()


def database(folder: Path, namespace: str = "default") -> Path:
    return folder / f"ns-{namespace}" / "cache.db"


@contextmanager
def raw_sql(folder: Path) -> Iterator[sqlite3.Connection]:
    """A connection that knows nothing of us, as an intruder or a careless tool would have."""
    connection = sqlite3.connect(str(database(folder)), isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def assert_exact(backend: DiskBackend) -> Usage:
    infos = list(backend.scan())
    usage = backend.usage()
    assert usage == (len(infos), sum(info.size for info in infos))
    for info in infos:
        entry = backend.get(info.key)
        assert entry is not None
        assert info.size == len(info.key) + len(entry.value)
    return usage


def tree(folder: Path) -> Dict[str, Tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


PRELUDE = """
import os, random, sys
from claude_force_backends.disk import claude_force_cache_backend
from claude_force_cache import *
folder = sys.argv[1]
def make(max_bytes=None, **options):
    url = BackendURL("disk", path=folder)
    return claude_force_cache_backend().create(BackendSettings(url, "default", max_bytes, None, options))
"""


class TestProcesses:
    def test_keep_one_exact_account_at_the_limit(self, folder: Path) -> None:
        script = """
        backend = make(4000, busy_timeout=30)
        backend.open()
        dice = random.Random(sys.argv[2])
        for turn in range(150):
            key = f"k{dice.randrange(40)}"
            verb = dice.randrange(8)
            if verb < 4:
                backend.set(key, bytes(dice.randrange(600)), ttl=dice.choice([None, 0.01, 60]))
            elif verb == 4:
                backend.add(key, bytes(dice.randrange(600)), ttl=None)
            elif verb == 5:
                backend.delete(key)
            elif verb == 6:
                entry = backend.get(key)
                if entry:
                    backend.delete(key, version=entry.version)
            else:
                backend.touch(key, ttl=60)
            usage = backend.usage()
            assert usage.bytes <= 4000, usage
        backend.close()
        """
        for process in [start(script, folder, seed) for seed in range(4)]:
            finish(process)
        with opened(folder, max_bytes=4000) as backend:
            usage = assert_exact(backend)
            assert 0 < usage.bytes <= 4000

    def test_enforce_each_its_own_limit(self, folder: Path) -> None:
        with opened(folder, max_bytes=1000) as large, opened(folder, max_bytes=100) as small:
            for n in range(20):
                large.set(f"k{n:02}", bytes(7), ttl=None)
            assert large.usage() == (20, 200)
            assert small.usage() == (10, 100)
            for n in range(20):
                large.set(f"k{n:02}", bytes(7), ttl=None)
            assert small.set("new", bytes(7), ttl=None) == 11
            assert {info.key for info in large.scan()} == {*(f"k{n}" for n in range(11, 20)), "new"}

    def test_start_at_the_same_time_in_a_folder_that_is_not_there(self, folder: Path) -> None:
        script = """
        backend = make()
        backend.open()
        backend.set(sys.argv[2], b"value", ttl=None)
        backend.close()
        """
        for process in [start(script, folder, f"k{n}") for n in range(6)]:
            finish(process)
        with opened(folder) as backend:
            assert backend.usage() == (6, 6 * 7)

    def test_leave_whole_entries_and_an_exact_account_when_they_are_killed(self, folder: Path) -> None:
        script = """
        backend = make(200_000)
        backend.open()
        turn = 0
        while True:
            turn += 1
            fill = turn % 251
            backend.set(f"k{turn % 7}", bytes([fill]) * (1000 + fill * 150), ttl=None)
            if turn % 5 == 0:
                backend.delete(f"k{turn % 3}")
            if turn == 20:
                print("going", flush=True)
        """
        for delay in (0.0, 0.01, 0.02, 0.05):
            process = start(script, folder)
            assert process.stdout is not None
            assert process.stdout.readline() == "going\n"
            # Not waiting for anything: where in its work the writer is hit should differ.
            time.sleep(delay)
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            with opened(folder, max_bytes=200_000) as backend:
                assert assert_exact(backend).bytes <= 200_000
                for info in backend.scan():
                    entry = backend.get(info.key)
                    assert entry is not None
                    assert entry.value == entry.value[:1] * (1000 + entry.value[0] * 150)
            assert [path.name for path in database(folder).parent.iterdir()] == ["cache.db"]

    def test_add_once_among_processes(self, folder: Path) -> None:
        script = """
        backend = make()
        backend.open()
        print(sum(backend.add(f"k{n}", b"", ttl=None) for n in range(100)))
        backend.close()
        """
        won = [int(finish(process)) for process in [start(script, folder) for _ in range(4)]]
        assert sum(won) == 100

    def test_learn_of_each_others_reads(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk, "_FOLD_SECONDS", 0.05)
        with opened(folder) as reader, opened(folder, max_bytes=30) as writer:
            for n in range(3):
                writer.set(f"k{n}", bytes(8), ttl=None)
            newest = "SELECT key FROM Cache ORDER BY access_time DESC LIMIT 1"
            with raw_sql(folder) as sql:
                assert sql.execute(newest).fetchone() == ("k2",)
                assert reader.get("k0") is not None
                deadline = time.monotonic() + 10
                while sql.execute(newest).fetchone() != ("k0",):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            assert writer.set("k3", bytes(8), ttl=None) == 1
            assert {info.key for info in writer.scan()} == {"k0", "k2", "k3"}

    def test_learn_of_reads_at_close(self, folder: Path) -> None:
        with opened(folder, max_bytes=30) as writer:
            for n in range(3):
                writer.set(f"k{n}", bytes(8), ttl=None)
            with opened(folder) as reader:
                reader.get_many(["k0", "k1"])
            writer.set("k3", bytes(8), ttl=None)
            assert {info.key for info in writer.scan()} == {"k0", "k1", "k3"}


@given(uses=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=12), more=st.integers(1, 5))
@settings(deadline=None, max_examples=20)
def test_the_order_of_uses_is_exact_within_a_process(uses: List[Tuple[bool, int]], more: int) -> None:
    """The kit holds the backend to what it declares, which is what other processes see."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder) / "cache", max_bytes=60) as backend:
        for n in range(6):
            backend.set(f"k{n}", bytes(8), ttl=None)
        recency = list(range(6))
        for read, n in uses:
            if read:
                backend.get(f"k{n}")
            else:
                backend.touch(f"k{n}", ttl=None)
            recency.append(recency.pop(recency.index(n)))
        assert backend.set("new", bytes(10 * more - 3), ttl=None) == more
        assert {info.key for info in backend.scan()} == {"new", *(f"k{n}" for n in recency[more:])}


def test_keeps_the_order_of_more_uses_than_it_remembers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_MAX_USES", 4)
    with opened(folder, max_bytes=30 * 10) as backend:
        for n in range(30):
            backend.set(f"k{n:02}", bytes(7), ttl=None)
        for n in reversed(range(30)):
            backend.get(f"k{n:02}")
            assert len(backend._uses) <= 4
        assert backend.set("big", bytes(197), ttl=None) == 20
        assert {info.key for info in backend.scan()} == {*(f"k{n:02}" for n in range(10)), "big"}


def test_keeps_what_it_just_wrote_though_another_clock_is_ahead(folder: Path) -> None:
    with opened(folder, max_bytes=30, clock=ManualClock(1000.0)) as backend:
        with opened(folder, clock=ManualClock(9000.0)) as ahead:
            for n in range(3):
                ahead.set(f"k{n}", bytes(8), ttl=None)
        assert backend.set("new", bytes(7), ttl=None) == 1
        assert {info.key for info in backend.scan()} == {"k1", "k2", "new"}


def test_a_use_that_waits_is_no_newer_than_a_later_write(folder: Path) -> None:
    clock = ManualClock()
    with opened(folder, clock=clock) as reader, opened(folder, max_bytes=30, clock=clock) as writer:
        writer.set("k0", bytes(8), ttl=None)
        reader.get("k0")
        clock.advance(1)
        writer.set("k1", bytes(8), ttl=None)
        clock.advance(1)
        writer.set("k0", bytes(8), ttl=None)
        reader.close()
        writer.set("k2", bytes(8), ttl=None)
        assert writer.set("k3", bytes(8), ttl=None) == 1
        assert {info.key for info in writer.scan()} == {"k0", "k2", "k3"}


def test_reads_write_nothing(folder: Path) -> None:
    with opened(folder) as backend:
        backend.set("key", b"value", ttl=60)
        with raw_sql(folder) as sql:
            before = sql.execute("PRAGMA data_version").fetchone()
            for _ in range(100):
                backend.get("key")
                backend.get("missing")
                backend.usage()
            assert sql.execute("PRAGMA data_version").fetchone() == before


def test_leaves_nothing_open_whichever_threads_used_it(folder: Path) -> None:
    backend = make_disk(folder)
    backend.open()
    barrier = threading.Barrier(4)

    def use(number: int) -> None:
        barrier.wait(10)
        backend.set(f"k{number}", b"value", ttl=None)
        backend.get(f"k{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
        pool.submit(backend.close).result()
    # SQLite removes its log when the last connection is closed.
    assert [path.name for path in database(folder).parent.iterdir()] == ["cache.db"]


def test_refuses_a_value_that_sqlite_cannot_hold(folder: Path) -> None:
    with opened(folder) as backend:
        backend.set("key", b"old", ttl=None)
        with pytest.raises(EntryTooLargeError):
            backend.set("key", bytes(999_000_001), ttl=None)
        assert backend.usage() == (0, 0)


def test_gives_the_space_back_when_it_is_cleared(folder: Path) -> None:
    with opened(folder) as backend:
        backend.set_many({f"k{n}": (bytes(10_000), None) for n in range(100)})
        backend.clear()
    assert database(folder).stat().st_size < 200_000


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Tuple[Any, ...]:
        return Path.touch, (self.target,)


class TestPlantedRows:
    columns = "key, raw, store_time, expire_time, access_time, tag, size, mode, filename, value"

    def plant(self, sql: sqlite3.Connection, outside: Path, created: Path) -> None:
        payload = pickle.dumps(Exploit(created))
        escape = os.path.relpath(outside, "/")
        for number, (mode, filename, value, size) in enumerate(
            [
                (4, None, payload, len(payload)),
                (4, str(outside), None, 0),
                (2, str(outside), None, -1000),
                (3, "../../" + outside.name, "text", 10**9),
                (1, "../../../" + escape, payload, None),
                (1, None, 12345, "size"),
                (None, None, 1.5, 2.5),
                (1, None, b"\xff", 7),
            ]
        ):
            sql.execute(
                f"INSERT OR REPLACE INTO Cache ({self.columns}) VALUES (?, 1, 0, NULL, 0, NULL, ?, ?, ?, ?)",
                (f"k{number}", size, mode, filename, value),
            )
        sql.execute(
            "UPDATE Cache SET mode = 4, filename = ?, value = ?, size = -5 WHERE key = 'k8'", (str(outside), payload)
        )
        for key, raw in [(b"k9", 1), ("k9", 0), (pickle.dumps(Exploit(created)), 0), ("\udcff", 1), ("K", 1), (7, 1)]:
            values = (key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key, raw)
            cast = "CAST(? AS TEXT)" if isinstance(key, str) else "?"
            sql.execute(
                f"INSERT INTO Cache ({self.columns}) VALUES ({cast}, ?, 0, NULL, 0, 'tag', 3, 1, NULL, x'00')", values
            )

    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        path = tmp_path / "precious"
        path.write_bytes(b"outside")
        return path

    @pytest.mark.parametrize("end", ["delete", "delete by version", "overwrite", "evict", "expire", "clear"])
    def test_are_bytes_in_an_exact_account_and_reach_no_file(
        self, folder: Path, tmp_path: Path, outside: Path, end: str
    ) -> None:
        created = tmp_path / "created"
        with opened(folder, max_bytes=5000) as backend:
            for n in range(9):
                backend.set(f"k{n}", b"sealed", ttl=None)
            with raw_sql(folder) as sql:
                self.plant(sql, outside, created)
            assert assert_exact(backend).entries == 9
            keys = [info.key for info in backend.scan()]
            assert keys == [f"k{n}" for n in range(9)]
            for key in keys:
                entry = backend.get(key)
                assert entry is not None
                assert type(entry.value) is bytes
                assert entry.value != b"sealed"
                if end == "delete":
                    assert backend.delete(key)
                elif end == "delete by version":
                    assert backend.delete(key, version=entry.version)
                elif end == "overwrite":
                    backend.set(key, b"value", ttl=None)
                elif end == "expire":
                    assert backend.touch(key, ttl=1e-6, version=entry.version)
            if end == "evict":
                assert backend.set("new", bytes(4997), ttl=None) == 9
            elif end == "clear":
                assert backend.clear() == 9
            assert assert_exact(backend).entries == {"overwrite": 9, "evict": 1}.get(end, 0)
        assert outside.read_bytes() == b"outside"
        assert not created.exists()

    def test_reach_no_file_when_the_rules_of_the_database_are_gone(
        self, folder: Path, tmp_path: Path, outside: Path
    ) -> None:
        created = tmp_path / "created"
        with opened(folder) as backend:
            for n in range(9):
                backend.set(f"k{n}", b"sealed", ttl=None)
            with raw_sql(folder) as sql:
                for (name,) in sql.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                    sql.execute(f"DROP TRIGGER {name}")
                self.plant(sql, outside, created)
                sql.execute("UPDATE Settings SET value = NULL")
            backend.get_many([info.key for info in backend.scan()])
            assert backend.usage().entries > 9
            for n in range(9):
                assert backend.delete(f"k{n}")
            backend.clear()
            assert backend.usage() == (0, 0)
        assert outside.read_bytes() == b"outside"
        assert not created.exists()

    def test_through_diskcache_itself_reach_no_file(self, folder: Path, tmp_path: Path, outside: Path) -> None:
        created = tmp_path / "created"
        with opened(folder) as backend:
            backend.set("k8", b"sealed", ttl=None)
            with raw_sql(folder) as sql:
                self.plant(sql, outside, created)
        with diskcache.Cache(str(database(folder).parent), disk=BytesDisk, eviction_policy="none") as cache:
            assert all(type(cache[key]) is bytes for key in cache)
            assert cache.clear() == 9
            with pytest.raises(TypeError):
                cache.disk.filename()
        assert outside.read_bytes() == b"outside"
        assert not created.exists()

    def test_that_tamper_with_a_value_come_back_as_they_are(self, folder: Path) -> None:
        with opened(folder) as backend:
            backend.set("key", b"sealed", ttl=60)
            with raw_sql(folder) as sql:
                sql.execute("UPDATE Cache SET value = CAST('tampered' AS BLOB)")
            entry = backend.get("key")
            assert entry is not None
            assert entry.value == b"tampered"
            assert assert_exact(backend) == (1, 11)
            assert backend.delete("key", version=entry.version)
            assert backend.usage() == (0, 0)


@pytest.mark.parametrize("value", [-5, None, "many", 2.5])
def test_recounts_an_account_that_somebody_spoilt(folder: Path, value: object) -> None:
    with opened(folder, max_bytes=100) as backend:
        backend.set("key", b"value", ttl=None)
        with raw_sql(folder) as sql:
            sql.execute("UPDATE Settings SET value = ? WHERE key IN ('size', 'count')", (value,))
        assert backend.usage() == (1, 8)
        backend.set("k2", b"value", ttl=None)
        assert assert_exact(backend) == (2, 15)


@pytest.mark.parametrize("version", [object(), (1, 2), "text", b"bytes", 1.5, -1, 2**64])
def test_knows_no_version_that_it_did_not_give(folder: Path, version: Hashable) -> None:
    with opened(folder) as backend:
        backend.set("key", b"value", ttl=None)
        assert not backend.delete("key", version=version)
        assert not backend.touch("key", ttl=1, version=version)
        assert backend.usage() == (1, 8)


class TestFolder:
    def test_is_made_private_marked_and_ignored_by_git(self, tmp_path: Path) -> None:
        folder = tmp_path / "made" / "on the way" / "$HOME ~ %41?#"
        with opened(folder, namespace="Team.A") as backend:
            backend.set("key", b"value", ttl=None)
            files = {path.name for path in (folder / "ns-^team.^a").iterdir()}
            assert files == {"cache.db", "cache.db-wal", "cache.db-shm"}
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE((folder / "ns-^team.^a").stat().st_mode) == 0o700
            for path in folder.rglob("*"):
                assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600
        assert {path.name for path in folder.iterdir()} == {MARKER, ".gitignore", "ns-^team.^a"}
        assert (folder / ".gitignore").read_text() == "*\n"
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    @pytest.mark.parametrize("namespace", [".", "..", ".gitignore", MARKER, "-", "a" * 64])
    def test_holds_a_namespace_of_any_name(self, folder: Path, namespace: str) -> None:
        with opened(folder, namespace=namespace) as backend:
            backend.set("key", b"value", ttl=None)
        assert [path.name for path in folder.parent.iterdir()] == ["cache"]
        with opened(folder, namespace=namespace) as backend:
            assert backend.usage() == (1, 8)

    def test_may_be_there_if_it_is_empty(self, folder: Path) -> None:
        folder.mkdir()
        with opened(folder) as backend:
            backend.set("key", b"value", ttl=None)

    @pytest.mark.parametrize("name", ["notes.txt", ".hidden", "cache.db", "ns-default/cache.db", ".gitignore"])
    def test_of_somebody_else_is_refused_and_left_as_it_is(self, folder: Path, name: str) -> None:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"theirs")
        before = tree(folder)
        with pytest.raises(ForeignStoreError, match="not empty and not a cache of this package"):
            make_disk(folder).open()
        assert tree(folder) == before

    def test_of_diskcache_is_refused_and_left_as_it_is(self, folder: Path) -> None:
        with diskcache.Cache(str(folder)) as cache:
            cache["key"] = "value"
        before = tree(folder)
        with pytest.raises(ForeignStoreError):
            make_disk(folder).open()
        assert tree(folder) == before

    def test_of_another_version_is_refused(self, folder: Path) -> None:
        folder.mkdir()
        (folder / MARKER).write_text("claude-force-cache disk store, format 2\n")
        with pytest.raises(ForeignStoreError, match="another version"):
            make_disk(folder).open()
        with pytest.raises(ForeignStoreError, match="another version"):
            make_disk(folder).open()
        assert [path.name for path in folder.iterdir()] == [MARKER]

    def test_with_a_database_of_somebody_else_is_refused(self, folder: Path) -> None:
        with opened(folder):
            pass
        database(folder).unlink()
        with raw_sql(folder) as sql:
            sql.execute("CREATE TABLE theirs (x)")
        with pytest.raises(ForeignStoreError, match="did not make"):
            make_disk(folder).open()
        with raw_sql(folder) as sql:
            assert sql.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]

    def test_is_not_left_through_a_link(self, folder: Path, tmp_path: Path) -> None:
        with opened(folder):
            pass
        other = tmp_path / "other"
        other.mkdir()
        (folder / "ns-linked").symlink_to(other)
        with pytest.raises(ForeignStoreError, match="is not a folder that this package made"):
            make_disk(folder, namespace="linked").open()
        assert list(other.iterdir()) == []
        database(folder).unlink()
        database(folder).symlink_to(other / "file")
        with pytest.raises(ForeignStoreError):
            make_disk(folder).open()
        assert list(other.iterdir()) == []

    def test_that_is_a_file_is_refused(self, folder: Path) -> None:
        folder.write_bytes(b"theirs")
        with pytest.raises(ForeignStoreError, match="is not a folder"):
            make_disk(folder).open()
        with pytest.raises(BackendUnavailableError, match="cannot be used"):
            make_disk(folder / "below").open()
        assert folder.read_bytes() == b"theirs"

    def test_that_is_a_loop_of_links_says_so(self, folder: Path) -> None:
        folder.symlink_to(folder)
        with pytest.raises(BackendUnavailableError, match=os.strerror(errno.ELOOP)):
            make_disk(folder).open()

    def test_that_is_removed_while_open_begins_anew(self, folder: Path) -> None:
        with opened(folder) as backend:
            backend.set("key", b"value", ttl=None)
            shutil.rmtree(folder)
            assert backend.get("key") is None
            backend.set("key", b"new", ttl=None)
            assert assert_exact(backend) == (1, 6)
            with opened(folder) as other:
                assert other.usage() == (1, 6)

    def test_that_became_somebody_elses_while_open_is_left_as_it_is(self, folder: Path) -> None:
        with opened(folder) as backend:
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "theirs").write_bytes(b"theirs")
            before = tree(folder)
            with pytest.raises(BackendUnavailableError, match="not a cache of this package"):
                backend.set("key", b"value", ttl=None)
            assert tree(folder) == before

    @pytest.mark.parametrize(
        "kept", [b"no database at all, but long enough to be read" * 100, b"SQLite format 3\x00" * 300]
    )
    def test_with_a_damaged_database_says_what_to_remove(self, folder: Path, kept: bytes) -> None:
        with opened(folder) as backend:
            backend.set("key", b"value", ttl=None)
        database(folder).write_bytes(kept)
        with pytest.raises(BackendUnavailableError, match="damaged: remove its folder"):
            make_disk(folder).open()

    @pytest.mark.parametrize("writable", ["nothing", "the database"])
    def test_that_cannot_be_written_says_so(self, writable: str) -> None:
        """Runs in a process without privileges, for nothing is forbidden to root."""
        script = """
        import claude_force_backends._disk_store
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            make().open()
        except BackendUnavailableError as error:
            print(type(error).__name__, error)
        """
        # Not below pytest's folder, which is closed to others.
        base = Path(tempfile.mkdtemp())
        try:
            base.chmod(0o755)
            folder = base / "cache"
            with opened(folder) as backend:
                backend.set("key", b"value", ttl=None)
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            if writable == "the database":
                database(folder).chmod(0o600)
                if os.getuid() == 0:
                    os.chown(database(folder), 65534, 65534)
            said = finish(start(script, folder))
            assert said.startswith("AccessDeniedError no permission for cache folder")
            assert "choose another folder" in said
            said = finish(start(script, folder / "new"))
            assert said.startswith("AccessDeniedError no permission for cache folder")
        finally:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755)
            shutil.rmtree(base)

    def test_on_a_full_disk_keeps_what_it_had(self, folder: Path) -> None:
        class SmallStore(Store):
            def _connect(self) -> sqlite3.Connection:
                connection = super()._connect()
                connection.execute("PRAGMA max_page_count = 40").close()
                return connection

        backend = DiskBackend(BackendSettings(BackendURL("disk")), SmallStore(folder, "default", 5.0))
        backend.open()
        try:
            backend.set("key", b"old", ttl=None)
            with pytest.raises(BackendUnavailableError, match="is full: free space"):
                backend.set("key", bytes(300_000), ttl=None)
            assert backend.get("key").value == b"old"
            assert assert_exact(backend) == (1, 6)
            backend.set("key", b"newer", ttl=None)
            assert assert_exact(backend) == (1, 8)
        finally:
            backend.close()


def test_opens_a_namespace_without_a_look_at_the_others(folder: Path) -> None:
    script = """
    listed = []
    def hook(event, arguments):
        if event in ("os.listdir", "os.scandir"):
            listed.append(str(arguments[0]))
    sys.addaudithook(hook)
    os.listdir(folder)
    for _ in range(2):
        backend = make()
        backend.open()
        backend.set("key", b"value", ttl=None)
        backend.close()
    print(listed.count(folder))
    """
    with opened(folder, namespace="other"):
        assert finish(start(script, folder)) == "1\n"


def test_waits_no_longer_than_it_was_told_for_another_writer(folder: Path) -> None:
    with opened(folder, busy_timeout=0.05) as backend:
        backend.set("key", b"value", ttl=None)
        with raw_sql(folder) as sql:
            sql.execute("BEGIN IMMEDIATE")
            for refused in (
                lambda: backend.set("key", b"new", ttl=None),
                lambda: backend.delete("key"),
                lambda: make_disk(folder, busy_timeout=0.05).open(),
            ):
                with pytest.raises(BackendUnavailableError, match=r"locked for more than 0\.05 s"):
                    refused()
            entry = backend.get("key")
            assert entry is not None
            assert entry.value == b"value"
            assert backend.usage() == (1, 8)
            sql.execute("ROLLBACK")
        backend.set("key", b"new", ttl=None)


def test_imports_its_client_only_when_it_is_chosen() -> None:
    script = """
    claude_force_cache_backend()
    assert "diskcache" not in sys.modules
    make()
    assert "diskcache" in sys.modules
    """
    finish(start(script, "/nowhere"))


class TestURL:
    def folder_of(self, url: str) -> Path:
        parsed, _ = BackendURL.parse(url)
        backend = claude_force_cache_backend().create(BackendSettings(parsed))
        return backend._store._root

    def test_names_an_absolute_folder(self) -> None:
        assert self.folder_of("disk:///var/my%20cache/../x/") == Path("/var/x")

    def test_may_begin_at_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        assert self.folder_of("disk:///~/answers") == Path("/home/somebody/answers")

    def test_alone_means_the_users_cache_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        for unusable in ("", "relative/folder"):
            monkeypatch.setenv("XDG_CACHE_HOME", unusable)
            assert self.folder_of("disk://") == Path("/home/somebody/.cache/claude-force-cache")
        monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
        assert self.folder_of("disk://") == Path("/var/cache/me/claude-force-cache")

    @pytest.mark.parametrize("url", ["disk://foo", "disk://foo/bar", "disk://user:pw@/x", "disk:///a%00b"])
    def test_that_names_none_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidURLError) as caught:
            self.folder_of(url)
        assert "pw" not in str(caught.value)

    def test_out_of_a_table_must_be_absolute_too(self) -> None:
        parsed, _ = BackendURL.from_options("disk", {"path": "relative/folder"})
        with pytest.raises(InvalidURLError, match="not absolute"):
            claude_force_cache_backend().create(BackendSettings(parsed))


def test_a_database_of_somebody_else_stays_as_it_is_to_the_byte(folder: Path) -> None:
    with opened(folder):
        pass
    database(folder).unlink()
    connection = sqlite3.connect(str(database(folder)))
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()
    before = database(folder).read_bytes()
    with pytest.raises(ForeignStoreError, match="did not make"):
        make_disk(folder).open()
    assert database(folder).read_bytes() == before


def test_a_path_that_begins_with_two_slashes_is_one_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_cache(f"disk:///{tmp_path}/folder", secrets="a secret of the tests") as cache:
            assert await cache.set("key", "value")
            assert await cache.get("key") == "value"

    asyncio.run(main())
