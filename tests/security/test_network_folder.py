"""A cache folder on a network file system is refused, unless the user says that one machine alone uses it."""

import asyncio
from pathlib import Path

import pytest

from claude_force_backends import _disk_mounts
from claude_force_backends._disk_mounts import mounted_type, network_type
from claude_force_cache import ForeignStoreError, open_cache

MOUNTS = r"""22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:20 / /home rw,relatime shared:2 master:1 - nfs4 files:/home rw,vers=4.2
24 23 252:1 / /home/local rw - xfs /dev/vdb rw
25 22 0:21 / /mnt/with\040blank rw - cifs //files/share rw
26 22 0:22 / /mnt/covered rw - ext4 /dev/vdc rw
27 26 0:23 / /mnt/covered rw - fuse.sshfs me@host: rw
28 22 0:24 / /mnt/host rw - 9p share rw
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/cache/answers", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/.cache", "nfs4"),
        ("/homeless", "ext4"),
        ("/home/local/answers", "xfs"),
        ("/mnt/with blank/answers", "cifs"),
        ("/mnt/covered/answers", "fuse.sshfs"),
        ("/mnt/host/answers", "9p"),
    ],
)
def test_a_folder_lies_on_the_deepest_and_latest_mount_above_it(path: str, kind: str) -> None:
    assert mounted_type(path, MOUNTS) == kind


@pytest.mark.parametrize("mounts", ["", "\n", " - ", "1 2 3 4 5", "1 2 3 4 / - ", "\x00"])
def test_a_list_of_mounts_that_says_nothing_is_no_error(mounts: str) -> None:
    assert not mounted_type("/home", mounts)


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "fuse.sshfs", "fuse.glusterfs")),
        *((kind, False) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "9p", "virtiofs", "fuse", "fuseblk")),
    ],
)
def test_network_file_systems_are_refused_and_others_are_not(
    kind: str, is_network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - {kind} source rw\n")
    monkeypatch.setattr(_disk_mounts, "_MOUNTS", mounts)
    assert network_type(tmp_path) == (kind if is_network else None)

    async def use(options: str) -> None:
        async with open_cache(f"disk://{tmp_path}/cache{options}") as cache:
            await cache.set("key", "value")
            assert await cache.get("key") == "value"

    if is_network:
        with pytest.raises(ForeignStoreError, match=rf"network file system \({kind}\).*network=true") as caught:
            asyncio.run(use(""))
        assert len(str(caught.value).splitlines()) == 1
        assert not (tmp_path / "cache").exists()
    asyncio.run(use("?network=true" if is_network else ""))


def test_where_the_system_does_not_tell_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disk_mounts, "_MOUNTS", tmp_path / "absent")
    assert network_type(tmp_path) is None
