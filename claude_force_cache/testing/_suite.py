"""The test class that a backend's author derives from."""

from __future__ import annotations

from typing import Any, Callable, ClassVar, Dict, FrozenSet, Mapping, Optional, Tuple

from .._backend import Clock
from .._capabilities import Capabilities
from ._checks import CHECKS, Check
from ._failure import ConformanceError
from ._handle import AnyBackend
from ._kit import Effort, Kit

__all__ = ["HOOKS", "BackendConformance"]

HOOKS = ("advance_clock", "expire_natively", "read_raw", "write_raw", "second_process")


class _Sealed(type):
    """Makes a test method of every check, and keeps subclasses from losing one."""

    def __init__(cls, name: str, bases: Tuple[type, ...], body: Dict[str, Any]) -> None:
        super().__init__(name, bases, body)
        if not any(isinstance(base, _Sealed) for base in bases):
            for check in CHECKS.values():
                type.__setattr__(cls, f"test_{check.name}", _method(cls, check))
            return
        for method in _methods():
            if getattr(cls, method, None) is not getattr(BackendConformance, method):
                raise TypeError(f"{name} redefines {method}, {_REMEDY}")
        for machinery in _MACHINERY:
            if getattr(cls, machinery) is not getattr(BackendConformance, machinery):
                raise TypeError(f"{name} redefines {machinery}, by which the kit runs its checks: use another name")
        if not getattr(cls, "__test__", True):
            raise TypeError(f"{name} sets __test__, and would lose every check: a class that is no test has no kit")
        for gap, reason in getattr(cls, "known_gaps", {}).items():
            if not reason.strip():
                raise TypeError(f"known_gaps of {name} gives no reason for {gap!r}")
        if "__init__" in body:
            raise TypeError(f"{name} defines __init__, and pytest does not collect such classes: use a fixture")
        unknown = sorted(set(getattr(cls, "known_gaps", ())) - set(CHECKS))
        if unknown:
            raise TypeError(f"known_gaps of {name} names {unknown[0]!r}, which is no check")

    def __setattr__(cls, name: str, value: object) -> None:
        cls._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        cls._refuse(name)
        super().__delattr__(name)

    def _refuse(cls, name: str) -> None:
        if name in _methods():
            raise TypeError(f"{cls.__name__}.{name} cannot be changed or deleted, {_REMEDY}")


_MACHINERY = ("has_hook", "run_check", "run_under_pytest", "gap_is_open")
_REMEDY = "which would lose a check: a test of your own needs another name, a check that fails goes to known_gaps"


def _methods() -> FrozenSet[str]:
    return frozenset(f"test_{name}" for name in CHECKS)


def _method(cls: type, check: Check) -> Callable[[BackendConformance], None]:
    def test(self: BackendConformance) -> None:
        __tracebackhide__ = True
        self.run_under_pytest(check)

    test.__name__ = f"test_{check.name}"
    test.__qualname__ = f"{cls.__qualname__}.{test.__name__}"
    test.__doc__ = check.rule
    return test


class BackendConformance(metaclass=_Sealed):
    """Proves that a backend keeps the contract.

    Derive a class called ``Test...`` and define ``make_backend``::

        class TestEtcd(BackendConformance):
            capabilities = Capabilities(recency=None)  # what the store cannot do

            async def make_backend(self, *, namespace, max_bytes, clock):
                return EtcdBackend(BackendSettings(URL, namespace, max_bytes, clock))

    Each check is a test method. Checks never run on anything but namespaces of their own, and clear those. The
    five methods after ``make_backend`` are optional; each that is defined switches on more checks, and a check
    that cannot run is skipped with the reason. The ``backend`` that some are given is one that ``make_backend``
    returned, so they may annotate it with that class.

    Examples are the same in every run, unless the environment has ``CLAUDE_FORCE_CONFORMANCE=random``; a failure
    tells the seed, and ``CLAUDE_FORCE_CONFORMANCE_SEED`` takes it. ``CLAUDE_FORCE_CONFORMANCE_EXAMPLES`` overrides
    :attr:`max_examples`. Hypothesis profiles and saved examples have no influence.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()
    """What the backend cannot do. Has to equal what an opened backend says of itself; only ``max_value_bytes``
    and ``max_ttl`` may turn out larger than declared."""

    max_examples: ClassVar[int] = Effort.max_examples
    """How many examples the state machine runs; fewer for a slow store."""

    known_gaps: ClassVar[Mapping[str, str]] = {}
    """Checks that are expected to fail, by name, each with the reason. They run derandomised, are reported as
    expected failures, and fail when they pass."""

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> AnyBackend:
        """Return a new, unopened backend on the store under test.

        Called several times in one example: two backends with the same namespace are two connections to the same
        entries, as far as the store is shared. ``clock`` is None where the store's own time is to be used, always
        if the capabilities say that no clock can be injected.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define make_backend")

    async def advance_clock(self, seconds: float) -> None:
        """Optional: let that time pass for a store whose clock cannot be injected; may wait for it."""
        raise NotImplementedError

    async def expire_natively(self, backend: Any, key: str) -> None:
        """Optional: return when the store itself has dropped an entry, stored with a life of a second."""
        raise NotImplementedError

    async def read_raw(self, backend: Any, key: str) -> Optional[bytes]:
        """Optional: return what the store holds under ``key``, read without the backend, or None."""
        raise NotImplementedError

    async def write_raw(self, backend: Any, key: str, data: bytes) -> None:
        """Optional: replace what the store holds under ``key``, as a stranger would, past the backend."""
        raise NotImplementedError

    def second_process(self, *, namespace: str, max_bytes: Optional[int]) -> Callable[[], AnyBackend]:
        """Optional: return what makes an unopened backend in another process, on the store's own clock.

        It is pickled, so it is made of what can be imported there: ``functools.partial(EtcdBackend, settings)``.
        """
        raise NotImplementedError

    def has_hook(self, name: str) -> bool:
        """Whether an optional method is defined."""
        return getattr(type(self), name) is not getattr(BackendConformance, name)

    def run_check(self, check: Check, effort: Effort) -> None:
        """Run one check.

        :raises ConformanceError: if the backend breaks the rule.
        """
        __tracebackhide__ = True
        try:
            check.run(Kit(self, effort, check.name))
        except ConformanceError as failure:
            message = f"{check.name}: {failure.message}\nthe rule: {check.rule}\n({effort})"
            # The kit's own frames tell nothing; those of the backend stay with the cause.
            raise ConformanceError(message, failure.steps) from failure.__cause__

    def run_under_pytest(self, check: Check) -> None:
        """Run one check, and tell pytest if it does not run or is a known gap."""
        import pytest

        __tracebackhide__ = True
        kit = Kit(self, Effort(), check.name)
        obstacle = check.obstacle(kit)
        gap = self.known_gaps.get(check.name)
        if gap is not None:
            if self.gap_is_open(check):
                pytest.xfail(gap)
            pytest.fail(closed_gap(check, obstacle), pytrace=False)
        if obstacle is not None:
            # It asks for what the store cannot do, as its author declares, or for a hook that is not written. To fail
            # would let no such backend through, and to pass would claim what was not checked.
            pytest.skip(f"{type(self).__name__}: {check.name} does not run: {obstacle}")
        try:
            self.run_check(check, Effort.from_environment(self.max_examples))
        except ConformanceError as error:
            if error.__cause__ is not None:
                raise
            failure = str(error)
        else:
            return
        pytest.fail(failure, pytrace=False)  # no frame of the kit's says more

    def gap_is_open(self, check: Check) -> bool:
        """Whether a known gap still is one: the check runs, derandomised, and fails."""
        effort = Effort.of(max_examples=self.max_examples)
        if check.obstacle(Kit(self, effort, check.name)) is not None:
            return False
        try:
            self.run_check(check, effort)
        except ConformanceError:
            return True
        return False


def closed_gap(check: Check, obstacle: Optional[str]) -> str:
    """Return what is wrong with a known gap that is none."""
    why = "passes" if obstacle is None else f"does not run ({obstacle})"
    return f"{check.name} is in known_gaps and {why}: take it out"
