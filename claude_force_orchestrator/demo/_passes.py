"""The two passes: the same batch, first into an empty cache, then out of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple, Union

import anyio.to_thread

from claude_force_cache import Cache, open_cache

from .._answer import Answer, AnswerCodec
from .._orchestrator import AsyncAgentOrchestrator
from .._result import AgentResult
from ._tasks import Question

__all__ = ["Demonstration", "PassReport", "Store"]

_LIFE_SECONDS = 3600.0
_TIMEOUT_SECONDS = 5.0
"""What a look-up may cost. Patience with a busy machine: a first pass whose answers are not stored shows nothing."""


@dataclass(frozen=True)
class PassReport:
    """What one pass took.

    :param tasks: how many tasks it had.
    :param api_calls: how many calls of the Messages API it made, as the server counts where it can tell.
    :param hits: how many tasks were answered without a call of their own.
    :param wall_s: seconds from the first question to the last answer.
    :param tokens: tokens that were paid for.
    :param usd_spent: USD.
    :param usd_saved: USD.
    :param cache_entries: entries in the cache afterwards, with the records of their tags.
    :param cache_bytes: their size.
    """

    tasks: int
    api_calls: int
    hits: int
    wall_s: float
    tokens: int
    usd_spent: float
    usd_saved: float
    cache_entries: int
    cache_bytes: int


class Store:
    """A corner of a store that nobody else uses: its own namespace, a life of an hour, cleared at the end.

    :param source: the URL or table of the cache.
    :param throwaway_secret: seal with a secret that is forgotten afterwards, instead of the environment's.
    """

    def __init__(self, source: Union[str, Mapping[str, object]], *, throwaway_secret: bool) -> None:
        self.throwaway_secret = throwaway_secret
        self._source = source
        self._secrets = [secrets.token_urlsafe(32)] if throwaway_secret else None
        self._namespace = f"demo-{secrets.token_hex(8)}"

    def open(self) -> Cache[Answer]:
        """Return a cache object of its own on the store, unopened.

        :raises ConfigurationError: if the source cannot be used.
        """
        return open_cache(
            self._source,
            codec=AnswerCodec(),
            secrets=self._secrets,
            namespace=self._namespace,
            ttl=_LIFE_SECONDS,
            timeout=_TIMEOUT_SECONDS,
        )


@dataclass
class Demonstration:
    """A batch, a store, and what answers.

    :param config: the project's claude.json.
    :param batch: the tasks, repeats included.
    :param store: where answers are kept.
    :param arguments: what the orchestrator is told beyond that.
    :param forget: makes the server forget what it has counted; None where the server does not count.
    :param count: asks the server how many calls reached it since; None likewise.
    """

    config: Path
    batch: Sequence[Question]
    store: Store
    arguments: Mapping[str, Any]
    forget: Optional[Callable[[], None]] = None
    count: Optional[Callable[[], int]] = None

    async def check(self) -> None:
        """Return if the store can be used.

        :raises ConfigurationError: if the cache cannot be used as it is configured.
        :raises BackendUnavailableError: if it cannot be reached.
        """
        async with self.store.open() as cache:
            await cache.ping()

    async def run(self, advance: Callable[[int], None]) -> Tuple[List[PassReport], List[AgentResult], str]:
        """Run both passes.

        :param advance: called with 0 or 1, the pass, after each task.
        :returns: a report for each pass, the results that failed, and the cache's URL without its password.
        :raises BackendUnavailableError: if the store went away meanwhile.
        """
        failed: List[AgentResult] = []
        async with self.store.open() as first:
            try:
                reports = [await self._pass(first, lambda: advance(0), failed)]
                if first.capabilities.shared_between_processes:
                    async with self.store.open() as second:  # another object on the same store
                        reports.append(await self._pass(second, lambda: advance(1), failed))
                else:  # the store is inside the object
                    reports.append(await self._pass(first, lambda: advance(1), failed))
            finally:
                await first.clear()
        return reports, failed, first.url

    async def _pass(self, cache: Cache[Answer], advance: Callable[[], None], failed: List[AgentResult]) -> PassReport:
        if self.forget is not None:
            await anyio.to_thread.run_sync(self.forget)
        await cache.ping()
        started = time.perf_counter()
        orchestrator = AsyncAgentOrchestrator(
            config_path=self.config, cache=cache, enable_tracking=False, **self.arguments
        )
        async with orchestrator:
            results = await self._answers(orchestrator, advance)
            wall = time.perf_counter() - started
            usage = await cache.usage()
        totals = orchestrator.totals
        failed.extend(result for result in results if not result.success)
        return PassReport(
            tasks=len(results),
            api_calls=totals.calls if self.count is None else await anyio.to_thread.run_sync(self.count),
            hits=sum(result.metadata.cached for result in results),
            wall_s=round(wall, 3),
            tokens=totals.input_tokens + totals.output_tokens,
            usd_spent=round(totals.usd_spent, 6),
            usd_saved=round(totals.usd_saved, 6),
            cache_entries=usage.entries,
            cache_bytes=usage.bytes,
        )

    async def _answers(self, orchestrator: AsyncAgentOrchestrator, advance: Callable[[], None]) -> List[AgentResult]:
        async def answer(question: Question) -> AgentResult:
            result = await orchestrator.execute_agent(question.agent, question.task)
            advance()
            return result

        return list(await asyncio.gather(*(answer(question) for question in self.batch)))
