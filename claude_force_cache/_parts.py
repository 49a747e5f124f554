"""Parts: what a store has of the values that it cannot hold in one entry, see :mod:`._chunks`."""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ._backend import Backend, Entry
from ._chunks import IncompleteEntryError, Limits, Manifest, entry_of
from ._errors import BackendUnavailableError, PartlyUnavailableError
from ._guard import STORE_FACTOR, Call
from ._sealing import CorruptEntryError, Sealer, is_stand_in

__all__ = ["Parts"]

_MOST_SEEN = 4096


class Parts:
    """The parts of the values of one cache.

    :param max_bytes: the limit of the namespace.
    :param call: calls the backend's verbs.
    :param sealer_of: returns the sealer that an entry says it was sealed with, if there is one.
    """

    def __init__(
        self,
        backend: Backend,
        max_bytes: Optional[int],
        *,
        call: Call,
        sealer_of: Callable[[bytes], Optional[Sealer]],
    ) -> None:
        self._backend = backend
        self._max_bytes = max_bytes
        self._call = call
        self._sealer_of = sealer_of
        self._capabilities = backend.capabilities
        self._limits = Limits.of(backend.capabilities, max_bytes)
        # What a look-up saw under a name, if it was a stand-in, else None.
        self._seen: Dict[str, Optional[bytes]] = {}

    @property
    def limits(self) -> Limits:
        """What fits into the store; complete once it is open."""
        if self._capabilities is not self._backend.capabilities:
            self._capabilities = self._backend.capabilities
            self._limits = Limits.of(self._capabilities, self._max_bytes)
        return self._limits

    def note(self, names: Sequence[str], read: Mapping[str, Optional[Entry]]) -> None:
        """Remember what a look-up saw, so that the store that follows it need not look what it replaces."""
        if self.limits.part is None:
            return
        if len(self._seen) + len(names) > _MOST_SEEN:
            self._seen.clear()
        for name in names:
            entry = read[name]
            self._seen[name] = entry.value if entry is not None and is_stand_in(entry.value) else None

    def overlook(self, names: Iterable[str]) -> None:
        """Forget what was seen under the names: the next store looks what it replaces."""
        for name in names:
            self._seen.pop(name, None)

    async def under(self, names: Sequence[str]) -> List[str]:
        """Return the parts of what is under the names, as it was seen or else as it is now.

        :raises BackendUnavailableError: if the store is not available.
        """
        parts: List[str] = []
        if self.limits.part is not None:
            for name in names:
                if name in self._seen:
                    sealed = self._seen.pop(name)
                else:
                    entry = await self._call(lambda: self._backend.get(name))  # noqa: B023 - awaited here
                    sealed = None if entry is None else entry.value
                parts += [] if sealed is None else self.named_in(name, sealed)
        return parts

    def manifest(self, name: str, sealed: bytes) -> Optional[Manifest]:
        """Return the manifest of a value in parts; None for another value, and for what cannot be opened."""
        sealer = self._sealer_of(sealed) if is_stand_in(sealed) else None
        if sealer is None:
            return None
        try:
            return Manifest.unpack(sealer.open_stand_in(name, sealed))
        except CorruptEntryError:
            return None

    def named_in(self, name: str, sealed: bytes) -> List[str]:
        """Return the parts that an entry names."""
        manifest = self.manifest(name, sealed)
        return [] if manifest is None else manifest.names(name)

    async def read(self, sealer: Sealer, name: str, sealed: bytes, call: Call) -> Tuple[Manifest, Mapping[str, Entry]]:
        """Return the manifest of a value in parts, and all that was found under the names of its parts.

        :raises CorruptEntryError: if the entry is not one that was sealed for a value in parts.
        :raises IncompleteEntryError: if parts are gone.
        :raises BackendUnavailableError: if the store is not available.
        """
        manifest = Manifest.unpack(sealer.open_stand_in(name, sealed))
        parts = manifest.names(name)
        found = await call(lambda: self._backend.get_many(parts), manifest.patience)
        missing = [part for part in parts if part not in found]
        if missing:
            raise IncompleteEntryError(missing)
        return manifest, found

    async def write(self, manifest: Manifest, parts: Mapping[str, bytes], ttl: Optional[float]) -> int:
        """Store parts that nothing refers to yet.

        :returns: how many other entries had to go.
        :raises EntryTooLargeError: if one does not fit.
        :raises BackendUnavailableError: if the store is not available.
        """
        items = {name: (part, ttl) for name, part in parts.items()}
        return await self._call(lambda: self._backend.set_many(items), STORE_FACTOR * manifest.patience, writes=True)

    async def drop(self, parts: Iterable[str]) -> None:
        """Delete parts that nothing refers to any more, as far as that works; the rest expires or makes room."""
        for part in parts:
            try:
                await self._call(lambda: self._backend.delete(part), STORE_FACTOR, writes=True)  # noqa: B023 - awaited here
            except PartlyUnavailableError:
                continue
            except BackendUnavailableError:
                return

    async def orphans(self, names: Iterable[str]) -> List[str]:
        """Return those of the names that are parts of nothing that the store has.

        :raises BackendUnavailableError: if the store is not available.
        """
        families: Dict[str, List[str]] = {}
        for name in names:
            whole = entry_of(name)
            if whole is not None:
                families.setdefault(whole, []).append(name)
        orphans: List[str] = []
        for whole, parts in families.items():
            entry = await self._backend.get(whole)
            if entry is not None and is_stand_in(entry.value) and self._sealer_of(entry.value) is None:
                continue  # of a secret that is not known here
            named = set() if entry is None else set(self.named_in(whole, entry.value))
            orphans += [part for part in parts if part not in named]
        return orphans
