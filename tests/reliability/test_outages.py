"""The experiment of outages, in a short form: a few faults of each store, and no figures."""

import json
from dataclasses import replace
from typing import Any, Dict

import pytest

from reliability.faults import FAULTS
from reliability.outages import Outage, main


@pytest.mark.parametrize(
    ("fault", "client", "lines"),
    [
        ("redis read-only replica", "cache", None),
        ("redis out of memory", "orchestrator", 2),
        ("memcached frozen", "cache", 2),
        ("disk file size limit", "cache", 2),
        ("disk folder removed", "cache", 0),
    ],
)
def test_a_store_that_fails_costs_no_answer_and_is_used_again(
    fault: str, client: str, lines: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["--fault", fault, "--client", client, "--quick", "--json"])
    out, err = capfd.readouterr()
    (seen,) = (Outage(**one) for one in json.loads(out))
    assert seen.tasks >= 20
    # How long it takes is for the experiment to say, on a machine that does nothing else.
    still = replace(seen, before_call=0.0, after_call=0.0, added=0.0, read_again=_once(seen.read_again))
    assert replace(still, written_again=_once(seen.written_again)).problems() == [], err
    assert lines is None or len(seen.lines) == lines, seen.lines


def _once(seconds: Any) -> Any:
    return None if seconds is None else 0.0


def test_the_experiment_knows_what_was_promised() -> None:
    good: Dict[str, Any] = {
        "fault": "redis killed",
        "client": "cache",
        "tasks": 200,
        "given_up": 0.1,
        "read_again": 1.0,
        "written_again": 1.0,
        "errors": 3,
        "changes": 2,
        "lines": ["gone", "back"],
    }
    assert Outage(**good).problems() == []
    for broken in [
        {"failed": 1},
        {"wrong": 1},
        {"paid_twice": 1},
        {"given_up": None},
        {"read_again": None},
        {"written_again": 9.0},
        {"before_call": 0.5},
        {"after_call": 2.0},
        {"added": 0.002},
        {"lines": ["gone", "still gone", "back"]},
        {"lines": ["gone", "back"] * 2, "changes": 4},
        {"late": 0, "paid_twice": 2},
        {"errors": 0},
    ]:
        assert len(Outage(**{**good, **broken}).problems()) == 1, broken
    for fault in FAULTS.values():
        assert fault.backend in {"redis", "memcached", "disk"}
