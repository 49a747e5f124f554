"""A suite for whatever backend a URL chooses, without a line of code for it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Callable, ClassVar, Dict, Optional, Type

from .._backend import Backend, Clock
from .._capabilities import Capabilities
from .._open import CORE_OPTIONS
from .._plugins import load_backend, require_client
from .._settings import BackendSettings, BackendURL, convert_options
from .._threads import ThreadedBackend
from ._handle import AnyBackend
from ._suite import BackendConformance

__all__ = ["suite_of_url"]


class _URLConformance(BackendConformance):
    url: ClassVar[str] = ""

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> AnyBackend:
        return _make(self.url, namespace, max_bytes, clock)

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], AnyBackend]:
        return partial(_make, self.url, namespace, max_bytes, None)


def suite_of_url(url: str) -> Type[BackendConformance]:
    """Return a suite for the backend that a cache URL chooses, after opening it once.

    The checks use namespaces and limits of their own, whatever the URL says of them. Where the URL has no options
    of the backend's, what the plugin declares is checked, else what the opened backend says of itself.

    :raises ConfigurationError: if the URL cannot be used; see the tree of errors.
    :raises BackendUnavailableError: if the store cannot be reached.
    """
    parsed, given = BackendURL.parse(url)
    plugin = load_backend(parsed.scheme)
    require_client(parsed.scheme, plugin)
    opened = asyncio.run(_look(url))
    as_declared = len(parsed.hosts) <= 1 and not any(option.name in given for option in plugin.options)
    capabilities = plugin.capabilities if as_declared else opened
    return type("URLConformance", (_URLConformance,), {"url": url, "capabilities": capabilities})


async def _look(url: str) -> Capabilities:
    made = _make(url, "kit-look", None, None)
    backend: Backend = ThreadedBackend(made) if not isinstance(made, Backend) else made
    await backend.open()
    try:
        await backend.ping()
        return backend.capabilities
    finally:
        await backend.close()


def _make(url: str, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> AnyBackend:
    parsed, given = BackendURL.parse(url)
    plugin = load_backend(parsed.scheme)
    options: Dict[str, object] = convert_options(
        [*CORE_OPTIONS, *plugin.options], given, owner=f"backend {parsed.scheme!r}"
    )
    own = {option.name: options[option.name] for option in plugin.options}
    return plugin.create(BackendSettings(parsed, namespace, max_bytes, clock, own))
