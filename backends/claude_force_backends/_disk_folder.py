"""The folder of a disk cache: made by us and marked as ours, or refused and left as it is.

Whoever can change a folder can put links and pipes into it, and a database of his own for SQLite to read. So
unless the user says otherwise, a folder is used only if nobody else can change it or exchange it for another.
Above it, that takes no more than what holds for every file: no folder that everybody can change, unless it is
sticky. Those to whom a folder above belongs are trusted.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Callable, Optional

from claude_force_cache import (
    AccessDeniedError,
    BackendUnavailableError,
    ForeignStoreError,
)

from ._disk_mounts import network_type

__all__ = ["ANOTHER", "MARKER", "prepare_folder", "unavailable_folder"]

MARKER = ".claude-force-cache"
_MARK = "claude-force-cache disk store, format 1\n"
ANOTHER = "choose another folder, disk:///absolute/path"
_PRIVATE = f"{ANOTHER}, or set private=false where those who can are trusted"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite opens beside a database."""


def prepare_folder(root: Path, namespace: str, database: str, *, private: bool = True, network: bool = False) -> Path:
    """Return the path of a namespace's database file, making root, marker, folder and empty file as needed.

    A new folder is made with mode 0700 and the file with 0600, whatever the umask. The marker is the first file in
    a folder, so a folder that has files and no marker was filled by somebody else, also while several processes
    start.

    :param private: refuse what other users can change. An empty folder that is this user's is closed to them.
    :param network: take a folder on a network file system, too.
    :raises ForeignStoreError: if ``root`` is no folder, not empty and not ours, or not safe; nothing was touched.
    :raises OSError: if the system refuses.
    """
    kind = None if network else network_type(root)
    if kind is not None:
        raise ForeignStoreError(
            f"cache folder {root} is on a network file system ({kind}), where SQLite's locks are not safe: choose a "
            "folder of this machine, disk:///absolute/path, or share a cache by redis:// or memcached://, or set "
            "network=true where one machine alone uses it"
        )
    for missing in reversed([above for above in root.parents if not above.exists()]):
        missing.mkdir(mode=0o755, exist_ok=True)  # with the umask, but never open to everybody
    if private:
        _check_way(root)
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        if not root.is_dir():
            root.stat()  # a loop of links, or one that leads nowhere, names itself here
            raise ForeignStoreError(f"cache folder {root} is not a folder: {ANOTHER}") from None
    _claim(root, private)
    # Names differ by case where some file systems do not; the prefix keeps "." and ".." harmless.
    folder = root / ("ns-" + re.sub("[A-Z]", lambda match: "^" + match.group().lower(), namespace))
    path = folder / database
    _make_private(folder, path)
    _check(folder, stat.S_ISDIR, "folder", private)
    for name in (database, *(database + suffix for suffix in _COMPANIONS)):
        _check(folder / name, stat.S_ISREG, "file", private)
    return path


def unavailable_folder(error: OSError, folder: Path) -> BackendUnavailableError:
    """Return the error of the contract for what the system said about ``folder``."""
    if error.errno in {errno.EACCES, errno.EPERM}:
        return AccessDeniedError(f"no permission for cache folder {folder}: give this user access, or {ANOTHER}")
    if error.errno == errno.EROFS:
        return BackendUnavailableError(f"cache folder {folder} is read-only: make it writable, or {ANOTHER}")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return BackendUnavailableError(f"the disk of cache folder {folder} is full: free space, or {ANOTHER}")
    return BackendUnavailableError(f"cache folder {folder} cannot be used ({error.strerror or error}): {ANOTHER}")


def _check_way(root: Path) -> None:
    """Refuse a folder that somebody can exchange for another one."""
    for path in (root, *root.parents):
        status = _status(path)
        if status is not None and stat.S_ISLNK(status.st_mode) and status.st_uid not in {0, os.geteuid()}:
            raise ForeignStoreError(f"cache folder {root} lies behind {path}, a link of another user: {_PRIVATE}")
    for path in Path(os.path.realpath(root)).parents:
        status = _status(path)
        if status is not None and status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise ForeignStoreError(
                f"cache folder {root} is not safe, since {path} above it can be changed by everybody: "
                f"chmod o-w it, {_PRIVATE}"
            )


def _claim(root: Path, private: bool) -> None:
    # A folder of ours holds one for each namespace, so it is listed only where no marker speaks for it. Another
    # process may have marked it by then.
    if not _is_marked(root, private):
        _require_empty(root, private)
        status = root.stat()
        if private and status.st_uid == os.geteuid() and status.st_mode & _OTHERS_WRITE:
            root.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)
            _require_empty(root, private)  # until now somebody could put something there
        for name, text in ((MARKER, _MARK), (".gitignore", "*\n")):
            try:
                file = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue  # another process is starting, too
            with os.fdopen(file, "w", encoding="ascii") as stream:
                stream.write(text)
    if private:
        _require_private(root, root.stat())


def _require_empty(root: Path, private: bool) -> None:
    if any(root.iterdir()) and not _is_marked(root, private):
        raise ForeignStoreError(
            f"folder {root} is not empty and not a cache of this package, so nothing in it was touched: {ANOTHER}"
        )


def _is_marked(root: Path, private: bool) -> bool:
    path = root / MARKER
    if not _check(path, stat.S_ISREG, "file", private):
        return False
    try:
        # Not following, not waiting: it may have been exchanged since.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            mark = stream.read(len(_MARK) + 1)
    except FileNotFoundError:
        return False
    # Empty while the process that made it is about to write.
    if mark in {b"", _MARK.encode()}:
        return True
    raise ForeignStoreError(f"cache folder {root} was made by another version of this package: {ANOTHER}")


def _make_private(folder: Path, path: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        _check(folder, stat.S_ISDIR, "folder", private=False)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass  # whatever it is


def _check(path: Path, is_kind: Callable[[int], bool], kind: str, private: bool) -> bool:
    """Return whether there is something under ``path``, if that may be used."""
    status = _status(path)
    if status is None:
        return False
    # A link, or a second name for a file, would lead our writes out of the folder; a pipe is waited for.
    if not is_kind(status.st_mode):
        raise ForeignStoreError(f"{path} is not a {kind} that this package made: remove it, or {ANOTHER}")
    if kind == "file" and status.st_nlink > 1:
        raise ForeignStoreError(f"{path} has a second name, elsewhere (a hard link): remove one, or {ANOTHER}")
    if private:
        _require_private(path, status)
    return True


def _require_private(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise ForeignStoreError(f"{path} belongs to another user (uid {status.st_uid}): {_PRIVATE}")
    if status.st_mode & _OTHERS_WRITE:
        raise ForeignStoreError(f"{path} can be changed by other users: chmod go-w it, {_PRIVATE}")


def _status(path: Path) -> Optional[os.stat_result]:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
