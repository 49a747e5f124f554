"""Discovery: backends are plugins, found through one entry-point group and loaded by the one name chosen.

Listing names imports nothing. Loading one imports that plugin alone, through pluggy, so that a plugin which
is broken, or whose client library is missing, harms no other.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Callable, Dict, List, Optional, Tuple, Union

import pluggy

from ._backend import Backend, SyncBackend
from ._capabilities import Capabilities
from ._errors import (
    DuplicateBackendError,
    IncompatibleBackendError,
    MissingClientError,
    UnknownBackendError,
)
from ._settings import BackendSettings, Option

__all__ = [
    "API_VERSION",
    "GROUP",
    "BackendInfo",
    "BackendPlugin",
    "hookimpl",
    "list_backends",
    "load_backend",
]

API_VERSION = 1
"""The version of the backend contract. It changes when a backend that kept the old one would break."""

GROUP = "claude_force_cache.backends"
"""The entry-point group in which distributions announce their backends."""

_PROJECT = "claude_force_cache"
hookspec = pluggy.HookspecMarker(_PROJECT)
hookimpl = pluggy.HookimplMarker(_PROJECT)
"""Marks a plugin's functions; see :class:`BackendSpec`."""


@dataclass(frozen=True)
class BackendPlugin:
    """What a plugin says about its backend. Making one must not import the client library.

    :param create: makes the backend out of its settings, without input or output; this is the place to
        import the client library.
    :param url: the form of the URL, for example ``redis://[user:password@]host[:port][/database]``.
    :param summary: one line on what the store is good for.
    :param capabilities: what the backend cannot do, at its default options.
    :param api_version: the :data:`API_VERSION` that the plugin was written for, as a literal number.
    :param options: the options beyond those that every cache has.
    :param client: the import name of the client library, or None if none is needed.
    :param install: the command that installs the client library.
    """

    create: Callable[[BackendSettings], Union[Backend, SyncBackend]]
    url: str
    summary: str
    capabilities: Capabilities
    api_version: int
    options: Tuple[Option, ...] = ()
    client: Optional[str] = None
    install: Optional[str] = None

    @property
    def client_installed(self) -> bool:
        """Whether the client library can be imported, found out without importing it."""
        return self.client is None or _is_importable(self.client)


class BackendSpec:
    """The hook that a plugin implements: the object that its entry point names has this function."""

    @hookspec(firstresult=True)
    def claude_force_cache_backend(self) -> BackendPlugin:  # type: ignore[empty-body]  # pluggy reads the signature only
        """Return the description of the backend. Called once, when the backend was chosen or listed in full."""


@dataclass(frozen=True)
class BackendInfo:
    """One installed backend, as the metadata of its distribution tells it.

    :param name: the entry-point name, which is the URL's scheme.
    :param distribution: the name of the distribution that provides it.
    :param version: the distribution's version.
    :param target: what the entry point points to.
    """

    name: str
    distribution: str
    version: str
    target: str


def list_backends() -> List[BackendInfo]:
    """Return every installed backend, sorted by name, first and third parties alike, importing none.

    A name that two distributions claim is listed twice; choosing it raises an error.

    :raises IncompatibleBackendError: if the metadata of any distribution is damaged, so that Python cannot tell
        what is installed.
    """
    found: Dict[Tuple[str, str], BackendInfo] = {}
    for distribution in importlib.metadata.distributions():
        try:
            entry_points = distribution.entry_points
        except Exception as error:
            name = distribution.metadata["Name"] or "(unnamed)"
            raise IncompatibleBackendError(
                f"the entry points of {name} {distribution.version} cannot be read ({_one_line(error)}): "
                f"pip install --force-reinstall {name}"
            ) from error
        for entry_point in entry_points:
            if entry_point.group != GROUP:
                continue
            name = distribution.metadata["Name"] or "(unnamed)"
            info = BackendInfo(entry_point.name, name, distribution.version, entry_point.value)
            # The same distribution can be on sys.path twice; the first one is the one that imports.
            found.setdefault((info.name, re.sub(r"[-_.]+", "-", name).lower()), info)
    return sorted(found.values(), key=lambda info: (info.name, info.distribution))


def load_backend(name: str) -> BackendPlugin:
    """Return the plugin of the backend called ``name``, importing that one only.

    :raises UnknownBackendError: if no distribution provides the name.
    :raises DuplicateBackendError: if more than one does.
    :raises IncompatibleBackendError: if it cannot be imported or was built for another API version.
    :raises MissingClientError: if it cannot be imported because a library is missing.
    """
    installed = list_backends()
    matching = [info for info in installed if info.name == name]
    if not matching:
        raise UnknownBackendError(_unknown(name, [info.name for info in installed]))
    if len(matching) > 1:
        owners = " and ".join(f"{info.distribution} {info.version}" for info in matching)
        raise DuplicateBackendError(
            f"backend {name!r} is provided by {owners}; uninstall one of them: "
            f"pip uninstall {matching[-1].distribution}"
        )
    return _load(matching[0])


def require_client(name: str, plugin: BackendPlugin) -> None:
    """Do nothing if the plugin's client library is installed.

    :raises MissingClientError: if it is not; the message has the command that installs it.
    """
    if not plugin.client_installed:
        raise MissingClientError(
            f"backend {name!r} needs the library {plugin.client!r}, which is not installed: "
            f"{plugin.install or f'pip install {plugin.client}'}"
        )


def _load(info: BackendInfo) -> BackendPlugin:
    owner = f"backend {info.name!r} of {info.distribution} {info.version}"
    manager = pluggy.PluginManager(_PROJECT)
    manager.add_hookspecs(BackendSpec)
    try:
        manager.load_setuptools_entrypoints(GROUP, name=info.name)
        plugin = manager.hook.claude_force_cache_backend()
    except ModuleNotFoundError as error:
        raise MissingClientError(
            f"{owner} cannot be imported, the module {error.name!r} is missing: "
            f"install it, or reinstall the plugin with its extras: pip install --force-reinstall {info.distribution}"
        ) from error
    except (Exception, SystemExit) as error:  # one that exits would take the listing of all others with it
        raise IncompatibleBackendError(
            f"{owner} cannot be loaded ({type(error).__name__}: {_one_line(error)}): "
            f"upgrade it: pip install --upgrade {info.distribution}"
        ) from error
    version = getattr(plugin, "api_version", None)
    if version is not None and version != API_VERSION:
        raise IncompatibleBackendError(
            f"{owner} was built for API version {version}, this claude-force-cache has {API_VERSION}: "
            f"pip install --upgrade {info.distribution} claude-force-cache"
        )
    if not isinstance(plugin, BackendPlugin):
        raise IncompatibleBackendError(
            f"{owner} describes no backend, its entry point leads to {info.target!r}: "
            f"upgrade it: pip install --upgrade {info.distribution}"
        )
    return plugin


def _unknown(name: str, known: List[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    names = ", ".join(sorted(set(known))) or "none"
    return f"no installed backend is called {name!r}: {hint}installed are {names}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _is_importable(module: str) -> bool:
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
