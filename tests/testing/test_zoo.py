"""The conformance kit can fail: it catches every backend of the zoo that is wrong, and neither that is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Dict, Type

import pytest
from zoo import MUTANTS, DictBackend, Mutant, SQLiteBackend
from zoo.reference import Table
from zoo.registry import AnyBackend
from zoo.suites import DictConformance, SQLiteConformance, suite_of
from zoo.weak import WEAK

from claude_force_cache.testing import CHECKS, check_backend


class TestDictBackend(DictConformance):
    shelf: ClassVar[Dict[str, Table]] = {}


class TestSQLiteBackend(SQLiteConformance):
    @pytest.fixture(autouse=True)
    def _store(self, tmp_path: Path) -> None:
        self.path = tmp_path / "store.db"


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.backend.__name__ for mutant in MUTANTS])
def test_catches_a_defect_by_the_checks_that_name_it(mutant: Mutant, tmp_path: Path) -> None:
    report = check_backend(suite_of(mutant.backend, tmp_path), checks=mutant.checks)
    for result in report.results:
        assert result.outcome == "failed", f"{result.name} {result.outcome} {result.detail}: {mutant.backend.__doc__}"
        steps = re.findall(r"^ +[0-9]+\. ", result.detail, re.MULTILINE)
        assert len(steps) <= mutant.steps, result.detail


def test_says_of_every_mutant_what_is_wrong() -> None:
    names = [mutant.backend.__name__ for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 30
    assert all(mutant.backend.__doc__ for mutant in MUTANTS)


def test_has_a_mutant_for_every_check() -> None:
    assert {check for mutant in MUTANTS for check in mutant.checks} == set(CHECKS)


@pytest.mark.parametrize("backend", WEAK, ids=[backend.__name__ for backend in WEAK])
def test_lets_a_weakness_pass_that_is_declared(backend: Type[AnyBackend], tmp_path: Path) -> None:
    report = check_backend(suite_of(backend, tmp_path), max_examples=20)
    assert report.passed, str(report)


def test_runs_every_check_on_a_backend_that_is_right(tmp_path: Path) -> None:
    idle = set(CHECKS)
    for backend in (DictBackend, SQLiteBackend, *WEAK):
        report = check_backend(suite_of(backend, tmp_path), checks=sorted(idle), max_examples=1)
        idle -= {result.name for result in report.of("passed")}
    assert not idle


def test_leaves_no_entry_in_the_store(tmp_path: Path) -> None:
    shelf: Dict[str, Table] = {}
    check_backend(type("Suite", (DictConformance,), {"shelf": shelf}), max_examples=1)
    assert len(shelf) > len(CHECKS)
    assert [namespace for namespace, table in shelf.items() if table.records] == []
