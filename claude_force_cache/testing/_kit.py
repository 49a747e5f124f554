"""What a check is given: the suite under test, its capabilities, and how hard to try."""

from __future__ import annotations

import os
import secrets
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Optional, Type

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from .._capabilities import Capabilities
from ._clock import ManualClock
from ._failure import ConformanceError
from ._stage import Stage

if TYPE_CHECKING:
    from ._suite import BackendConformance

__all__ = ["Effort", "Kit"]

MODE_VARIABLE = "CLAUDE_FORCE_CONFORMANCE"
SEED_VARIABLE = "CLAUDE_FORCE_CONFORMANCE_SEED"
EXAMPLES_VARIABLE = "CLAUDE_FORCE_CONFORMANCE_EXAMPLES"

# Below that, a property says little; what a slow store saves by fewer is in the state machine.
_LEAST_EXAMPLES = 20

_SESSION_SEED = secrets.randbelow(1 << 32)


@dataclass(frozen=True)
class Effort:
    """How hard the checks try.

    :param seed: what all random choices follow from. The same seed makes the same choices.
    :param max_examples: how many examples the state machine runs; other properties run a half of it.
    :param repeatable: whether the seed was fixed before, so that it need not be told.
    """

    seed: int = 0
    max_examples: int = 60
    repeatable: bool = True

    @classmethod
    def of(
        cls,
        *,
        derandomize: bool = True,
        seed: Optional[int] = None,
        max_examples: Optional[int] = None,
    ) -> Effort:
        """Return an effort with what is given, and a seed of its own where it has to be random."""
        examples = cls.max_examples if max_examples is None else max_examples
        if examples < 1:
            raise ValueError(f"max_examples is {examples}: expected at least 1")
        if seed is None:
            seed = 0 if derandomize else _SESSION_SEED
        return cls(seed, examples, derandomize)

    @classmethod
    def from_environment(cls, max_examples: Optional[int], environ: Mapping[str, str] = os.environ) -> Effort:
        """Return the effort that the environment asks for; ``max_examples`` holds where it does not.

        :raises ValueError: if a variable cannot be read.
        """
        mode = environ.get(MODE_VARIABLE, "") or "derandomized"
        if mode not in {"derandomized", "random"}:
            raise ValueError(f"{MODE_VARIABLE} is {mode!r}: expected derandomized or random")
        return cls.of(
            derandomize=mode == "derandomized",
            seed=_number(environ, SEED_VARIABLE),
            max_examples=_number(environ, EXAMPLES_VARIABLE) or max_examples,
        )

    def __str__(self) -> str:
        if self.repeatable:
            return f"seed {self.seed}"
        return f"seed {self.seed}; {MODE_VARIABLE}=random {SEED_VARIABLE}={self.seed} repeats it"


class Kit:
    """Runs one check on one suite.

    :param name: the check's name, which its random choices depend on.
    """

    def __init__(self, suite: BackendConformance, effort: Effort, name: str) -> None:
        self.suite = suite
        self.effort = effort
        self._name = name
        self._seed = zlib.crc32(f"{effort.seed} {name}".encode())

    @property
    def capabilities(self) -> Capabilities:
        """What the suite declares."""
        return self.suite.capabilities

    @property
    def late(self) -> float:
        """Seconds by which an entry may outlive its life."""
        return self.capabilities.ttl_resolution

    @property
    def tick(self) -> float:
        """A number of seconds that can be told from none; a hook for time is not as quick as a clock."""
        return 1.0 if self.capabilities.injectable_clock else 2.0

    def has_hook(self, name: str) -> bool:
        """Whether the suite defines an optional hook."""
        return self.suite.has_hook(name)

    def largest(self, key: str, share: Optional[int]) -> Optional[int]:
        """Return the size of the largest entry that fits under ``key`` where each partition holds ``share`` bytes."""
        longest = self.capabilities.max_value_bytes
        sizes = [size for size in (share, None if longest is None else len(key) + longest) if size is not None]
        return min(sizes, default=None)

    @contextmanager
    def stage(self, share: Optional[int] = None, *, real_time: bool = False) -> Iterator[Stage]:
        """Set up one example, and clear it away.

        :param share: the limit of each partition in bytes, or None for no limit.
        :param real_time: let the store's own clock run.
        """
        stage = self.new_stage(share, real_time=real_time)
        try:
            yield stage
        except ConformanceError as failure:
            failure.steps = failure.steps or tuple(stage.steps)
            raise
        finally:
            stage.close()

    def new_stage(self, share: Optional[int] = None, *, real_time: bool = False) -> Stage:
        """Set up one example; whoever asked closes it."""
        clock = ManualClock() if self.capabilities.injectable_clock and not real_time else None
        return Stage(self.suite, None if share is None else share * self.capabilities.partitions, clock)

    def examples(self, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
        """Run the decorated function at once, for arguments that Hypothesis draws."""

        def run(test: Callable[..., None]) -> None:
            given = hypothesis.given(**strategies)(test)
            settings = self._settings(max(_LEAST_EXAMPLES, self.effort.max_examples // 2))
            self._run(hypothesis.seed(self._seed)(settings(given)))

        return run

    def machine(self, machine: Type[RuleBasedStateMachine], steps: int) -> None:
        """Run a state machine; its attribute ``kit`` is this."""
        bound = hypothesis.seed(self._seed)(type(machine.__name__, (machine,), {"kit": self}))
        settings = self._settings(self.effort.max_examples, stateful_step_count=steps)
        self._run(lambda: run_state_machine_as_test(bound, settings=settings))

    def _run(self, test: Callable[[], None]) -> None:
        try:
            test()
        except Flaky as error:
            seen = [part for part in getattr(error, "exceptions", ()) if isinstance(part, ConformanceError)]
            message = f"the same calls give different results now and then: {seen[0].message if seen else error}"
            raise ConformanceError(message, seen[0].steps if seen else ()) from error

    def _settings(self, max_examples: int, **more: Any) -> hypothesis.settings:
        # Everything that a profile of the author's could change, and no database: suites share these functions.
        return hypothesis.settings(
            max_examples=max_examples,
            database=None,
            deadline=None,
            derandomize=False,
            phases=(Phase.generate, Phase.shrink),
            print_blob=False,
            report_multiple_bugs=False,
            # The store decides how long an example takes.
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.normal,
            **more,
        )


def _number(environ: Mapping[str, str], name: str) -> Optional[int]:
    text = environ.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}: expected a whole number")
    return int(text)
