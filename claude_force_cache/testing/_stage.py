"""Where one example of a check is played: a namespace and an event loop of its own."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import secrets
from contextlib import contextmanager
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Coroutine,
    Iterator,
    List,
    NoReturn,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
)

from .._backend import Backend, SyncBackend
from .._threads import ThreadedBackend
from ._clock import ManualClock
from ._failure import ConformanceError
from ._handle import AnyBackend, Handle, show

if TYPE_CHECKING:
    from ._suite import BackendConformance

__all__ = ["Caught", "Stage"]

T = TypeVar("T")

_RUN = f"kit-{os.getpid():07}-{secrets.token_hex(4)}"
_numbers = itertools.count()


class Caught:
    """What :meth:`Stage.raises` caught; ``error`` is set when its block has ended."""

    error: Any = None


class Stage:
    """One namespace of the store under test, with every handle that was opened on it.

    All of an example happens in one event loop, because clients of network stores belong to the loop that
    they were made in. What the example stored is cleared in the end, and nothing else.

    :param suite: makes the backends.
    :param max_bytes: the limit of the handles that are made without one of their own.
    :param clock: None lets the store's own clock run, also where it could be set.
    """

    def __init__(self, suite: BackendConformance, max_bytes: Optional[int], clock: Optional[ManualClock]) -> None:
        self.suite = suite
        self.max_bytes = max_bytes
        self.clock = clock
        self.namespace = f"{_RUN}-{next(_numbers):07}"
        self.steps: List[str] = []
        if max_bytes is not None:
            self.steps.append(f"max_bytes is {max_bytes}")
        self.expected: Tuple[Type[BaseException], ...] = ()
        self.loop = asyncio.new_event_loop()
        self.handles: List[Handle] = []
        self._at_end: List[Callable[[], Coroutine[Any, Any, None]]] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns in this stage's event loop."""
        return self.loop.run_until_complete(work)

    def make(self, *, namespace: Optional[str] = None, max_bytes: Union[int, str, None] = "same") -> AnyBackend:
        """Return a new backend, unopened."""
        limit = self.max_bytes if isinstance(max_bytes, str) else max_bytes
        made = self.suite.make_backend(namespace=namespace or self.namespace, max_bytes=limit, clock=self.clock)
        if not inspect.isawaitable(made):
            raise TypeError("make_backend must be a coroutine function: write `async def make_backend`")
        backend = self.run(_awaited(made))
        if not isinstance(backend, (Backend, SyncBackend)):
            raise TypeError(f"make_backend returned a {type(backend).__name__}: expected a Backend or a SyncBackend")
        return backend

    def handle(
        self,
        *,
        namespace: Optional[str] = None,
        max_bytes: Union[int, str, None] = "same",
        name: str = "",
        opened: bool = True,
    ) -> Handle:
        """Return a new backend's handle, by default opened and on this stage's namespace and limit."""
        namespace = namespace or self.namespace
        handle = Handle(self.make(namespace=namespace, max_bytes=max_bytes), self, namespace, name)
        self.handles.append(handle)
        if opened:
            handle.open()
            if len(self.handles) == 1:
                self.steps.pop()
        return handle

    def view(self, handle: Handle) -> Backend:
        """Return the handle's backend as the core drives it: a blocking one in worker threads."""
        if isinstance(handle.backend, Backend):
            return handle.backend
        view = ThreadedBackend(handle.backend)
        self.at_end(view.close)
        return view

    def at_end(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``close`` when the example is over, after its entries were cleared."""
        self._at_end.append(close)

    def change_loop(self) -> None:
        """Go on in a new event loop; the one before is closed."""
        self._close_loop()
        self.loop = asyncio.new_event_loop()
        self.steps.append("go on in another event loop")

    def advance(self, seconds: float) -> None:
        """Let time pass: by the clock that the backends were given, or else by the suite's hook."""
        self.steps.append(f"{seconds:g} s pass" if seconds >= 0 else f"the clock is set back by {-seconds:g} s")
        if self.clock is not None:
            self.clock.advance(seconds)
        else:
            self.run(self.suite.advance_clock(seconds))

    def note(self, step: str) -> None:
        """Write down a step that is no single verb."""
        self.steps.append(step)

    def sum_up(self, what: str = "") -> None:
        """Replace the steps so far by one that tells what they came to, or by none."""
        del self.steps[0 if self.max_bytes is None else 1 :]
        if what:
            self.steps.append(what)

    def failure(self, message: str, about: Optional[str] = None) -> ConformanceError:
        """Return an error with the steps so far; ``about`` leaves out what other keys than this one went through."""
        return ConformanceError(message, [step for step in self.steps if about is None or _concerns(step, about)])

    def fail(self, message: str, about: Optional[str] = None) -> NoReturn:
        """Raise :class:`ConformanceError` with the steps so far."""
        raise self.failure(message, about)

    def require(self, condition: bool, message: str) -> None:
        """Fail unless ``condition`` holds."""
        if not condition:
            self.fail(message)

    def expect(self, what: str, seen: object, right: object, *, about: Optional[str] = None) -> None:
        """Fail unless what was ``seen`` equals what is ``right``; see :meth:`failure` for ``about``."""
        if seen != right:
            told, wanted = show(seen), show(right)
            if told == wanted:
                told, wanted = repr(seen), repr(right)
            self.fail(f"{what} is {told}, expected {wanted}", about)

    @contextmanager
    def raises(self, kind: Type[BaseException], what: str) -> Iterator[Caught]:
        """Fail unless the block raises ``kind``."""
        caught = Caught()
        self.expected = (kind,)
        try:
            yield caught
        except kind as error:
            caught.error = error
        else:
            self.fail(f"{what} did not raise {kind.__name__}")
        finally:
            self.expected = ()

    def account(self, handle: Handle, entries: Optional[int] = None, size: Optional[int] = None) -> None:
        """Fail unless the account equals the sum over a scan, and the numbers that are given."""
        # A scan may clear away what has expired, and so hide that it was counted.
        usage, infos = handle.usage(), handle.scan()
        names = [info.key for info in infos]
        self.require(len(set(names)) == len(names), f"scan yields {sorted(names)}: a key twice")
        self.require(usage[0] >= 0 and usage[1] >= 0, f"usage is {tuple(usage)}: never negative")
        counted = (len(infos), sum(info.size for info in infos))
        self.expect("usage, compared to the sum over a scan,", tuple(usage), counted)
        if entries is not None and size is not None:
            self.expect("usage", tuple(usage), (entries, size))
        if self.max_bytes is not None:
            self.require(usage[1] <= self.max_bytes, f"usage is {usage[1]} bytes, above max_bytes={self.max_bytes}")

    def close(self) -> None:
        """Remove what the example stored, and everything that it opened. Does not raise for a broken backend."""
        cleared = {handle.namespace for handle in self.handles if self._try(handle.clear)}
        if self.suite.capabilities.persistent:
            for namespace in {handle.namespace for handle in self.handles} - cleared:
                # Its backends were closed, and what they stored lasts.
                self._try(lambda: self.handle(namespace=namespace).clear())  # noqa: B023 - called here
        for close in self._at_end:
            self._try(lambda: self.run(close()))  # noqa: B023 - called here
        for handle in self.handles:
            self._try(handle.close)
        self._close_loop()

    @staticmethod
    def _try(end: Callable[[], object]) -> bool:
        try:
            end()
        except Exception:  # noqa: BLE001 - a backend under test may raise anything
            return False  # the checks judge the backend; here only the traces of an example are removed
        return True

    def _close_loop(self) -> None:
        try:
            self.run(self.loop.shutdown_asyncgens())
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
                self.run(_ended(task))
        finally:
            self.loop.close()


def _concerns(step: str, key: str) -> bool:
    return repr(key) in step or "'" not in step


async def _awaited(made: Any) -> Any:
    return await made


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
