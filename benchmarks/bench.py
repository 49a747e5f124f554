"""What the cases share: a folder, servers, caches of ours on every backend, and the list of cases."""

from __future__ import annotations

import itertools
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Coroutine, Dict, Iterator, List, NamedTuple, Optional, TypeVar

from claude_force_cache import (
    BackendSettings,
    BackendURL,
    Cache,
    CacheError,
    load_backend,
    open_cache,
)

from . import plots
from .measuring import Section
from .payloads import noise
from .servers import PROGRAMS, Servers

__all__ = ["ALL", "CASES", "SECRET", "STORES", "Bench", "Case", "case", "key", "maybe", "patience"]

T = TypeVar("T")
Run = Callable[["Bench"], Coroutine[Any, Any, Section]]

STORES = ("memory", "disk", "redis", "memcached")
SECRET = "a secret for measurements only"
_NAMESPACE = "default"
_FILL_BATCH = 500


class Case(NamedTuple):
    """Something to measure: the name on the command line, the heading in the report, and what does it.

    :param seconds: after which it is given up.
    """

    name: str
    title: str
    run: Run
    seconds: float


CASES: Dict[str, Case] = {}
ALL: List[str] = []
"""The cases of a run that names none."""


def case(name: str, title: str, *, seconds: float = 420.0, alone: bool = False) -> Callable[[Run], Run]:
    """Enter the decorated function, which returns a section of the report, into the list of cases.

    :param seconds: how long it may take, on a slow machine.
    :param alone: whether it runs only when it is named.
    """

    def enter(run: Run) -> Run:
        CASES[name] = Case(name, title, run, seconds)
        if not alone:
            ALL.append(name)
        return run

    return enter


def key(index: int) -> List[object]:
    """Return a cache key shaped like an orchestrator's: some fixed bytes and a task of 600 characters."""
    return [b"\x17" * 32, f"{index:08d} " + "Review this function. " * 27]


class Bench:
    """One run.

    :param folder: an empty folder for everything that is written.
    :param out: where the plots go.
    :param quick: whether to take fewer rounds and smaller stores.
    :param say: told what is being measured.
    """

    def __init__(self, folder: Path, out: Path, *, quick: bool, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._out = out
        self.quick = quick
        self.say = say
        self.servers = Servers(folder)
        self.failures: List[str] = []
        self._numbers = itertools.count()

    def pick(self, quick: T, full: T) -> T:
        """Return the first in a quick run, the second in a full one."""
        return quick if self.quick else full

    def plot(self, section: Section, name: str, caption: str, groups: plots.Groups) -> None:
        """Draw bars beside the section's table, or list what they need as missing."""
        self._draw(section, name, caption, lambda path: plots.bars(path, groups))

    def plot_curves(self, section: Section, name: str, caption: str, panels: plots.Panels, *, across: str) -> None:
        """Draw curves beside the section's table, or list what they need as missing."""
        self._draw(section, name, caption, lambda path: plots.curves(path, panels, across=across))

    def _draw(self, section: Section, name: str, caption: str, draw: Callable[[Path], None]) -> None:
        file = f"{name}.svg"
        try:
            draw(self._out / file)
        except ImportError as error:
            section.missing.append(f"no plot: {error}; `make bench` installs it")
        else:
            section.plots[file] = caption

    @contextmanager
    def attempt(self, section: Section, what: str) -> Iterator[None]:
        """Enter what fails inside into the section and into :attr:`failures`, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a part that fails must not cost the figures of the others
            traceback.print_exc()
            reason = f"{what}: {type(error).__name__}: {error}"
            section.missing.append(f"failed: {reason}")
            self.failures.append(reason)

    def missing(self, store: str) -> Optional[str]:
        """Return why nothing can be measured on this store, or None."""
        if store in PROGRAMS and self.servers.program(store) is None:
            return f"{store}: not measured: {PROGRAMS[store]} is not installed"
        try:
            plugin = load_backend(store)
        except CacheError as error:
            return f"{store}: not measured: {error}"
        return None if plugin.client_installed else f"{store}: not measured: {plugin.client} is not installed"

    def new_url(self, store: str) -> str:
        """Return the URL of an empty cache on this store, on a server of its own if it needs one."""
        if store == "disk":
            return f"disk://{self.folder}/disk-{next(self._numbers)}"
        if store == "memory":
            return "memory://"
        return f"{store}://127.0.0.1:{self.servers.start(store)}"

    def cache(self, url: str, **options: object) -> Cache[Any]:
        """Return a cache with this run's secret. Stores have the time that a busy machine may need."""
        settings: Dict[str, Any] = {"timeout": 30, **patience(url), **options}
        return open_cache(url, secrets=SECRET, **settings)

    def backend(self, url: str, *, max_bytes: Optional[int] = None) -> Any:
        """Return the backend of the cache at ``url`` itself, not opened: async, or blocking."""
        parts, query = BackendURL.parse(url)
        plugin = load_backend(parts.scheme)
        return plugin.create(
            BackendSettings(
                url=parts,
                namespace=query.get("namespace", _NAMESPACE),
                max_bytes=max_bytes,
                options={**{option.name: option.default for option in plugin.options}, **patience(url)},
            )
        )

    async def entry_size(self, value: object) -> int:
        """Return the size of an entry that holds ``value``, in bytes; it is the same on every backend."""
        async with self.cache("memory://") as cache:
            await cache.set(key(0), value)
            return (await cache.usage()).bytes

    async def fill(self, url: str, *, entries: int, size: int) -> int:
        """Put entries of ``size`` bytes, key included, into the empty cache at ``url``, and return their sum in bytes.

        They go directly into the backend, many at a time, and nobody can open them: what is measured later is how a
        store behaves that holds so much.
        """
        backend = self.backend(url)
        data = noise(size - 64)
        items = {f"{index:064x}": (data, 86400.0) for index in range(entries)}
        names = list(items)
        await maybe(backend.open())
        try:
            for start in range(0, entries, _FILL_BATCH):
                await maybe(backend.set_many({name: items[name] for name in names[start : start + _FILL_BATCH]}))
            usage = await maybe(backend.usage())
        finally:
            await maybe(backend.close())
        if usage.entries != entries:
            raise RuntimeError(f"{entries} entries were stored, and {usage.entries} are there")
        return int(usage.bytes)


def patience(url: str) -> Dict[str, float]:
    """Return the options that give a server the time which a busy machine may need."""
    options = {"redis": ("socket_timeout",), "memcached": ("connect_timeout", "socket_timeout")}
    return dict.fromkeys(options.get(url.partition(":")[0], ()), 30.0)


async def maybe(result: Any) -> Any:
    """Return what a verb returns, of a blocking backend or of the other kind."""
    return await result if hasattr(result, "__await__") else result
