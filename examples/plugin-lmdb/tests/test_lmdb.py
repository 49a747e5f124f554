"""What is LMDB's alone: the folder, the map, and the faults of both."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import List, Optional, Tuple

import pytest
from claude_force_cache import (
    AccessDeniedError,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Entry,
    ForeignStoreError,
    InvalidOptionError,
    InvalidURLError,
    Usage,
    list_backends,
    open_cache,
)

from claude_force_cache_lmdb.backend import LmdbBackend


def backend(
    folder: Path, *, namespace: str = "default", max_bytes: Optional[int] = None, **options: object
) -> LmdbBackend:
    url = BackendURL("lmdb", path=str(folder))
    return LmdbBackend(BackendSettings(url, namespace, max_bytes, None, {"sync": False, **options}))


def test_a_url_chooses_it(tmp_path: Path) -> None:
    async def main() -> Tuple[object, object]:
        async with open_cache(f"lmdb://{tmp_path}/cache?map_size=64MiB&max_bytes=1MiB") as cache:
            await cache.set("question", "answer")
        async with open_cache(f"lmdb://{tmp_path}/cache") as cache:
            return await cache.get("question"), (await cache.usage()).entries

    assert asyncio.run(main()) == ("answer", 1)
    assert "lmdb" in {info.name for info in list_backends()}


@pytest.mark.parametrize("url", ["lmdb://", "lmdb://host/path", "lmdb://user@/path"])
def test_a_url_without_an_absolute_path_is_refused(url: str) -> None:
    with pytest.raises(InvalidURLError, match="write lmdb:///absolute/path"):
        open_cache(url)


def test_a_limit_that_the_map_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="raise map_size to at least 4194304"):
        backend(tmp_path, max_bytes=2**20, map_size=2**21)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear Claude")
    with pytest.raises(ForeignStoreError, match="nothing in it was touched"):
        backend(tmp_path).open()
    with pytest.raises(ForeignStoreError, match="not a folder"):
        backend(tmp_path / "letter.txt").open()
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    store = backend(tmp_path / "cache")
    store.open()
    store.close()
    (tmp_path / "cache" / "ns-default.mdb").write_bytes(b"not what it was" * 1000)
    with pytest.raises(BackendUnavailableError, match=r"is damaged .*: remove it"):
        backend(tmp_path / "cache").open()


def test_a_full_map_names_the_option_and_stays_sound(tmp_path: Path) -> None:
    store = backend(tmp_path / "cache", map_size=2**20)
    store.open()
    keys = [f"key{number}" for number in range(100)]
    with pytest.raises(BackendUnavailableError, match="is full: raise map_size"):
        list(map(partial(store.set, value=b"x" * 50_000, ttl=None), keys))
    stored = store.get_many(keys)
    assert store.usage() == Usage(len(stored), sum(len(key) + 50_000 for key in stored))
    assert store.delete(next(iter(stored)))
    store.close()


def test_a_folder_without_permission_is_access_denied(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write everywhere
    try:
        with pytest.raises(AccessDeniedError, match="give this user access"):
            backend(folder).open()
    finally:
        os.seteuid(user)


def test_the_file_is_open_once_in_a_process_however_many_use_it(tmp_path: Path) -> None:
    first, second, other = backend(tmp_path), backend(tmp_path), backend(tmp_path, namespace="Other")
    for store in (first, second, other):
        store.open()
    first.set("key", b"value", ttl=None)
    first.close()
    assert second.get("key") is not None
    assert other.get("key") is None
    second.close()
    other.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".mdb") == [
        "ns-^other.mdb",
        "ns-default.mdb",
    ]


def test_a_read_is_a_use_before_the_next_write_although_it_writes_nothing(tmp_path: Path) -> None:
    store = backend(tmp_path / "cache", max_bytes=30)
    store.open()
    for key in ("a", "b", "c"):
        store.set(key, b"123456789", ttl=None)
    before = store.store.environment.info()["last_txnid"]
    assert isinstance(store.get("a"), Entry)
    assert store.store.environment.info()["last_txnid"] == before
    assert store.set("d", b"123456789", ttl=None) == 1
    assert sorted(info.key for info in store.scan()) == ["a", "c", "d"]
    store.close()


WRITER = """
import sys
from claude_force_cache import BackendSettings, BackendURL
from claude_force_cache_lmdb.backend import LmdbBackend
store = LmdbBackend(BackendSettings(BackendURL("lmdb", path=sys.argv[1])))
store.open()
number = 0
while True:
    store.set(f"key{number % 50}", bytes(number % 3000), ttl=None)
    number += 1
    print(number, flush=True)
"""


def test_writers_that_are_killed_leave_an_exact_account(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    processes: List[subprocess.Popen[str]] = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 20:
            pass
    for process in processes:
        process.kill()
        process.communicate()
    store = backend(folder)
    store.open()
    infos = list(store.scan())
    found = store.get_many([info.key for info in infos])
    assert store.usage() == Usage(len(infos), sum(info.size for info in infos))
    assert {info.key: info.size for info in infos} == {key: len(key) + len(e.value) for key, e in found.items()}
    store.close()
