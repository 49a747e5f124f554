"""A cache folder in which somebody else has, or had, his hands."""

import asyncio
import os
import socket
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import pytest

from claude_force_backends._disk_folder import MARKER
from claude_force_backends._disk_store import Store
from claude_force_backends.disk import DiskBackend
from claude_force_cache import (
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    ForeignStoreError,
    open_cache,
)

NOBODY = 65534
COMPANIONS = ["cache.db-wal", "cache.db-shm", "cache.db-journal"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def make(folder: Path, *, private: bool = True) -> DiskBackend:
    return DiskBackend(BackendSettings(BackendURL("disk")), Store(folder, "default", 5.0, private=private))


@contextmanager
def opened(folder: Path) -> Iterator[DiskBackend]:
    backend = make(folder)
    backend.open()
    try:
        yield backend
    finally:
        backend.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache folder with an entry in it, which nobody has open."""
    path = tmp_path / "cache"
    with opened(path) as backend:
        backend.set("key", b"value", ttl=None)
    return path


def database(folder: Path) -> Path:
    return folder / "ns-default" / "cache.db"


def assert_refused(folder: Path, match: str) -> None:
    with pytest.raises(ForeignStoreError, match=match) as caught:
        make(folder).open()
    assert len(str(caught.value).splitlines()) == 1
    assert "choose another folder" in str(caught.value)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
@pytest.mark.parametrize("below", ["", "ns-default"])
def test_a_folder_that_others_can_change_is_refused(folder: Path, mode: int, below: str) -> None:
    (folder / below).chmod(mode)
    assert_refused(folder, "can be changed by other users: chmod go-w")
    make_and_close(folder, private=False)


def make_and_close(folder: Path, *, private: bool) -> None:
    backend = make(folder, private=private)
    backend.open()
    try:
        entry = backend.get("key")
        assert entry is not None
        assert entry.value == b"value"
    finally:
        backend.close()


@pytest.mark.parametrize("name", ["cache.db", *COMPANIONS])
def test_a_file_that_others_can_change_is_refused(folder: Path, name: str) -> None:
    path = database(folder).with_name(name)
    path.touch()
    path.chmod(0o666)
    assert_refused(folder, "can be changed by other users: chmod go-w")


@needs_root
@pytest.mark.parametrize("name", ["", "ns-default", "ns-default/cache.db", MARKER])
def test_what_belongs_to_another_user_is_refused(folder: Path, name: str) -> None:
    os.chown(folder / name, NOBODY, -1)
    assert_refused(folder, "belongs to another user")


def test_an_empty_folder_is_closed_to_others_and_taken(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    with opened(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_open_folder_of_somebody_else_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "notes").write_text("theirs")
    folder.chmod(0o777)
    assert_refused(folder, "not empty")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777


def test_a_folder_below_one_that_everybody_can_change_is_refused(folder: Path) -> None:
    folder.parent.chmod(0o777)
    try:
        assert_refused(folder, "above it can be changed by everybody: chmod o-w")
        folder.parent.chmod(0o1777)  # as /tmp: others cannot exchange what is ours
        with opened(folder):
            pass
    finally:
        folder.parent.chmod(0o700)


def test_ones_own_link_to_the_folder_is_followed(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    make_and_close(link, private=True)


@needs_root
@pytest.mark.parametrize("below", ["", "sub"])
def test_a_link_of_another_user_on_the_way_is_refused(folder: Path, tmp_path: Path, below: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    os.chown(link, NOBODY, -1, follow_symlinks=False)
    assert_refused(link / below, "link of another user")


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path, 0o600)


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def hard_link(path: Path, outside: Path) -> None:
    os.link(outside, path)


def a_folder(path: Path, outside: Path) -> None:
    path.mkdir()


def a_socket(path: Path, outside: Path) -> None:
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


def endless(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


PLANTS = [fifo, link, hard_link, a_folder, a_socket, endless]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_bytes(b"precious")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", [f"ns-default/{name}" for name in ["cache.db", *COMPANIONS]] + [MARKER, "ns-default"])
def test_what_is_not_a_file_of_ours_is_refused_and_not_waited_for(
    folder: Path, outside: Path, plant: Callable[[Path, Path], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    path = folder / name
    if path.is_dir():
        if plant in {a_folder, hard_link}:
            return  # as it should be; not for folders
        path.rename(folder.parent / "aside")
    elif path.exists():
        path.unlink()
    plant(path, outside)
    assert_refused(folder, "is not a (file|folder) that this package made|has a second name")
    assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize("plant", [fifo, link, hard_link, endless])
def test_what_takes_the_place_of_the_database_while_it_is_open_is_an_outage(
    folder: Path, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    with opened(folder) as backend:
        assert backend.get("key") is not None
        database(folder).unlink()
        plant(database(folder), outside)
        for verb in (lambda: backend.get("key"), lambda: backend.set("key", b"new", ttl=None), backend.usage):
            with pytest.raises(BackendUnavailableError, match=r"made|second name"):
                verb()
        assert outside.read_bytes() == b"precious"
        database(folder).unlink()
        backend.set("key", b"anew", ttl=None)
        entry = backend.get("key")
        assert entry is not None
        assert entry.value == b"anew"


def test_without_a_umask_nothing_is_open_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "made" / "on the way" / "cache") as backend:
            backend.set("key", b"value", ttl=None)
            for path in (tmp_path / "made").rglob("*"):
                assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, path
            for path in (tmp_path / "made" / "on the way" / "cache").rglob("*"):
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    finally:
        os.umask(before)


def test_a_refused_folder_is_an_error_and_not_an_outage_that_nobody_sees(folder: Path) -> None:
    folder.chmod(0o777)

    async def main(url: str) -> None:
        async with open_cache(url) as cache:
            await cache.usage()

    with pytest.raises(ForeignStoreError, match=r"private=false"):
        asyncio.run(main(f"disk://{folder}"))
    asyncio.run(main(f"disk://{folder}?private=false"))
