"""``lmdb:///absolute/path``: a cache in memory-mapped files, for many readers on one machine.

The folder holds one LMDB file for each namespace. A read is a look into the mapped file: it takes no lock,
copies the value once, and goes on while another process writes. Writers of all processes take turns.

Durability: with ``sync=true`` a write has reached the disk when it returns. With ``sync=false`` it has
reached the operating system: it survives the death of the process, and after a power cut the file may be lost.

Recency: a read writes nothing. Its use is remembered, and written down with the next write of this process,
or after a few seconds. So within a process the least recently used is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from claude_force_cache import BackendPlugin, BackendSettings, Capabilities, Option, hookimpl, parse_boolean, parse_size

if TYPE_CHECKING:
    from .backend import LmdbBackend

__all__ = ["claude_force_cache_backend"]

MAP_SIZE = 16 * 2**30
"""The default of the option, in bytes of address space; the file takes what it needs of it."""

SHARE_OF_MAP = 4
"""What part of the map a value, or the whole limit, may take: the rest is for pages, indexes and old states."""

CAPABILITIES = Capabilities(
    max_value_bytes=MAP_SIZE // SHARE_OF_MAP - 1,
    recency=5.0,
    shared_between_machines=False,
)


def _create(settings: BackendSettings) -> LmdbBackend:
    from .backend import LmdbBackend  # LMDB is imported only for those who chose it

    return LmdbBackend(settings)


@hookimpl
def claude_force_cache_backend() -> BackendPlugin:
    """Describe the backend ``lmdb``."""
    return BackendPlugin(
        create=_create,
        url="lmdb:///absolute/path",
        summary="memory-mapped files on this machine: readers wait for nobody",
        capabilities=CAPABILITIES,
        options=(
            Option("map_size", parse_size, MAP_SIZE, "the most bytes a file may grow to", minimum=2**20),
            Option("sync", parse_boolean, True, "wait until a write has reached the disk"),
        ),
        client="lmdb",
        install="pip install claude-force-cache-lmdb",
        api_version=1,
    )
