"""The folder of a disk cache: made by us and marked as ours, or refused and left as it is."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Callable

from claude_force_cache import (
    AccessDeniedError,
    BackendUnavailableError,
    ForeignStoreError,
)

__all__ = ["ANOTHER", "MARKER", "prepare_folder", "unavailable_folder"]

MARKER = ".claude-force-cache"
_MARK = "claude-force-cache disk store, format 1\n"
ANOTHER = "choose another folder, disk:///absolute/path"


def prepare_folder(root: Path, namespace: str, database: str) -> Path:
    """Return the path of a namespace's database file, making root, marker, folder and empty file as needed.

    A new folder is made with mode 0700 and the file with 0600. The marker is the first file in a folder, so
    a folder that has files and no marker was filled by somebody else, also while several processes start.

    :raises ForeignStoreError: if ``root`` is no folder, or not empty and not ours; nothing was touched.
    :raises OSError: if the system refuses.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        if not root.is_dir():
            root.stat()  # a loop of links, or one that leads nowhere, names itself here
            raise ForeignStoreError(f"cache folder {root} is not a folder: {ANOTHER}") from None
    _claim(root)
    # Names differ by case where some file systems do not; the prefix keeps "." and ".." harmless.
    folder = root / ("ns-" + re.sub("[A-Z]", lambda match: "^" + match.group().lower(), namespace))
    path = folder / database
    _make_private(folder, path)
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


def _claim(root: Path) -> None:
    # A folder of ours holds one for each namespace, so it is listed only where no marker speaks for it. Another
    # process may have marked it by then.
    if _is_marked(root):
        return
    if any(root.iterdir()) and not _is_marked(root):
        raise ForeignStoreError(
            f"folder {root} is not empty and not a cache of this package, so nothing in it was touched: {ANOTHER}"
        )
    for name, text in ((MARKER, _MARK), (".gitignore", "*\n")):
        try:
            file = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue  # another process is starting, too
        with os.fdopen(file, "w", encoding="ascii") as stream:
            stream.write(text)


def _is_marked(root: Path) -> bool:
    try:
        mark = (root / MARKER).read_bytes()
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
        _require(stat.S_ISDIR, folder, "folder")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        _require(stat.S_ISREG, path, "file")


def _require(is_kind: Callable[[int], bool], path: Path, kind: str) -> None:
    # A link would lead our writes out of the folder.
    if not is_kind(path.lstat().st_mode):
        raise ForeignStoreError(f"{path} is not a {kind} that this package made: remove it, or {ANOTHER}")
