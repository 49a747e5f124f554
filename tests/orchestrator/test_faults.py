"""Faults: whatever the API does, a batch ends as it should, and the API has nothing to say against its client.

The server judges the client from its own journal: whether it waited as long as it was asked to, backed off, gave up
what might have passed, or repeated what never can. A warning counts like an error here.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence

import pytest

from claude_force_orchestrator import AgentResult, AsyncAgentOrchestrator
from claude_force_orchestrator.demo._standin import StandIn


class Fault(NamedTuple):
    """A way in which the API misbehaves.

    :param scenario: what the next requests meet.
    :param settings: what every request meets.
    :param tasks: how many tasks there are.
    :param errors: the names of the errors among the results, or None if chance decides.
    :param options: how the orchestrator is made.
    """

    name: str
    tasks: int
    errors: Any
    scenario: Sequence[Dict[str, Any]] = ()
    settings: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})


def _fails(*statuses: int, **fields: Any) -> List[Dict[str, Any]]:
    return [{"type": "fail", "status": status, **fields} for status in statuses]


_LASTING = {400: "BadRequest", 401: "Authentication", 402: "BadRequest", 403: "PermissionDenied"}
_LASTING.update(dict.fromkeys((404, 413, 422), "BadRequest"))

FAULTS = [
    Fault("each passing status once", 12, [], _fails(408, 409, 429, 500, 501, 502, 503, 504, 529)),
    Fault("a pause asked for", 4, [], _fails(429, 503, 529, 500, retry_after=0.7)),
    Fault("one failure after another", 1, [], _fails(500, 502)),
    Fault("one rate limit after another", 3, [], _fails(429, retry_after=0.1, times=6)),
    Fault("failures without end", 1, ["ServerError"], _fails(500, times=None), options={"max_retries": 2}),
    Fault("overload without end", 1, ["OverloadedError"], _fails(529, times=None, retry_after=0.1)),
    Fault("each lasting status", 7, [f"{name}Error" for name in _LASTING.values()], _fails(*_LASTING)),
    Fault("failures at random", 12, None, settings={"error_rates": {429: 0.1, 500: 0.15, 529: 0.1}}),
    Fault("a quota of requests", 63, [], settings={"rpm": 60}),
    Fault("a quota of tokens", 55, [], settings={"tpm": 4000}),
    Fault("too long a prompt", 2, ["BadRequestError"] * 2, settings={"context_window": 5}),
    Fault("silence", 2, [], [{"type": "delay", "seconds": 1.5, "times": 2}], options={"timeout_seconds": 0.5}),
    Fault("slowness", 4, [], settings={"latency_ms": 200}),
    Fault("a refusal", 2, ["RefusedError"], [{"type": "reply", "text": "no", "finish_reason": "content_filter"}]),
    Fault("nothing said", 2, ["EmptyAnswerError"], [{"type": "reply", "text": ""}]),
]


@pytest.fixture
def faulty(_llmock: StandIn) -> Iterator[StandIn]:
    """llmock, with neither journal nor faults before and after."""
    _llmock.configure()
    _llmock.reset()
    yield _llmock
    _llmock.configure()
    _llmock.reset()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_the_api_finds_no_fault_with_its_client(faulty: StandIn, config: Path, fault: Fault) -> None:
    async def ask() -> List[AgentResult]:
        options = {"cache": "memory://", "base_url": faulty.base_url, "enable_tracking": False, **fault.options}
        async with AsyncAgentOrchestrator(config, **options) as it:
            tasks = [("code-reviewer", f"{index:03d} {fault.name}") for index in range(fault.tasks)]
            return await it.execute_multiple(tasks, max_tokens=16)

    faulty.configure(**fault.settings)
    if fault.scenario:
        faulty.script(*fault.scenario)
    results = asyncio.run(ask())
    verdict = faulty.verdict()
    sys.stdout.write(f"{fault.name}: {verdict}")  # shown with -rP
    assert "PASS" in verdict, verdict
    if fault.errors is not None:
        assert sorted(type(result.error).__name__ for result in results if result.error) == sorted(fault.errors)
