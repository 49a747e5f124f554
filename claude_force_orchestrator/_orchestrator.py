"""The orchestrator: from a task to an answer, remembered or new."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import (
    Any,
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    Union,
)

import anyio
import anyio.to_thread
from typing_extensions import Unpack

from claude_force_cache import Cache, CacheEntry, ConfigurationError, KeyPart

from ._answer import Answer, read_answer
from ._budget import Budget, worst_case
from ._cache_failures import CacheFailures
from ._calls import Caller
from ._client import Clients, make_client
from ._context import Context, check_context
from ._errors import (
    ConfigError,
    DeadlineExceededError,
    InternalError,
    InvalidTaskError,
    NotCachedError,
    OrchestratorError,
    StoppedError,
    SuspiciousTaskError,
)
from ._events import orchestrator_listeners
from ._execution import Execution
from ._explain import Explanation, explain
from ._families import Families, FamilyLimit
from ._freshness import FRESHNESS_KEYS, Freshness
from ._labels import check_tags, invalidation_tags, tenant_tag, workflow_tag
from ._ledger import Ledger
from ._memory import Memory, Recalled
from ._message_batches import MessageBatches, Premade, request_id
from ._options import CACHE_MODES, CacheMode, ExecutionOptions, SuspicionPolicy
from ._prices import PriceList
from ._project import Project
from ._prompt_caching import PromptCaching
from ._recorder import Recorder
from ._request import Request, blind
from ._result import AgentResult, Totals
from ._settings import CacheArgument, Settings, check_deadline
from ._streaming import BREATH, stream
from ._suspicion import examine
from ._templates import Templates
from ._tracking import Tracker
from ._validation import check_task, check_use_memory, check_whole
from ._workflow import Step, Workflow
from ._workflow_run import StepResult, WorkflowResult, run_steps

__all__ = ["AgentTask", "AsyncAgentOrchestrator", "CacheMode"]

AgentTask = Tuple[str, str]
"""The name of an agent, and the task for it."""

_IN_FLIGHT_FACTOR = 4
_logger = logging.getLogger("claude_force_orchestrator")


class AsyncAgentOrchestrator:
    """Runs the agents of a project, and answers what was asked before from a cache.

    ``async with`` opens the cache and closes everything at the end; without it, both happen at the first use and
    in :meth:`close`. One orchestrator may be used from several event loops and threads; its limit of
    concurrency holds over all of them.

    :param config_path: the path of claude.json, or a :class:`Project` made from one. It is read here, once; the
        agents' files are read when they are needed, and again when they changed.
    :param api_key: the key; by default that of ``ANTHROPIC_API_KEY``, or what else the SDK finds. A missing key
        is an error only when a call is needed.
    :param max_concurrent: how many API calls may be under way at once. Cached answers neither wait nor count.
        Below it each family of models has a limit that adapts to what the API takes; see :attr:`limits`.
    :param timeout_seconds: the bound of each attempt in seconds, from the first byte to the last.
    :param max_retries: how many attempts may follow failures. Retried are rate limits, overload, faults of the
        server (408, 409, 429, 5xx), lost connections and time-outs; nothing else. Rate limits are everybody's, and
        do not use it up: a call accepts nine of them, or ``max_retries`` if that is more; none if it is 0.
    :param deadline_seconds: the bound of each execution in seconds, from the call to the result: waiting, pauses
        and all attempts included. None, the default, is no bound.
    :param raise_errors: whether :meth:`execute_agent` raises the error of a task that has no answer, which is
        recorded and counted all the same. By default it returns a result with ``success=False`` and the ``error``.
        Methods for many tasks always return results: one task must not cost the others their answers.
    :param enable_cache: by default what claude.json says (``cache.enabled``), else True.
    :param cache_ttl_hours: how long answers are kept; by default what the cache or claude.json say, else 24.
    :param cache_max_size_mb: the hard limit of the cache in units of 2**20 bytes; likewise, else 100.
    :param enable_tracking: whether executions are recorded; by default what claude.json says (``tracking.enabled``),
        else True.
    :param enable_memory: whether agents are given earlier sessions of theirs, and what they answer is recorded as one;
        by default what claude.json says (``memory.enabled``), else False. Off, memory is neither read nor written.
    :param cache: a URL or table that chooses a cache, or a Cache of answers, which stays its owner's to close.
        By default ``CLAUDE_CACHE_URL``, then the section ``cache`` of claude.json, then the folder ``cache``
        beside claude.json.
    :param tracker: who records executions, which stays its owner's to close. By default a :class:`SQLiteTracker` on the
        file that claude.json names, else on ``metrics/executions.db`` beside it.
    :param on_suspicion: what to do about tasks and context that look like an attempt to give other orders:
        ``report`` it in the result's metadata, the default, or ``refuse`` to send them. They are never changed.
    :param max_usd: how many USD all calls together may cost, or a :class:`Budget` that several orchestrators share. A
        call is sent only if what it can cost at most is left. Cached answers are free, and are never refused.
    :param prompt_caching: whether long definitions that are sent again and again are marked for the API's own prompt
        cache, where that makes them cheaper; by default what claude.json says (``performance.prompt_caching``), else
        True.
    :param base_url: where the Messages API is; by default ``ANTHROPIC_BASE_URL``, then Anthropic's.
    :param clock: the time in seconds since 1970, for tests.
    :raises ProjectError: if claude.json cannot be used.
    :raises ConfigError: if an argument or a variable of the environment cannot be used.
    :raises claude_force_cache.ConfigurationError: if the cache cannot be used as it is configured.
    """

    def __init__(
        self,
        config_path: Union[str, os.PathLike[str], Project] = Path(".claude/claude.json"),
        api_key: Optional[str] = None,
        *,
        max_concurrent: int = 10,
        timeout_seconds: float = 30,
        max_retries: int = 3,
        deadline_seconds: Optional[float] = None,
        raise_errors: bool = False,
        enable_cache: Optional[bool] = None,
        cache_ttl_hours: Optional[float] = None,
        cache_max_size_mb: Optional[float] = None,
        enable_tracking: Optional[bool] = None,
        enable_memory: Optional[bool] = None,
        cache: CacheArgument = None,
        tracker: Optional[Tracker] = None,
        on_suspicion: SuspicionPolicy = "report",
        max_usd: Union[float, Budget, None] = None,
        prompt_caching: Optional[bool] = None,
        base_url: Optional[str] = None,
        clock: Optional[Callable[[], float]] = None,
    ) -> None:
        self.settings = Settings.resolve(
            config_path,
            api_key=api_key,
            base_url=base_url,
            max_concurrent=max_concurrent,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
            deadline_seconds=deadline_seconds,
            raise_errors=raise_errors,
            enable_cache=enable_cache,
            cache_ttl_hours=cache_ttl_hours,
            cache_max_size_mb=cache_max_size_mb,
            enable_tracking=enable_tracking,
            enable_memory=enable_memory,
            cache=cache,
            on_suspicion=on_suspicion,
            max_usd=max_usd,
            prompt_caching=prompt_caching,
        )
        settings = self.settings
        self.project = settings.project
        self._given_clock = clock
        self._clock = clock or time.time
        self._random = random.Random()  # noqa: S311 - which variant is no secret
        self._prices = PriceList.of_project(settings.project)
        self._ledger = Ledger()
        self._templates = Templates(settings, self._tenant)
        self._clients = Clients(lambda: make_client(settings.api_key, settings.base_url))
        self._events = orchestrator_listeners()
        self._families = Families(settings.max_concurrent, self._events.emit)
        self._caller = Caller(
            self._clients,
            self._families,
            endpoint=settings.base_url,
            timeout=settings.timeout_seconds,
            max_retries=settings.max_retries,
            on_attempt=self._ledger.attempt,
            budget=settings.budget,
            most=self._most,
            prompt_caching=PromptCaching(self._prices, enabled=settings.prompt_caching, clock=self._clock),
            clock=self._clock,
        )
        self._recorder = Recorder.of(settings.tracking, tracker)
        self._memory = Memory(settings.memory, self._clock)
        self._cache_failures = CacheFailures("tasks")
        self._calls: Set[asyncio.Future[None]] = set()
        self._cache: Optional[Cache[Answer]] = self._make_cache()
        self._backend = None if self._cache is None else self._cache.url.partition(":")[0]

    def _make_cache(self) -> Optional[Cache[Answer]]:
        settings = self.settings
        if not settings.enable_cache:
            return None
        return settings.cache if settings.cache is not None else settings.make_cache(clock=self._given_clock)

    @property
    def cache(self) -> Optional[Cache[Answer]]:
        """The cache in use, or None if it is switched off or the orchestrator is closed."""
        return self._cache

    @property
    def budget(self) -> Budget:
        """What may be spent, what is spent of it, and what calls under way may cost at most."""
        return self.settings.budget

    @property
    def totals(self) -> Totals:
        """What all executions so far add up to."""
        return self._ledger.totals()

    @property
    def limits(self) -> Dict[str, FamilyLimit]:
        """How it stands with each family of models that was called: its present limit, and who waits for it."""
        return self._families.snapshot(self._clock())

    def register(self, listener: object) -> None:
        """Add a listener to :class:`OrchestratorEvents`. The cache has listeners of its own.

        :raises ValueError: if it is registered already, or a hook of it does not fit the specification.
        """
        self._events.register(listener)

    def unregister(self, listener: object) -> None:
        """Remove a listener.

        :raises ValueError: if it is not registered.
        """
        self._events.unregister(listener)

    def stop(self) -> None:
        """Begin no more calls: what is under way is finished, and whatever would need a call fails.

        That is also what waits for its turn, for the end of a pause or for another attempt: its error is a
        :class:`StoppedError`, so nothing was paid that is not in a result or in the cache. Hits are still answered.
        It lasts until :meth:`close`. May be called from any thread.
        """
        self._caller.stop()

    async def __aenter__(self) -> AsyncAgentOrchestrator:
        if self._cache is None:
            self._cache = self._make_cache()
        if self._cache is not None:
            await self._cache.open()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish the calls that are under way in this event loop, then release everything but a cache that was given.

        What is still to be recorded is written. Idempotent. A later execution opens everything again.
        """
        cache, self._cache = self._cache, None
        # A close that is cancelled, or that fails at one of these, still does the rest.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._recorder.close)
            stack.push_async_callback(self._clients.close)
            if cache is not None and cache is not self.settings.cache:
                stack.push_async_callback(cache.close)
            # Also those in the background, for answers that were stale: they are paid for.
            calls = [call for call in tuple(self._calls) if call.get_loop() is asyncio.get_running_loop()]
            if calls:
                await asyncio.wait(calls)
        self._caller.resume()

    async def execute_agent(
        self,
        agent_name: str,
        task: str,
        model: Optional[str] = None,
        *,
        workflow_position: Optional[int] = None,
        **options: Unpack[ExecutionOptions],
    ) -> AgentResult:
        """Return an agent's answer to a task, out of the cache or from the API.

        Failures are results, too, unless ``raise_errors`` is set: an unknown agent, a task that cannot be used, a
        call that fails, an answer that is refused or empty, a deadline that came. Equal tasks that are under way at
        the same time share one call.

        :param agent_name: an agent of the project.
        :param task: the user's message, at most 100,000 characters. It is sent unaltered.
        :param model: by default the agent's own in claude.json, else ``DEFAULT_MODEL``.
        :param max_tokens: the limit of the answer, in tokens; 4096 by default.
        :param temperature: sent only if it is given; current models do not accept it.
        :param workflow_name: recorded, and returned in the metadata.
        :param workflow_position: likewise.
        :param cache: None looks up and stores. ``no-cache`` does not look up, but stores the new answer;
            ``no-store`` leaves the cache out altogether; ``only-if-cached`` never calls the API.
        :param context: data that is sent along, fenced off from the task, unaltered.
        :param use_memory: False leaves the agent's memory out: it is neither read nor written. True and None, the
            default, do not switch on what ``enable_memory`` has switched off.
        :param ttl_hours: how long the answer is fresh, if it is a new one; by default as the agent or the cache say.
        :param max_age_hours: the age from which a stored answer is not fresh enough for this task.
        :param stale_while_revalidate_hours: for how long after its freshness a stored answer is given at once,
            marked as stale, while a new one is asked for in the background.
        :param stale_if_error_hours: for how long after its freshness a stored answer is given, marked as stale, if
            the API is overloaded, faulty, out of reach or limits the rate, after all retries.
        :param refresh_ahead: the last share of an answer's freshness, 0 to 1, in which it is given while a new one is
            asked for in the background.
        :param variants: how many answers are kept for this task, of which one is given at random.
        :param tags: what the answer can be invalidated by, besides its agent, model and workflow.
        :param deadline_seconds: the bound of this execution in seconds; by default the orchestrator's. Whoever
            shares the call of another leaves alone when its own deadline comes.
        :raises OrchestratorError: what would be the result's ``error``, if ``raise_errors`` is set.
        :raises claude_force_cache.ConfigurationError: if the cache cannot be opened as it is configured; nothing
            was sent.
        """
        result = await self._execute(agent_name, task, model=model, workflow_position=workflow_position, **options)
        if result.error is not None and self.settings.raise_errors:
            raise result.error
        return result

    async def _execute(
        self,
        agent_name: str,
        task: str,
        *,
        model: Optional[str] = None,
        max_tokens: int = 4096,
        temperature: Optional[float] = None,
        workflow_name: Optional[str] = None,
        workflow_position: Optional[int] = None,
        deadline_seconds: Optional[float] = None,
        context: Sequence[Context] = (),
        use_memory: Optional[bool] = None,
        cache: Optional[CacheMode] = None,
        ttl_hours: Optional[float] = None,
        max_age_hours: Optional[float] = None,
        stale_while_revalidate_hours: Optional[float] = None,
        stale_if_error_hours: Optional[float] = None,
        refresh_ahead: Optional[float] = None,
        variants: Optional[int] = None,
        tags: Iterable[str] = (),
        run: Optional[str] = None,
        found: Optional[CacheEntry[Answer]] = None,
        premade: Optional[Premade] = None,
    ) -> AgentResult:
        """Return the result of one execution, recorded and counted.

        :param found: what the cache has for it, if that has been looked up.
        :param premade: what the API has answered, or not, to a batch that it was part of.
        """
        waited = 0.0 if premade is None else max(0.0, self._clock() - premade.begun)
        execution = Execution(agent_name, task, model, workflow_name, workflow_position, run=run, waited=waited)
        error_type: Optional[str] = None
        try:
            seconds = _check_deadline(deadline_seconds) or self.settings.deadline_seconds
            freshness = Freshness.of_call(
                ttl_hours=ttl_hours,
                max_age_hours=max_age_hours,
                stale_while_revalidate_hours=stale_while_revalidate_hours,
                stale_if_error_hours=stale_if_error_hours,
                refresh_ahead=refresh_ahead,
                variants=variants,
            )
            answering = self._answer(
                execution,
                agent_name,
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                context=context,
                use_memory=use_memory,
                mode=cache,
                freshness=freshness,
                tags=tags,
                found=found,
                premade=premade,
            )
            result = await (answering if seconds is None else self._in_time(execution, answering, seconds))
            error_type = None if result.error is None else type(result.error).__name__
        except asyncio.CancelledError:
            self._record(execution, execution.cancel(), "CancelledError")
            raise
        except ConfigurationError:
            raise
        except StoppedError as error:
            result, error_type = execution.fail(error), "StoppedError"
        except OrchestratorError as error:
            self._ledger.failed()
            result, error_type = execution.fail(error), type(error).__name__
        except Exception as defect:  # noqa: BLE001 - logged with its traceback, and a failed result
            self._ledger.failed()
            result, error_type = execution.fail(_internal_error(defect)), InternalError.__name__
        if self._record(execution, result, error_type):
            await self._recorder.flush()
        if execution.recalled is not None:
            await self._memory.record(execution.recalled, task, result)
        return result

    async def _in_time(self, execution: Execution, answering: Awaitable[AgentResult], seconds: float) -> AgentResult:
        """Return what ``answering`` returns, or what was paid for until the deadline.

        :raises DeadlineExceededError: if there is nothing after so many seconds. A call that others share goes on.
        """
        with anyio.move_on_after(seconds):
            return await answering
        if execution.paid is None:
            raise DeadlineExceededError(seconds)
        return await self._finish(execution, execution.paid, None)

    async def _answer(
        self,
        execution: Execution,
        agent_name: str,
        *,
        model: Optional[str],
        max_tokens: int,
        temperature: Optional[float],
        context: Sequence[Context],
        use_memory: Optional[bool],
        mode: Optional[CacheMode],
        freshness: Optional[Freshness],
        tags: Iterable[str],
        found: Optional[CacheEntry[Answer]],
        premade: Optional[Premade],
    ) -> AgentResult:
        template = await self._templates.get(agent_name, model, max_tokens, temperature)
        execution.model = template.request.model
        check_task(execution.task)
        if mode is not None and mode not in CACHE_MODES:
            raise InvalidTaskError(f"cache must be one of {', '.join(CACHE_MODES)} or None, not {mode!r}")
        own_tags = check_tags(tags) if tags else ()
        check_use_memory(use_memory)
        execution.context = check_context(context) if context else ()
        fetch, wanted = template.fetch, template.freshness
        if freshness is not None:
            wanted = freshness.over(wanted)
            fetch = wanted.fetch()
        variant = self._random.randrange(wanted.variants) if wanted.variants else 0
        request = Request(template.request, execution.task, execution.context, variant)
        cache = self._usable_cache() if template.cacheable and mode != "no-store" else None
        if premade is not None and premade.id != request_id(request):
            cache = None  # the agent has changed since: it is no answer to what is asked now
        execution.backend = None if cache is None else self._backend
        if found is not None:
            execution.key = found.key or None
            return await self._finish(execution, found.value, found)
        if use_memory is not False and self._memory.serves(execution.agent_name):
            execution.recalled = await self._recall(request, wanted, cache, mode)
            execution.context = (*execution.recalled.context, *execution.context)
            request = request._replace(context=execution.context)

        async def ask() -> Answer:
            began = time.perf_counter()
            execution.paid = answer = await self._ask(request, execution, cache, premade)
            if execution.recorded:
                self._record_beside(execution, answer, time.perf_counter() - began)
            return answer

        try:
            if mode == "only-if-cached":
                entry = None if cache is None else await self._look(cache, request, wanted)
                if entry is None:
                    raise NotCachedError(f"the cache has no answer of agent {execution.agent_name!r} to this task")
            elif cache is None:
                return await self._finish(execution, await ask(), None)
            else:
                entry = await cache.fetch(
                    request.key,
                    ask,
                    tags=(*template.tags, *workflow_tag(execution.workflow), *own_tags),
                    store_if=_is_storable,
                    refresh=mode == "no-cache",
                    **fetch,
                )
        except (ConfigurationError, OrchestratorError):
            raise
        except Exception as error:  # noqa: BLE001 - logged; see below
            # What else comes out of here is the cache's own failure, be it a backend's defect. It costs the
            # cache's benefit, never an answer.
            self._cache_failures.log(error)
            return await self._finish(execution, execution.paid or await ask(), None)
        execution.key = entry.key
        if premade is not None:
            premade.key = entry.key
        return await self._finish(execution, entry.value, entry if entry.cached else None)

    async def _recall(
        self, request: Request, freshness: Freshness, cache: Optional[Cache[Answer]], mode: Optional[CacheMode]
    ) -> Recalled:
        """Return what the agent's memory has for a request. What is chosen is remembered as long as the answer is."""
        life: Optional[float] = 0.0
        if cache is not None and mode != "only-if-cached":
            life = freshness.kept_seconds(cache.settings.ttl)
        max_age = freshness.lookup().get("max_age")
        return await self._memory.recall(request, life=life, max_age=max_age, anew=cache is None or mode == "no-cache")

    async def _look(self, cache: Cache[Answer], request: Request, freshness: Freshness) -> Optional[CacheEntry[Answer]]:
        """Return what the cache has for a request, in any of its variants."""
        count = freshness.variants or 1
        for number in range(count):
            variant = request._replace(variant=(request.variant + number) % count)
            entry = await cache.get_entry(variant.key, **freshness.lookup())
            if entry is not None:
                return entry
        return None

    async def _ask(
        self, request: Request, execution: Execution, cache: Optional[Cache[Answer]], premade: Optional[Premade]
    ) -> Answer:
        """Return the API's answer, paid for.

        :param cache: where it will be stored, or None.
        :param premade: what there is in place of a call.

        :raises OrchestratorError: if there is none; nothing else, so that whatever else comes out of a look-up
            is known to be the cache's.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls.add(ended)
        try:
            suspicions = execution.suspicions = await examine(request.task, request.context)
            if suspicions and self.settings.on_suspicion == "refuse":
                self._events.emit("suspicion", agent_name=execution.agent_name, suspicions=suspicions, refused=True)
                raise SuspiciousTaskError(suspicions)
            reply = await self._caller.call(request) if premade is None else premade.get()
            with reply.reservation:
                answer = read_answer(
                    reply.body,
                    content_type=reply.content_type,
                    request_id=reply.headers.get("request-id"),
                    api_version=reply.sent.get("anthropic-version"),
                    agent_name=request.template.agent_name,
                    created=self._clock(),
                    parts=await blind(request.parts, cache),
                    suspicions=suspicions,
                )
                execution.batch = premade is not None
                cost = self._prices.cost(answer, batch=execution.batch)
                reply.reservation.settle(cost)
        except OrchestratorError:
            raise
        except Exception as defect:
            raise _internal_error(defect) from defect
        finally:
            self._calls.discard(ended)
            ended.set_result(None)
        if premade is not None:
            premade.answer = answer
            self._ledger.attempt()
        self._ledger.paid(answer, cost, self._prices.prompt_cache_saved(answer, batch=execution.batch))
        return answer

    def _most(self, request: Request) -> float:
        """Return what a request can cost at most in USD, as far as somebody wants to know.

        :raises BudgetError: if that is not known.
        """
        bounded = self.budget.max_usd is not None
        return worst_case(request, self._prices, at=self._clock()) if bounded else 0.0

    async def _finish(self, execution: Execution, answer: Answer, entry: Optional[CacheEntry[Answer]]) -> AgentResult:
        """Return the result for an answer, out of the cache if there is an entry, and count it.

        :raises SuspiciousTaskError: if it was stored by somebody who does not refuse what is refused here.
        """
        suspicions = answer.suspicions
        if not answer.agent_name:
            # Stored by a program that runs no agents, and has not looked.
            suspicions = await examine(execution.task, execution.context)
        if suspicions:
            execution.suspicions = suspicions
            refused = self.settings.on_suspicion == "refuse"
            self._events.emit("suspicion", agent_name=execution.agent_name, suspicions=suspicions, refused=refused)
            if refused:
                raise SuspiciousTaskError(suspicions)
        batch = execution.batch and entry is None
        cost = self._prices.cost(answer, batch=batch)
        saved = self._prices.prompt_cache_saved(answer, batch=batch) if entry is None else None
        result = execution.succeed(answer, entry, cost=cost, prompt_cache_saved=saved)
        if entry is None:
            self._ledger.answered(success=result.success)
        else:
            self._ledger.saved(cost, success=result.success)
        return result

    def _usable_cache(self) -> Optional[Cache[Answer]]:
        """Return the cache, made again if the orchestrator was closed meanwhile, or None if it is switched off."""
        if self._cache is None:
            self._cache = self._make_cache()
        return self._cache

    def _tenant(self) -> str:
        cache = self._usable_cache()
        return "" if cache is None else cache.settings.tenant

    def _record(self, execution: Execution, result: AgentResult, error_type: Optional[str]) -> bool:
        """Record an execution that has ended, and return whether much waits to be written."""
        if not self._recorder.wanted:
            return False
        crowded = self._recorder.record(execution.record(result, self._clock(), error_type))
        if execution.paid is not None and (execution.answer is None or result.metadata.cached):
            self._record_beside(execution, execution.paid, result.metadata.execution_time_ms / 1000)
        return crowded

    def _record_beside(self, execution: Execution, answer: Answer, latency: float) -> None:
        """Record what was paid for an answer that is in no result of this execution."""
        record = execution.record_beside(
            answer,
            self._clock(),
            latency=latency,
            cost=self._prices.cost(answer, batch=execution.batch),
            prompt_cache_saved=self._prices.prompt_cache_saved(answer, batch=execution.batch),
        )
        self._recorder.record(record)

    async def invalidate(
        self,
        *,
        agent: Optional[str] = None,
        model: Optional[str] = None,
        workflow: Optional[str] = None,
        tags: Iterable[str] = (),
        everything: bool = False,
    ) -> int:
        """Make all answers of an agent, of a model, of a workflow, or with one of the tags a miss, for everybody.

        Takes the same time however many they are. Several names mean all answers of any of them.

        :param agent: an agent, which the project need not have; ``name@digest`` is one state of its definition.
        :param tags: own tags, as given to :meth:`execute_agent`.
        :param everything: all answers of the cache's tenant; those of other tenants stay. Given alone.
        :returns: how many of these names were in use.
        :raises InvalidTaskError: if nothing is named, or something besides ``everything``.
        :raises ConfigError: if the cache is switched off.
        :raises claude_force_cache.CacheError: if the store is not available, or not configured rightly.
        """
        if everything and (agent, model, workflow, tuple(tags)) != (None, None, None, ()):
            raise InvalidTaskError("everything means all answers: give it alone")
        named = () if everything else invalidation_tags(agent=agent, model=model, workflow=workflow, tags=tags)
        cache = self._usable_cache()
        if cache is None:
            raise ConfigError("the cache is switched off, so there is nothing to invalidate; set enable_cache")
        if everything:
            named = (tenant_tag(cache.settings.tenant),)
        return await cache.invalidate(*named)

    async def explain(
        self,
        agent_name: str,
        task: str,
        model: Optional[str] = None,
        *,
        max_tokens: int = 4096,
        temperature: Optional[float] = None,
        context: Sequence[Context] = (),
        use_memory: Optional[bool] = None,
        max_age_hours: Optional[float] = None,
        stale_while_revalidate_hours: Optional[float] = None,
        variants: Optional[int] = None,
    ) -> Explanation:
        """Return whether a task would be answered from the cache, and if not, why. Calls nobody but the cache.

        For a miss it looks through all entries for the one of this agent that is nearest to the request.

        The arguments are those of :meth:`execute_agent`.

        :raises OrchestratorError: if an argument or the agent cannot be used.
        :raises claude_force_cache.ConfigurationError: if the cache cannot be opened as it is configured.
        """
        template = await self._templates.get(agent_name, model, max_tokens, temperature)
        check_task(task)
        asked = Freshness.of_call(
            max_age_hours=max_age_hours, stale_while_revalidate_hours=stale_while_revalidate_hours, variants=variants
        )
        freshness = asked.over(template.freshness) if asked is not None else template.freshness
        request = Request(template.request, task, check_context(context))
        check_use_memory(use_memory)
        cache = self._usable_cache()
        if use_memory is not False and self._memory.serves(agent_name):
            recalled = await self._recall(request, freshness, cache, "only-if-cached")
            request = request._replace(context=(*recalled.context, *request.context))
        if cache is None:
            return Explanation.of_no_cache(agent_name, "off")
        if not template.cacheable:
            return Explanation.of_no_cache(agent_name, "excluded")
        return await explain(cache, request, freshness, clock=self._clock)

    async def execute_multiple(
        self,
        tasks: Iterable[AgentTask],
        *,
        model: Optional[str] = None,
        **options: Unpack[ExecutionOptions],
    ) -> List[AgentResult]:
        """Return the results of many tasks, in the order of the tasks.

        All are looked up in bulk and started, a few in each turn of the event loop, so that what is cached does not
        wait behind calls; the calls keep to the limit of concurrency. A task that fails is one failed result. If this
        is cancelled, so are all of them.

        :param tasks: pairs of an agent's name and a task for it.

        The other arguments are those of :meth:`execute_agent`, for every task.
        """
        pairs = list(tasks)
        streaming = self.stream_many(pairs, model=model, in_flight=len(pairs) or 1, **options)
        try:
            return [result async for result in streaming]
        finally:
            await streaming.aclose()

    async def execute_as_completed(
        self,
        tasks: Union[Iterable[AgentTask], AsyncIterable[AgentTask]],
        *,
        model: Optional[str] = None,
        in_flight: Optional[int] = None,
        **options: Unpack[ExecutionOptions],
    ) -> AsyncGenerator[Tuple[int, AgentResult], None]:
        """Iterate over the results of many tasks as they come, each with the number of its task, from 0.

        Takes no more tasks than it works on, so the input may be longer than memory, or endless, and may
        arrive slowly if it is asynchronous. An ordinary iterable is read in the event loop: it should not block.
        Leaving the iteration early cancels what is under way, as soon as the iterator is closed (``aclose``).

        :param tasks: pairs of an agent's name and a task for it, or an asynchronous iterable of such.
        :param in_flight: how many tasks may be under way at once, cached ones included; by default four times
            ``max_concurrent``.

        The other arguments are those of :meth:`execute_agent`, for every task.
        """
        streaming = self._stream(tasks, model, in_flight, options, in_order=False)
        try:
            async for item in streaming:
                yield item
        finally:
            await streaming.aclose()

    async def stream_many(
        self,
        tasks: Union[Iterable[AgentTask], AsyncIterable[AgentTask]],
        *,
        model: Optional[str] = None,
        in_flight: Optional[int] = None,
        **options: Unpack[ExecutionOptions],
    ) -> AsyncGenerator[AgentResult, None]:
        """Iterate over the results of many tasks in the order of the tasks: :meth:`execute_multiple` for any number.

        Like :meth:`execute_as_completed` in all else. Results that wait for an earlier one count as under way, so one
        task that takes very long holds up what is more than ``in_flight`` tasks behind it.
        """
        streaming = self._stream(tasks, model, in_flight, options, in_order=True)
        try:
            async for _, result in streaming:
                yield result
        finally:
            await streaming.aclose()

    def batches(
        self,
        state_path: Union[str, os.PathLike[str]],
        *,
        model: Optional[str] = None,
        **options: Unpack[ExecutionOptions],
    ) -> MessageBatches:
        """Return a job that answers many tasks through the API for message batches: within a day, at half the price.

        What is in the cache is answered from it, and what comes back is stored like any other answer, under the same
        keys. To be called in the event loop that iterates over :meth:`MessageBatches.results`.

        :param state_path: a file that remembers what is under way; run again with the same one, the job picks it up.
        :raises ConfigError: if the cache is switched off, or an option cannot be used in batches.

        The other arguments are those of :meth:`execute_agent`, for every task.
        """
        return MessageBatches(self, Path(state_path), model=model, options=options)

    def _stream(
        self,
        tasks: Union[Iterable[AgentTask], AsyncIterable[AgentTask]],
        model: Optional[str],
        in_flight: Optional[int],
        options: ExecutionOptions,
        *,
        in_order: bool,
    ) -> AsyncGenerator[Tuple[int, AgentResult], None]:
        limit = _IN_FLIGHT_FACTOR * self.settings.max_concurrent
        if in_flight is not None:
            limit = check_whole("in_flight", in_flight, least=1)

        async def look_up(pairs: Sequence[AgentTask]) -> Sequence[Optional[CacheEntry[Answer]]]:
            return await self._look_up(pairs, model, options)

        async def work(pair: AgentTask, found: Optional[CacheEntry[Answer]]) -> AgentResult:
            return await self._execute_pair(pair, model, options, found)

        return stream(tasks, look_up, work, limit, in_order=in_order)

    async def _look_up(
        self, pairs: Sequence[AgentTask], model: Optional[str], options: ExecutionOptions
    ) -> Sequence[Optional[CacheEntry[Answer]]]:
        """Return what the cache has for each of some tasks, as far as one read can tell.

        None leaves it to the execution, which knows what to do about stale answers, variants and whatever cannot be
        used.
        """
        found: List[Optional[CacheEntry[Answer]]] = [None] * len(pairs)
        cache = self._usable_cache()
        if cache is None or options.get("cache") not in (None, "only-if-cached"):
            return found
        if options.get("deadline_seconds") is not None or self.settings.deadline_seconds is not None:
            return found  # the deadline of a task counts its look-up
        asked: Dict[Optional[float], List[Tuple[int, Tuple[KeyPart, ...]]]] = {}
        for position, pair in enumerate(pairs):
            if position and position % BREATH == 0:
                await asyncio.sleep(0)
            try:
                request, freshness = await self._question(pair, model, options)
            except OrchestratorError:
                continue  # its execution says so
            name, memory = request.template.agent_name, options.get("use_memory")
            if freshness.variants or freshness.refresh_ahead or name in self.settings.exclude_agents:
                continue
            if memory is False or not self._memory.serves(name):
                asked.setdefault(freshness.lookup().get("max_age"), []).append((position, request.key))
        try:
            for max_age, questions in asked.items():
                entries = await cache.get_entries([key for _, key in questions], max_age=max_age)
                for (position, _), entry in zip(questions, entries):
                    found[position] = entry
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - logged; it costs the cache's benefit, never an answer
            self._cache_failures.log(error)
        return found

    async def _question(
        self, pair: object, model: Optional[str], options: ExecutionOptions
    ) -> Tuple[Request, Freshness]:
        """Return what a task asks, but for the agent's memory, and how fresh its answer must be.

        :raises OrchestratorError: if the task, or an option, cannot be used.
        """
        agent_name, task = _pair(pair)
        max_tokens, temperature = options.get("max_tokens", 4096), options.get("temperature")
        template = await self._templates.get(agent_name, model, max_tokens, temperature)
        check_task(task)
        asked = Freshness.of_call(**{name: options.get(name) for name in FRESHNESS_KEYS})
        freshness = template.freshness if asked is None else asked.over(template.freshness)
        return Request(template.request, task, check_context(options.get("context", ()))), freshness

    async def run_workflow(
        self,
        workflow: Union[str, Workflow],
        task: str,
        model: Optional[str] = None,
        *,
        on_step: Optional[Callable[[StepResult], None]] = None,
        **options: Unpack[ExecutionOptions],
    ) -> WorkflowResult:
        """Return what became of the steps of a workflow, each of which is an execution like any other.

        A step starts as soon as what it needs has ended; what does not wait for each other runs at the same time. It
        is given the outputs of its inputs as context. A step that fails fails no other one: those that need it are
        skipped, the others go on. Failures are results, also with ``raise_errors``.

        Nothing is stored besides the answers. So a run that is repeated asks only what is not in the cache: after a
        failure the step that failed and those after it, after an edit of an agent or a template that step, and
        those whose inputs came out otherwise.

        :param workflow: the name of a workflow of the project, or a definition that :meth:`Workflow.parse` has read.
        :param task: the workflow's task.
        :param model: for the steps that name none; by default their agents' own.
        :param on_step: called in the event loop when a step begins to run and when it has ended. It must not block;
            what it raises ends the run.
        :raises WorkflowError: if there is no such workflow, or it cannot be run as it is defined.
        :raises InvalidTaskError: if the task cannot be used.
        :raises claude_force_cache.ConfigurationError: if the cache cannot be opened as it is configured.

        The other arguments are those of :meth:`execute_agent`, for every step; ``context`` comes before the outputs.
        What a step's definition says goes before them.
        """
        if isinstance(workflow, Workflow):
            workflow.check_agents(self.project)
        else:
            workflow = Workflow.of_project(self.project, workflow)
        check_task(task)
        given = check_context(options.get("context", ()))
        name, run = options.get("workflow_name") or workflow.name, secrets.token_hex(8)

        def execute(number: int, step: Step, text: str, outputs: Tuple[Context, ...]) -> Awaitable[AgentResult]:
            own: ExecutionOptions = {**options, "context": (*given, *outputs), "workflow_name": name}
            if step.max_tokens is not None:
                own["max_tokens"] = step.max_tokens
            if step.temperature is not None:
                own["temperature"] = step.temperature
            return self._execute(step.agent, text, model=step.model or model, workflow_position=number, run=run, **own)

        return await run_steps(workflow, task, execute, on_step or _ignore)

    async def _execute_pair(
        self,
        pair: object,
        model: Optional[str],
        options: ExecutionOptions,
        found: Optional[CacheEntry[Answer]] = None,
        premade: Optional[Premade] = None,
    ) -> AgentResult:
        agent_name, task = _pair(pair)
        return await self._execute(agent_name, task, model=model, found=found, premade=premade, **options)


def _pair(pair: object) -> Tuple[Any, Any]:
    """Return an agent and a task. Something that is no pair is one failed result like any other; None is no task."""
    return tuple(pair) if isinstance(pair, (tuple, list)) and len(pair) == 2 else (pair, None)


def _internal_error(defect: Exception) -> InternalError:
    _logger.error("a defect of the orchestrator failed a task", exc_info=defect)
    error = InternalError(f"a defect of the orchestrator, {type(defect).__name__}; its traceback is in the log")
    error.__cause__ = defect
    return error


def _ignore(_: StepResult) -> None:
    pass


def _is_storable(answer: Answer) -> bool:
    return answer.storable


def _check_deadline(value: Optional[float]) -> Optional[float]:
    if value is None:
        return None
    try:
        return check_deadline(value)
    except ConfigError as error:
        raise InvalidTaskError(str(error)) from None
