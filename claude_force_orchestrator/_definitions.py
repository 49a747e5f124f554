"""Definitions as they are at the moment: read in threads, and read again while they are in use."""

from __future__ import annotations

import asyncio
import time
from typing import Dict, Tuple, Union

import anyio.to_thread

from ._errors import ProjectError
from ._project import Definition, Project

__all__ = ["Definitions", "LoadedDefinition"]

_FRESH_SECONDS = 1.0


class LoadedDefinition:
    """A definition and until when it may be used without looking at its files again.

    :ivar definition: the definition.
    :ivar fresh_until: in seconds of ``time.monotonic``.
    """

    __slots__ = ("definition", "fresh_until")

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.fresh_until = time.monotonic() + _FRESH_SECONDS


class Definitions:
    """The definitions of a project's agents.

    A file is read again when a task needs it and the last reading is a second old, so an edited agent answers
    from its old text for a second at most, and a look-up in between costs no file access at all.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._loaded: Dict[str, LoadedDefinition] = {}
        self._loading: Dict[Tuple[asyncio.AbstractEventLoop, str], asyncio.Task[_Outcome]] = {}

    async def get(self, name: str) -> LoadedDefinition:
        """Return the definition of an agent of the project. The same object as before if the text is the same.

        :raises ProjectError: if its files cannot be used.
        """
        loaded = self._loaded.get(name)
        if loaded is not None and time.monotonic() < loaded.fresh_until:
            return loaded
        # All who need the same agent wait for one reading, which goes on if one of them is cancelled.
        key = (asyncio.get_running_loop(), name)
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = key[0].create_task(self._load(name))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, LoadedDefinition):
            return outcome
        raise type(outcome)(str(outcome)) from outcome

    async def _load(self, name: str) -> _Outcome:
        try:
            definition = await anyio.to_thread.run_sync(self._project.read_definition, name)
        except ProjectError as error:
            self._loaded.pop(name, None)
            return error
        loaded = self._loaded.get(name)
        if loaded is not None and loaded.definition == definition:
            loaded.fresh_until = time.monotonic() + _FRESH_SECONDS
        else:
            loaded = self._loaded[name] = LoadedDefinition(definition)
        return loaded


_Outcome = Union[LoadedDefinition, ProjectError]
