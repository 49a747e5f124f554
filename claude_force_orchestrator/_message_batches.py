"""Message batches: many tasks through the API that answers within a day, at half the price."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

from anyio import CapacityLimiter, to_thread

from claude_force_cache import CacheEntry, digest

from ._answer import Answer
from ._batch_state import BatchState, Job, Outstanding, Waiting
from ._budget import Budget, Reservation, worst_case
from ._calls import Reply, error_of
from ._errors import (
    BadRequestError,
    BudgetError,
    CallError,
    CallTimeoutError,
    ConfigError,
    ConnectionFailedError,
    InvalidAnswerError,
    InvalidTaskError,
    OrchestratorError,
    RateLimitError,
    ServerError,
    StoppedError,
    SuspiciousTaskError,
)
from ._options import ExecutionOptions
from ._request import Request
from ._result import AgentResult
from ._streaming import BULK
from ._suspicion import examine

if TYPE_CHECKING:
    from ._orchestrator import AgentTask, AsyncAgentOrchestrator

__all__ = ["MessageBatches", "Premade", "request_id"]

T = TypeVar("T")
Numbered = Tuple[int, AgentResult]

MOST_REQUESTS = 5_000
"""How many requests go into one batch. The API takes 100,000; fewer come back sooner, and fit into memory."""

MOST_BYTES = 16_000_000
"""How many bytes they take. The API takes 256 MB."""

_UPLOAD_SECONDS = 600.0
_DOWNLOAD_SECONDS = 120.0
"""The longest silence while results are read."""

_MOST_ATTEMPTS = 3
_FIRST_POLL = 1.0
_LAST_POLL = 60.0
_SKEW = 300.0
"""Seconds by which the API's clock and ours may differ."""

_LONGEST_RESULT = 64_000_000
_STATUS: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

_UNCERTAIN = (CallTimeoutError, ConnectionFailedError, ServerError)
"""Errors after which nobody knows whether the API did what it was told."""

_logger = logging.getLogger("claude_force_orchestrator")


def request_id(request: Request) -> str:
    """Return the ``custom_id`` of a request: 64 hex digits, the same for equal requests."""
    return digest(request.key).hex()


@dataclass
class Premade:
    """What became of a request that executions need not send any more.

    :param id: the ``custom_id``. An answer to what is no longer asked like that is not stored.
    :param reply: the reply, or the error to raise in its place.
    :param begun: when the request was sent, in seconds since 1970.
    :param answer: what the reply says, from when an execution has paid for it on. It is paid for once.
    :param key: the key that it is stored under, or the empty string.
    """

    id: str
    reply: Union[Reply, OrchestratorError]
    begun: float
    answer: Optional[Answer] = None
    key: str = ""

    def get(self) -> Reply:
        """Return the reply.

        :raises OrchestratorError: if there is none.
        """
        if isinstance(self.reply, OrchestratorError):
            raise self.reply
        return self.reply

    def shared(self) -> Optional[CacheEntry[Answer]]:
        """Return the answer for those who need not pay for it any more, or None if nobody has yet."""
        if self.answer is None:
            return None
        return CacheEntry(self.answer, self.key, self.answer.created, None, 0.0, cached=True)


class MessageBatches:
    """One job: tasks are looked up, those without an answer sent in batches, and these collected.

    The file at ``path`` remembers what is under way. So a job that was interrupted, or whose process died, picks its
    batches up when it is run again with the same tasks, and pays for none twice.

    :param path: it is made, and deleted when nothing is under way any more.
    :param model: for all tasks; by default each agent's own.
    :param options: as for every execution.
    :raises ConfigError: if there is no cache to keep the answers in, or an option cannot be used in batches.
    """

    def __init__(
        self, orchestrator: AsyncAgentOrchestrator, path: Path, *, model: Optional[str], options: ExecutionOptions
    ) -> None:
        if orchestrator.cache is None or options.get("cache") not in (None, "no-cache"):
            raise ConfigError("batches keep their answers in the cache: switch it on, and look things up or renew them")
        if options.get("context"):
            raise ConfigError("batches take tasks without context: give it in the task")
        self._orchestrator = orchestrator
        self._caller = orchestrator._caller
        self._clock = orchestrator._clock
        self._path = path
        self._model = model
        self._options = options
        self._stop = asyncio.Event()
        self._thread = CapacityLimiter(1)
        self._unsent = 0
        self._reserved: Dict[str, Reservation] = {}
        self._gone: Dict[int, str] = {}
        self.under_way: List[Outstanding] = []

    def stop(self) -> None:
        """Let the iteration end soon. Batches go on at the API."""
        self._stop.set()

    async def results(
        self, tasks: Union[Iterable[AgentTask], AsyncIterable[AgentTask]]
    ) -> AsyncGenerator[Numbered, None]:
        """Iterate over the results of tasks as they come, each with the number of its task, from 0.

        Hits come first, while the tasks are read. All others wait until their batch has ended.

        :raises ConfigError: if the file cannot be used, or another process is at work on it.
        """
        self._state = await self._do(lambda: BatchState(self._path))
        try:
            await self._recover()
            async for item in self._submit(tasks):
                yield item
            pause = _FIRST_POLL
            while not self._stop.is_set():
                await self._send(whole=False)
                batches = [batch for batch in await self._do(self._state.batches) if batch.id is not None]
                ended = [batch for batch in batches if await self._has_ended(batch)]
                for batch in ended:
                    async for item in self._collect(batch):
                        yield item
                if ended:
                    pause = _FIRST_POLL
                elif not batches:
                    async for item in self._refuse():
                        yield item
                    break
                else:
                    await _first_of(self._stop.wait(), pause)
                    pause = min(_LAST_POLL, pause * 1.5)
        except StoppedError:
            if not self._stop.is_set():
                raise
        finally:
            for reservation in self._reserved.values():
                reservation.settle(None)
            self.under_way = await self._do(self._state.batches)
            await self._do(self._state.close)

    async def _do(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._thread)

    async def _submit(
        self, tasks: Union[Iterable[AgentTask], AsyncIterable[AgentTask]]
    ) -> AsyncGenerator[Numbered, None]:
        """Answer what the cache can answer, and send all else as soon as it fills a batch."""
        first = 0
        async for bulk in _bulks(tasks):
            found = await self._orchestrator._look_up(bulk, self._model, self._options)
            jobs: List[Tuple[int, Job]] = []
            for number, (pair, entry) in enumerate(zip(bulk, found), first):
                premade: Optional[Premade] = None
                if entry is None:
                    try:
                        jobs.append((number, await self._job(pair)))
                    except OrchestratorError as error:
                        premade = Premade("", error, self._clock())
                    else:
                        continue
                yield number, await self._orchestrator._execute_pair(pair, self._model, self._options, entry, premade)
            first += len(bulk)
            if jobs:
                await self._do(partial(self._state.add, jobs))
                self._unsent += len(jobs)
            if self._unsent >= MOST_REQUESTS // 8:
                await self._send(whole=True)
            if self._stop.is_set():
                return

    async def _job(self, pair: object) -> Job:
        """Return the request that a task asks.

        :raises OrchestratorError: if it cannot be asked in a batch.
        """
        asked = self._options
        request, freshness = await self._orchestrator._question(pair, self._model, asked)
        name = request.template.agent_name
        if name in self._orchestrator.settings.exclude_agents:
            raise InvalidTaskError(f"agent {name!r} is excluded from the cache, where batches keep their answers")
        if freshness.variants:
            raise InvalidTaskError(f"agent {name!r} has several answers to a task, of which batches make only one")
        if asked.get("use_memory") is not False and self._orchestrator._memory.serves(name):
            raise InvalidTaskError(f"agent {name!r} has a memory, which changes before a batch ends; switch it off")
        if self._orchestrator.settings.on_suspicion == "refuse":
            suspicions = await examine(request.task, ())
            if suspicions:
                raise SuspiciousTaskError(suspicions)
        budget = self._orchestrator.budget
        if budget.max_usd is not None:
            budget.check(worst_case(request, self._orchestrator._prices, at=self._clock(), batch=True))
        options = json.dumps([self._model, asked.get("max_tokens", 4096), asked.get("temperature")])
        size = len(json.dumps(_parameters(request), ensure_ascii=False).encode("utf-8"))
        return Job(request_id(request), name, request.task, options, size)

    async def _request(self, job: Job) -> Request:
        model, max_tokens, temperature = json.loads(job.options)
        template = await self._orchestrator._templates.get(job.agent, model, max_tokens, temperature)
        return Request(template.request, job.task)

    async def _execute(self, job: Job, premade: Premade) -> AgentResult:
        model, max_tokens, temperature = json.loads(job.options)
        options: ExecutionOptions = {
            **self._options,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "cache": "no-cache",
            "use_memory": False,  # it was sent without, whatever was switched on meanwhile
        }
        pair = job.agent, job.task
        return await self._orchestrator._execute_pair(pair, model, options, premade.shared(), premade)

    async def _send(self, *, whole: bool) -> None:
        """Create batches of what waits.

        :param whole: only of as much as a batch takes.
        :raises OrchestratorError: if the API does not take one. Whether it exists all the same is found out by the next
            run where that is not known.
        """
        self._unsent = 0
        while not self._stop.is_set():
            now = self._clock()
            take = partial(self._state.take, most=MOST_REQUESTS, most_bytes=MOST_BYTES, now=now, whole=whole)
            taken = await self._do(take)
            if taken is None:
                return
            number, jobs = taken
            requests = []
            for job in jobs:
                request = await self._request(job)
                if not self._reserve(job, request):
                    break
                requests.append({"custom_id": job.id, "params": _parameters(request)})
            if len(requests) < len(jobs):
                await self._do(partial(self._state.put_back, number, [job.id for job in jobs[len(requests) :]]))
            if not requests:
                return
            try:
                identifier = await self._create(Outstanding(number, None, len(requests), now), requests)
            except OrchestratorError as error:
                if not isinstance(error, _UNCERTAIN):
                    await self._do(partial(self._state.give_back, number))
                raise
            await self._do(partial(self._state.name, number, identifier))

    def _reserve(self, job: Job, request: Request) -> bool:
        """Reserve what a request can cost at most, and return whether the budget allows it now."""
        budget = self._orchestrator.budget
        if budget.max_usd is None:
            return True
        most = worst_case(request, self._orchestrator._prices, at=self._clock(), batch=True)
        reservation = budget.reserve_now(most)
        if reservation is not None:
            self._reserved[job.id] = reservation
        return reservation is not None

    async def _refuse(self) -> AsyncGenerator[Numbered, None]:
        """Give out as failed what the budget does not allow, now that nothing is under way."""
        budget = self._orchestrator.budget
        error = BudgetError(
            f"the budget of ${budget.max_usd or 0:g} is not enough: ${budget.spent:.6f} are spent; raise max_usd, or "
            "lower max_tokens"
        )
        while True:
            rest = await self._do(partial(self._state.of_batch, None, BULK))
            if not rest:
                return
            async for item in self._settle([(waiting, error) for waiting in rest], self._clock()):
                yield item

    async def _create(self, batch: Outstanding, requests: Sequence[Any]) -> str:
        """Return the id of a batch that was created once, whatever happened to the reply."""
        failures = 0
        while True:
            try:
                made = await self._caller.manage(
                    lambda client: client.messages.batches.create(requests=requests),
                    seconds=_UPLOAD_SECONDS,
                    repeat=False,
                )
            except _UNCERTAIN as error:
                try:
                    found = await self._find(batch)
                except OrchestratorError:
                    raise error from None  # it may exist
                if found is not None:
                    return found
                failures += 1
                if failures >= _MOST_ATTEMPTS:
                    raise
            else:
                return str(made.id)

    async def _recover(self) -> None:
        """Find out about batches whose creation this job did not live to see."""
        for batch in await self._do(self._state.batches):
            if batch.id is None:
                found = await self._find(batch)
                settle = partial(self._state.give_back, batch.number)
                await self._do(settle if found is None else partial(self._state.name, batch.number, found))

    async def _find(self, batch: Outstanding) -> Optional[str]:
        """Return the id of the batch at the API that must be this one, or None.

        It was created since, has as many requests, and is none of this job's other ones. That it is a stranger's is all
        but impossible, and costs time, no money: its results carry other ids, and this job's requests are sent then.
        """
        known = {other.id for other in await self._do(self._state.batches)}
        after: Dict[str, str] = {}
        while True:
            page = await self._caller.manage(
                lambda client: client.messages.batches.list(limit=100, **after)  # noqa: B023
            )
            for candidate in page.data:
                if _seconds(candidate.created_at) < batch.begun - _SKEW:
                    return None
                counts = candidate.request_counts
                total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
                if total == batch.requests and candidate.id not in known:
                    return str(candidate.id)
            if not page.has_next_page() or not page.data:
                return None
            after = {"after_id": page.data[-1].id}

    # Collecting

    async def _has_ended(self, batch: Outstanding) -> bool:
        try:
            found = await self._caller.manage(lambda client: client.messages.batches.retrieve(batch.id))
        except CallError as error:
            if error.status != 404:
                raise
            self._gone[batch.number] = f"batch {batch.id} is gone: {error}"
            return True
        if found.archived_at is not None:
            self._gone[batch.number] = f"the results of batch {batch.id} are gone: the API keeps them for 29 days"
        return bool(found.processing_status == "ended")

    async def _collect(self, batch: Outstanding) -> AsyncGenerator[Numbered, None]:
        """Give out the results of a batch that has ended; what has none is asked again, unless it is gone."""
        lost: OrchestratorError = ServerError("the batch ended without a result for the request", attempts=1)
        if batch.number in self._gone:
            lost = BadRequestError(self._gone.pop(batch.number), status=404)
        else:
            async for item in self._read(batch):
                yield item
        while not self._stop.is_set():
            rest = await self._do(partial(self._state.of_batch, batch.number, BULK))
            if not rest:
                await self._do(partial(self._state.give_back, batch.number))
                return
            async for item in self._settle([(waiting, lost) for waiting in rest], batch.begun):
                yield item

    async def _read(self, batch: Outstanding) -> AsyncGenerator[Numbered, None]:
        """Give out the results that the API has, read again if they break off."""
        failures = 0
        while True:
            try:
                async for group in self._groups(batch):
                    async for item in self._take_in(group, batch.begun):
                        yield item
                    if self._stop.is_set():
                        return
            except (*_UNCERTAIN, RateLimitError) as error:
                failures += 1
                if failures >= _MOST_ATTEMPTS:
                    raise
                _logger.info("the results of batch %s broke off and are read again: %s", batch.id, error)
            else:
                return

    async def _groups(self, batch: Outstanding) -> AsyncIterator[List[Tuple[str, Mapping[str, Any]]]]:
        """Iterate over the results of a batch, some at a time.

        :raises CallError: if they cannot be read to their end.
        """
        async with self._caller.streamed(
            lambda client: client.messages.batches.results(batch.id), silence=_DOWNLOAD_SECONDS
        ) as pieces:
            group: List[Tuple[str, Mapping[str, Any]]] = []
            rest = b""
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > _LONGEST_RESULT:
                    raise InvalidAnswerError(f"a result of batch {batch.id} is longer than {_LONGEST_RESULT:,} bytes")
                for line in lines:
                    if line.strip():
                        group.append(_parse(line, batch))
                    if len(group) == BULK:
                        yield group
                        group = []
            if rest.strip():
                group.append(_parse(rest, batch))
            if group:
                yield group

    async def _take_in(
        self, group: Sequence[Tuple[str, Mapping[str, Any]]], begun: float
    ) -> AsyncGenerator[Numbered, None]:
        """Give out some results that are still waited for."""
        found = await self._do(lambda: self._state.find([identifier for identifier, _ in group]))
        outcomes: List[Tuple[Waiting, Union[Reply, OrchestratorError]]] = []
        for identifier, result in group:
            waiting = found.pop(identifier, None)
            if waiting is not None:
                # What an earlier run had sent was drawn on its budget.
                reservation = self._reserved.pop(identifier, None) or Reservation(Budget(None), 0)
                outcomes.append((waiting, _outcome(result, await self._caller.sent_headers(), reservation)))
        async for item in self._settle(outcomes, begun):
            yield item

    async def _settle(
        self, outcomes: Sequence[Tuple[Waiting, Union[Reply, OrchestratorError]]], begun: float
    ) -> AsyncGenerator[Numbered, None]:
        """Give out results, but let what failed for the time being be asked again."""
        again: List[str] = []
        final: List[Tuple[Waiting, Union[Reply, OrchestratorError]]] = []
        for waiting, outcome in outcomes:
            if isinstance(outcome, OrchestratorError) and waiting.job.id in self._reserved:
                self._reserved.pop(waiting.job.id).settle(0.0)
            passing = isinstance(outcome, (ServerError, RateLimitError)) and waiting.attempts + 1 < _MOST_ATTEMPTS
            if passing:
                again.append(waiting.job.id)
            else:
                final.append((waiting, outcome))
        if again:
            await self._do(lambda: self._state.again(again))
        # All at once, so that they are stored together. Of the tasks that ask the same one pays, for all.
        jobs = [(waiting, Premade(waiting.job.id, outcome, begun)) for waiting, outcome in final]
        paying = await asyncio.gather(*(self._execute(waiting.job, premade) for waiting, premade in jobs))
        for (waiting, premade), first in zip(jobs, paying):
            others = await asyncio.gather(*(self._execute(waiting.job, premade) for _ in waiting.numbers[1:]))
            for number, result in zip(waiting.numbers, (first, *others)):
                yield number, result
        if final:
            await self._do(lambda: self._state.done([waiting.job.id for waiting, _ in final]))


def _parameters(request: Request) -> Dict[str, Any]:
    """Return the body of a request as a batch has it."""
    arguments = request.arguments()
    extra = arguments.pop("extra_body", {})
    return {**arguments, **extra}


def _parse(line: bytes, batch: Outstanding) -> Tuple[str, Mapping[str, Any]]:
    try:
        table = json.loads(line)
        identifier, result = table["custom_id"], table["result"]
        if isinstance(identifier, str) and isinstance(result, dict):
            return identifier, result
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ConnectionFailedError(f"the results of batch {batch.id} break off in the middle of a line")


def _outcome(
    result: Mapping[str, Any], sent: Mapping[str, str], reservation: Reservation
) -> Union[Reply, OrchestratorError]:
    """Return what became of a request."""
    kind, message = result.get("type"), result.get("message")
    if kind == "succeeded":
        body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        return Reply(message, body, MappingProxyType({}), "application/json", sent, reservation)
    reservation.settle(0.0)
    if kind == "errored":
        error = result.get("error")
        error = error.get("error", error) if isinstance(error, dict) else None
        told = error if isinstance(error, dict) else {}
        status = _STATUS.get(str(told.get("type")), 500)
        return error_of(status, f"the API answered a request in a batch with {status}: {told.get('message')}")
    if kind == "expired":
        return ServerError("the batch ended after 24 hours before the request had its turn", attempts=1)
    if kind == "canceled":
        return CallError("the batch was cancelled before the request had its turn; run it again")
    return InvalidAnswerError(f"a result in a batch is of the unknown type {kind!r}")


async def _first_of(event: Awaitable[object], seconds: float) -> None:
    """Return when something happens, or after so many seconds."""
    try:
        await asyncio.wait_for(event, seconds)
    except asyncio.TimeoutError:
        pass


def _seconds(moment: Any) -> float:
    return moment.timestamp() if isinstance(moment, datetime) else time.time()


async def _bulks(tasks: Union[Iterable[AgentTask], AsyncIterable[AgentTask]]) -> AsyncIterator[List[AgentTask]]:
    bulk: List[AgentTask] = []
    if isinstance(tasks, AsyncIterable):
        async for task in tasks:
            bulk.append(task)
            if len(bulk) == BULK:
                yield bulk
                bulk = []
    else:
        for task in tasks:
            bulk.append(task)
            if len(bulk) == BULK:
                yield bulk
                bulk = []
    if bulk:
        yield bulk
