"""Which file system a folder lies on, and whether that is one over a network.

SQLite keeps its writers apart by locks and by memory that they share. Neither is to be relied on between machines,
and on many network file systems not on one machine either: a database there is damaged sooner or later. Linux alone
tells which file systems are mounted; elsewhere nothing is known of them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Optional

__all__ = ["mounted_type", "network_type"]

_MOUNTS = Path("/proc/self/mountinfo")

# By the names that the kernel, or for "fuse." the program, gives them. Not 9p and virtiofs: those are folders of the
# host of a virtual machine.
_NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|ncpfs|afs|coda|ceph|lustre|gpfs|beegfs|gfs2|ocfs2|orangefs|pvfs2|davfs"
    r"|fuse\.(sshfs|ceph.*|glusterfs|gluster|s3fs|goofys|mount-s3|rclone|gcsfuse|blobfuse2?|juicefs.*|smbnetfs|curlftpfs"
    r"|davfs2?|lizardfs|moosefs|mfs.*|seaweedfs|cernvm.*)"
)


def network_type(path: Path) -> Optional[str]:
    """Return the type of the network file system that ``path`` lies on, such as ``nfs4``.

    None where it lies on another one, and where the system does not tell.
    """
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    kind = mounted_type(os.path.realpath(path), mounts)
    return kind if kind is not None and _NETWORK.fullmatch(kind) else None


def mounted_type(path: str, mounts: str) -> Optional[str]:
    """Return the type of the file system that an absolute path without links lies on.

    :param mounts: the text of Linux' ``/proc/self/mountinfo``.
    """
    deepest, found = "", None
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), fields[4])
        # Of several on the same folder, the last one covers the others.
        if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(deepest):
            deepest, found = point, source[0]
    return found
