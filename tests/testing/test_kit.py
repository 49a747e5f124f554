"""The kit's own behaviour: what it refuses of a suite, what it reports, and what its random choices depend on."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar, Dict, Hashable, List, Mapping, Optional, Sequence, Type

import hypothesis
import pytest

from claude_force_cache import BackendSettings, BackendURL, Capabilities, Clock, load_backend
from claude_force_cache.testing import CHECKS, BackendConformance, ConformanceError, ManualClock, check_backend

MEMORY = load_backend("memory")


class MemoryConformance(BackendConformance):
    """Not called Test..., so collected only in the classes derived from it."""

    capabilities = MEMORY.capabilities
    max_examples = 3

    async def make_backend(self, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> Any:
        return MEMORY.create(BackendSettings(BackendURL("memory"), namespace, max_bytes, clock))


class TestMemory(MemoryConformance):
    max_examples = 40


class TestMemoryOnceMore(MemoryConformance):
    """A second suite on the same factory, in the same session."""


def suite(**attributes: Any) -> Type[BackendConformance]:
    return type("Suite", (MemoryConformance,), attributes)


def breaking(verb: str, change: Any) -> Type[BackendConformance]:
    """Return a suite for a memory backend of which one verb was replaced."""

    async def make_backend(self: BackendConformance, **options: Any) -> Any:
        backend = await MemoryConformance.make_backend(self, **options)  # type: ignore[arg-type]
        right = getattr(backend, verb)
        setattr(backend, verb, lambda *args, **kwargs: change(right, *args, **kwargs))
        return backend

    return suite(make_backend=make_backend)


async def ignore_version(right: Any, key: str, *, version: Optional[Hashable] = None) -> bool:
    return bool(await right(key))


async def count_twice(right: Any) -> Any:
    usage = await right()
    return usage._replace(bytes=2 * usage.bytes)


class TestSuitesCannotLoseACheck:
    def test_by_redefining_it(self) -> None:
        with pytest.raises(TypeError, match="Suite redefines test_size_of_set, which would lose a check"):
            suite(test_size_of_set=lambda self: None)

    def test_by_replacing_it_with_nothing(self) -> None:
        with pytest.raises(TypeError, match="test_size_of_set"):
            suite(test_size_of_set=None)

    def test_by_inheriting_another_from_elsewhere(self) -> None:
        class Mixin:
            def test_ttl_edge(self) -> None:
                pass

        with pytest.raises(TypeError, match="test_ttl_edge"):
            type("Suite", (Mixin, MemoryConformance), {})

    def test_by_changing_or_deleting_it_later(self) -> None:
        made = suite()
        for changed in (made, BackendConformance):
            with pytest.raises(TypeError, match=r"test_ttl_edge cannot be changed or deleted"):
                changed.test_ttl_edge = None  # type: ignore[attr-defined]
            with pytest.raises(TypeError, match=r"test_ttl_edge cannot be changed or deleted"):
                del changed.test_ttl_edge  # type: ignore[attr-defined]
        made.max_examples = 5

    def test_by_a_constructor_for_which_pytest_leaves_the_class_out(self) -> None:
        with pytest.raises(TypeError, match="Suite defines __init__, and pytest does not collect"):
            suite(__init__=lambda self: None)

    def test_by_a_gap_that_is_no_check(self) -> None:
        with pytest.raises(TypeError, match="names 'size_of_nothing', which is no check"):
            suite(known_gaps={"size_of_nothing": "a slip of the pen"})

    def test_and_each_check_is_a_method_with_its_rule(self) -> None:
        assert len(CHECKS) > 70
        for name, check in CHECKS.items():
            assert getattr(TestMemory, f"test_{name}").__doc__ == check.rule
            assert check.rule.endswith(".")
            assert len(check.rule) <= 120


class TestReport:
    def test_says_which_checks_did_not_run_and_why(self) -> None:
        report = check_backend(MemoryConformance, max_examples=1)
        reasons = {result.name: result.detail for result in report.of("not run")}
        assert reasons["limit_at_open"] == "the backend declares persistent=False"
        assert reasons["shared_entries"] == "the backend declares shared_between_processes=False"
        assert reasons["size_after_native_expiry"] == "the suite does not define the hook expire_natively"
        assert len(report.of("passed")) + len(reasons) == len(CHECKS) == len(report.results)
        assert report.passed
        assert str(report).startswith(f"{len(CHECKS) - len(reasons)} of {len(CHECKS)} checks ran, 0 failed (seed 0)")

    def test_can_be_kept_as_json(self) -> None:
        report = check_backend(breaking("delete", ignore_version), max_examples=1)
        kept = json.loads(json.dumps(report.as_dict()))
        assert kept["passed"] is False
        assert kept["counts"]["failed"] == len(report.of("failed")) > 0
        assert {check["name"] for check in kept["checks"]} == set(CHECKS)

    def test_names_the_broken_rule_and_the_steps(self) -> None:
        (result,) = check_backend(breaking("delete", ignore_version), checks=["version_guards_delete"]).results
        assert result.outcome == "failed"
        lines = result.detail.splitlines()
        assert lines[0] == "version_guards_delete: delete by a version out of date is True, expected False"
        assert lines[1] == f"the rule: {CHECKS['version_guards_delete'].rule}"
        assert re.match(r" +\d+\. delete\('key', version=.*\) -> True", lines[-1])

    def test_has_a_small_example_from_the_state_machine(self) -> None:
        (result,) = check_backend(
            breaking("usage", count_twice), checks=["stateful_agreement"], max_examples=30
        ).results
        assert "expected (1, 1)" in result.detail
        assert "  4. " not in result.detail

    def test_tells_what_a_verb_raised(self) -> None:
        async def raise_it(right: Any, *args: Any, **kwargs: Any) -> Any:
            raise KeyError("a slip")

        (result,) = check_backend(breaking("touch", raise_it), checks=["touch_keeps_the_value"]).results
        assert "touch('key', ttl=60) raised KeyError: 'a slip'" in result.detail

    def test_is_told_as_it_comes(self) -> None:
        told: List[str] = []
        report = check_backend(
            MemoryConformance, checks=["ttl_edge", "size_of_set"], on_result=lambda result: told.append(result.name)
        )
        assert told == [result.name for result in report.results] == ["size_of_set", "ttl_edge"]

    @pytest.mark.parametrize("wrong", [{"checks": ["size_of_nothing"]}, {"max_examples": 0}])
    def test_of_what_cannot_be_asked_for_is_refused(self, wrong: Dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"size_of_nothing|max_examples is 0"):
            check_backend(MemoryConformance, **wrong)


class TestKnownGaps:
    def outcome(self, base: Type[BackendConformance], gaps: Mapping[str, str]) -> Any:
        made = type("Suite", (base,), {"known_gaps": gaps})
        (result,) = check_backend(made, checks=list(gaps)).results
        return result

    def test_are_reported_while_they_are_gaps(self) -> None:
        result = self.outcome(breaking("delete", ignore_version), {"version_guards_delete": "the store has none"})
        assert (result.outcome, result.detail) == ("known gap", "the store has none")

    def test_fail_when_they_are_none_any_more(self) -> None:
        result = self.outcome(MemoryConformance, {"version_guards_delete": "the store has none"})
        assert (result.outcome, result.detail) == (
            "failed",
            "version_guards_delete is in known_gaps and passes: take it out",
        )

    def test_fail_when_they_do_not_run_at_all(self) -> None:
        result = self.outcome(MemoryConformance, {"limit_at_open": "nothing lasts"})
        assert result.outcome == "failed"
        assert "does not run (the backend declares persistent=False)" in result.detail


class TestHooks:
    def test_switch_checks_on(self, tmp_path: Path) -> None:
        async def advance_clock(self: Any, seconds: float) -> None:
            raise AssertionError("nothing runs here")

        without = _obstacles(suite(capabilities=Capabilities(injectable_clock=False)))
        with_hook = _obstacles(suite(capabilities=Capabilities(injectable_clock=False), advance_clock=advance_clock))
        assert {"ttl_set_by_touch", "eviction_of_the_expired_first", "size_after_expiry"} <= without - with_hook
        assert "ttl_edge" in with_hook
        for name, checks in (
            ("expire_natively", {"size_after_native_expiry"}),
            ("second_process", {"processes_adding", "processes_deleting", "processes_storing"}),
        ):
            plain = suite(capabilities=Capabilities())
            hooked = suite(capabilities=Capabilities(), **{name: advance_clock})
            assert checks <= _obstacles(plain) - _obstacles(hooked)
        raw = suite(capabilities=Capabilities(), read_raw=advance_clock)
        assert "corrupt_by_raw_damage" in _obstacles(raw)
        raw = suite(capabilities=Capabilities(), read_raw=advance_clock, write_raw=advance_clock)
        assert not {"corrupt_by_raw_damage", "corrupt_by_raw_swap", "corrupt_by_raw_older_version"} & _obstacles(raw)

    def test_let_time_pass_for_a_store_with_a_clock_of_its_own(self) -> None:
        clock = ManualClock()

        async def make_backend(self: Any, *, namespace: str, max_bytes: Optional[int], clock: Optional[Clock]) -> Any:
            if clock is not None:
                raise AssertionError("no clock can be injected")
            settings = BackendSettings(BackendURL("memory"), namespace, max_bytes, own_clock)
            backend = MEMORY.create(settings)
            backend.capabilities = declared
            return backend

        async def advance_clock(self: Any, seconds: float) -> None:
            clock.advance(seconds)

        own_clock = clock
        declared = dataclasses.replace(MEMORY.capabilities, injectable_clock=False)
        made = suite(capabilities=declared, make_backend=make_backend, advance_clock=advance_clock)
        report = check_backend(made, checks=["ttl_set_by_touch", "ttl_renewed_by_overwrite", "ttl_of_every_verb"])
        assert len(report.of("passed")) == 3, report


def _obstacles(made: Type[BackendConformance]) -> set:  # type: ignore[type-arg]
    """Return the checks that would not run, without running any."""
    from claude_force_cache.testing._kit import Effort, Kit

    return {name for name, check in CHECKS.items() if check.obstacle(Kit(made(), Effort(), name)) is not None}


class Recorder(MemoryConformance):
    """Remembers the values that were stored, which tells the examples apart."""

    seen: ClassVar[List[bytes]] = []

    async def make_backend(self, **options: Any) -> Any:
        backend = await super().make_backend(**options)
        right = backend.set

        async def remember(key: str, value: bytes, *, ttl: Optional[float]) -> int:
            self.seen.append(value)
            return int(await right(key, value, ttl=ttl))

        backend.set = remember
        return backend


def examples_of(**effort: Any) -> Sequence[bytes]:
    Recorder.seen.clear()
    report = check_backend(Recorder, checks=["value_round_trip", "stateful_agreement"], max_examples=20, **effort)
    assert report.passed
    return tuple(Recorder.seen)


class TestExamples:
    def test_are_the_same_in_every_run(self) -> None:
        assert examples_of() == examples_of() == examples_of(seed=0)

    def test_follow_from_the_seed(self) -> None:
        assert examples_of(seed=1) == examples_of(seed=1, derandomize=False) != examples_of(seed=2)

    def test_differ_when_they_are_random(self) -> None:
        assert examples_of(derandomize=False) != examples_of()

    def test_do_not_depend_on_the_profile_of_the_author(self) -> None:
        usual = examples_of()
        before = hypothesis.settings.default
        hypothesis.settings.register_profile("the author's", max_examples=1, derandomize=True, phases=())
        hypothesis.settings.register_profile("before", before)
        try:
            hypothesis.settings.load_profile("the author's")
            assert examples_of() == usual
            assert hypothesis.settings.default.max_examples == 1
        finally:
            hypothesis.settings.load_profile("before")


class TestMisuse:
    def check(self, **attributes: Any) -> None:
        check_backend(suite(**attributes), checks=["size_of_overwrite"])

    def test_a_factory_that_is_no_coroutine_function(self) -> None:
        with pytest.raises(TypeError, match="write `async def make_backend`"):
            self.check(make_backend=lambda self, **options: object())

    def test_a_factory_that_makes_something_else(self) -> None:
        async def make_backend(self: Any, **options: Any) -> Any:
            return "backend"

        with pytest.raises(TypeError, match="returned a str: expected a Backend or a SyncBackend"):
            self.check(make_backend=make_backend)

    def test_no_factory_at_all(self) -> None:
        with pytest.raises(NotImplementedError, match="Nothing does not define make_backend"):
            check_backend(type("Nothing", (BackendConformance,), {}), checks=["size_of_overwrite"])

    def test_what_another_process_cannot_be_given(self) -> None:
        made = suite(second_process=lambda self, **options: lambda: None)
        with pytest.raises(TypeError, match=r"functools\.partial"):
            check_backend(made, checks=["processes_apart"])

    def test_a_process_that_fails_tells_its_last_words(self) -> None:
        made = suite(second_process=lambda self, **options: int)
        (result,) = check_backend(made, checks=["processes_apart"]).results
        assert result.outcome == "failed"
        assert "exit code 1: AttributeError: 'int' object has no attribute 'open'" in result.detail

    def test_capabilities_that_are_not_those_of_the_backend(self) -> None:
        wrong = dataclasses.replace(MEMORY.capabilities, ttl_resolution=1.0)
        names = ["capabilities_as_declared", "capability_ttl_resolution"]
        report = check_backend(suite(capabilities=wrong), checks=names)
        assert [result.name for result in report.of("failed")] == names
        assert "ttl_resolution of the opened backend" in report.results[0].detail
        assert "lives end exactly" in report.results[1].detail


AUTHOR = """
from typing import ClassVar
from claude_force_cache import BackendSettings, BackendURL, load_backend
from claude_force_cache.testing import BackendConformance

MEMORY = load_backend("memory")

class Base(BackendConformance):
    capabilities = MEMORY.capabilities
    max_examples = 2

    async def make_backend(self, **options):
        return self.change(MEMORY.create(BackendSettings(BackendURL("memory"), **options)))

    def change(self, backend):
        return backend

class TestRight(Base):
    pass

class TestGap(Base):
    known_gaps: ClassVar = {"size_of_set": "a gap that is open", "size_of_overwrite": "a gap that was closed"}

    def change(self, backend):
        usage = backend.usage
        async def off_by_one():
            seen = await usage()
            return seen._replace(bytes=seen.bytes + (seen.entries == 3))
        backend.usage = off_by_one
        return backend
"""


@pytest.fixture
def author(tmp_path: Path) -> Any:
    """Run pytest in a process of its own on what an author would write."""
    (tmp_path / "test_store.py").write_text(textwrap.dedent(AUTHOR))

    def run(*arguments: str, interpreter: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *interpreter, "-m", "pytest", "-p", "no:cacheprovider", "-ra", *arguments, "."]
        return subprocess.run(
            command,
            cwd=str(tmp_path),
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )

    return run


class TestUnderPytest:
    def test_each_check_is_a_test_and_one_that_cannot_run_says_why(self, author: Any) -> None:
        done = author("-k", "TestRight")
        assert done.returncode == 0, done.stdout
        assert "limit_at_open does not run: the backend declares persistent=False" in done.stdout
        numbers = re.search(r"(\d+) passed, (\d+) skipped", done.stdout)
        assert numbers is not None, done.stdout
        assert sum(map(int, numbers.groups())) == len(CHECKS)

    @pytest.mark.parametrize("interpreter", [[], ["-O"]], ids=["", "without assertions"])
    def test_a_gap_is_expected_to_fail_and_fails_when_it_is_closed(self, author: Any, interpreter: List[str]) -> None:
        done = author("-k", "TestGap and size_of_", interpreter=interpreter)
        assert done.returncode == 1
        assert "a gap that is open" in done.stdout
        assert "size_of_overwrite is in known_gaps and passes: take it out" in done.stdout
        assert "1 failed" in done.stdout
        assert "1 xfailed" in done.stdout

    def test_a_failure_shows_the_example_and_none_of_the_kit(self, author: Any) -> None:
        done = author("-k", "TestGap and value_round_trip")
        assert done.returncode == 1
        assert "value_round_trip: usage, compared to the sum over a scan, is (3, " in done.stdout
        assert "add('add', b'', ttl=None) -> True" in done.stdout
        assert "(seed 0)" in done.stdout
        assert "_values.py" not in done.stdout

    def test_a_random_failure_tells_how_to_repeat_it(self, author: Any) -> None:
        done = author("-k", "TestGap and value_round_trip", CLAUDE_FORCE_CONFORMANCE="random")
        assert done.returncode == 1
        repeat = re.search(
            r"\(seed (\d+); CLAUDE_FORCE_CONFORMANCE=random CLAUDE_FORCE_CONFORMANCE_SEED=\1 ", done.stdout
        )
        assert repeat is not None, done.stdout
        seed = {"CLAUDE_FORCE_CONFORMANCE": "random", "CLAUDE_FORCE_CONFORMANCE_SEED": repeat.group(1)}
        assert repeat.group() in author("-k", "TestGap and value_round_trip", **seed).stdout

    def test_an_environment_that_cannot_be_read_is_refused(self, author: Any) -> None:
        done = author("-k", "TestRight and size_of_set", CLAUDE_FORCE_CONFORMANCE="sometimes")
        assert done.returncode == 1
        assert "CLAUDE_FORCE_CONFORMANCE is 'sometimes': expected derandomized or random" in done.stdout


def test_an_error_shows_its_message_and_numbered_steps() -> None:
    error = ConformanceError("usage is 1", ["set('a')", "delete('a')"])
    assert str(error) == "usage is 1\nafter these steps:\n  1. set('a')\n  2. delete('a')"
    assert str(ConformanceError("usage is 1")) == "usage is 1"
