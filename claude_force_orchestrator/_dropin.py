"""The drop-in: what becomes of a program's own request for a message, with a cache in front of the API."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any, Callable, Dict, Iterable, MutableMapping, NamedTuple, Optional, Tuple, Union
from weakref import WeakKeyDictionary

from typing_extensions import TypedDict, Unpack

from claude_force_cache import BackendClosedError, BlockingCache, Cache, CacheEntry, InvalidKeyError

from ._answer import EVENT_STREAM, Answer, check_codec, read_answer
from ._cache_failures import CacheFailures
from ._errors import ConfigError, InvalidAnswerError, InvalidTaskError
from ._exchange import (
    CONTROL_HEADER,
    Body,
    Headers,
    MarkedBody,
    Question,
    Response,
    Send,
    WholeBody,
    media_type,
    read_whole,
)
from ._freshness import MOST_HOURS
from ._http import ThreadedSend
from ._labels import check_tags, model_tag, tenant_tag
from ._options import CACHE_MODES
from ._prices import PriceList
from ._recorder import Recorder
from ._relay import Broadcast, Relay
from ._request import blind
from ._tracking import Tracker
from ._validation import check_number, check_whole
from ._visits import Visit, VisitBook

__all__ = ["BlockingDropIn", "DropIn", "DropInOptions"]

_PASSING = frozenset({408, 409, 429})
_ERROR_EVENT = b"\nevent: error"
_MOST_SECONDS = MOST_HOURS * 3600.0
_MAX_RECORDED_BYTES = 16 * 1024 * 1024

_Entry = CacheEntry[Answer]
_Relays = Dict[Tuple[object, ...], Relay[_Entry]]

_under_way: MutableMapping[Cache[Answer], MutableMapping[asyncio.AbstractEventLoop, _Relays]] = WeakKeyDictionary()
"""The streams under way, by cache and event loop: clients that share a cache share them, too."""


class DropInOptions(TypedDict, total=False):
    """The options of :class:`CacheMiddleware` and :func:`cached`."""

    ttl: Optional[float]
    max_age: Optional[float]
    stale_while_revalidate: float
    stale_if_error: float
    tags: Iterable[str]
    store_tool_use: bool
    mark_usage: bool
    max_recorded_bytes: int
    tracker: Optional[Tracker]
    prices: Optional[PriceList]


class _Refusal(NamedTuple):
    """A reply that is no answer."""

    status: int
    headers: Headers
    body: bytes


class _NoAnswerError(Exception):
    """Raised within a flight when the API gave no answer, with what it gave instead, for the one who asked."""

    def __init__(self, what: Union[Exception, _Refusal]) -> None:
        super().__init__()
        self.what = what

    @property
    def passing(self) -> bool:
        """Whether an older answer is better than this."""
        return isinstance(self.what, Exception) or self.what.status in _PASSING or self.what.status >= 500

    def response(self) -> Response:
        """Return what the API gave instead, or raise what it took to find out."""
        if isinstance(self.what, Exception):
            raise self.what
        return Response(self.what.status, list(self.what.headers), WholeBody(self.what.body))


class _NotSharedError(Exception):
    """Raised within a flight when what came is of use only to those who listened while it came."""


class _Own:
    """One caller's own call: how to make it, and what it brought."""

    def __init__(self, send: Send, visit: Optional[Visit]) -> None:
        self.send = send
        self._visit = visit
        self.headers: Headers = []
        self.answer: Optional[Answer] = None

    def pay(self, answer: Answer) -> Answer:
        """Return an answer that it brought, whoever it is for, which is recorded if anything is."""
        if self._visit is not None:
            self._visit.pay(answer)
        return answer

    def response(self) -> Optional[Response]:
        """Return what it brought, or None if it was not made, or brought nothing."""
        if self.answer is None:
            return None
        headers = [*self.headers, (CONTROL_HEADER, "miss")]
        return Response(200, headers, WholeBody(self.answer.body), answer=self.answer)


class DropIn:
    """Answers requests for messages from a cache, or else from the API, and then stores the answer.

    The options are explained at :class:`CacheMiddleware`.

    :raises ConfigError: if the cache or an option cannot be used.
    """

    def __init__(
        self,
        cache: Union[Cache[Answer], BlockingCache[Answer]],
        *,
        ttl: Optional[float] = None,
        max_age: Optional[float] = None,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 0.0,
        tags: Iterable[str] = (),
        store_tool_use: bool = False,
        mark_usage: bool = False,
        max_recorded_bytes: int = _MAX_RECORDED_BYTES,
        tracker: Optional[Tracker] = None,
        prices: Optional[PriceList] = None,
    ) -> None:
        if isinstance(cache, BlockingCache):
            raise ConfigError("an asynchronous client takes the Cache itself, not a BlockingCache")
        if not isinstance(cache, Cache):
            raise ConfigError(f"a {type(cache).__name__} is no cache: give open_cache(..., codec=AnswerCodec())")
        try:
            self._tags = (*check_tags(tags), tenant_tag(cache.settings.tenant))
        except InvalidTaskError as error:
            raise ConfigError(str(error)) from None
        check_codec(cache)
        if ttl is not None:
            check_number("ttl", ttl, above=0, most=_MOST_SECONDS)
        if max_age is not None:
            check_number("max_age", max_age, least=0, most=_MOST_SECONDS)
        check_number("stale_while_revalidate", stale_while_revalidate, least=0, most=_MOST_SECONDS)
        check_number("stale_if_error", stale_if_error, least=0, most=_MOST_SECONDS)
        check_whole("max_recorded_bytes", max_recorded_bytes, least=1)
        self._cache = cache
        self._max_age = max_age
        self._freshness: Dict[str, Any] = {
            **({} if ttl is None else {"ttl": ttl}),
            "max_age": max_age,
            "stale_while_revalidate": stale_while_revalidate,
            "stale_if_error": stale_if_error,
            "stale_if": _is_passing,
        }
        self._store_tool_use = store_tool_use
        self._mark_usage = mark_usage
        self._limit = max_recorded_bytes
        self.failures = CacheFailures("requests")
        self._book: Optional[VisitBook] = None
        if tracker is not None:
            backend = cache.url.partition(":")[0]
            self._book = VisitBook(Recorder(tracker), backend=backend, prices=prices, limit=max_recorded_bytes)

    async def respond(self, question: Question, send: Send) -> Response:
        """Return the reply to a question, out of the cache or from the API.

        Errors of the cache are logged, and cost nothing but its benefit.

        :raises Exception: what ``send`` raises.
        """
        if self._book is None:
            return await self._respond(question, _Own(send, None))
        visit = Visit(self._book, question)
        try:
            response = await self._respond(question, _Own(send, visit))
        except BaseException as error:
            visit.fail(type(error).__name__)
            raise
        return await visit.receive(response)

    async def _respond(self, question: Question, own: _Own) -> Response:
        if question.mode is not None and question.mode not in CACHE_MODES:
            return _refuse(400, f"{CONTROL_HEADER} must be one of {', '.join(CACHE_MODES)}, not {question.mode!r}")
        if question.mode == "no-store":
            return await own.send()
        try:
            return await self._look_up(question, own)
        except _NoAnswerError as failure:
            no_answer = failure
        except _NotSharedError:
            return await own.send()
        except Exception as error:  # noqa: BLE001 - logged; it costs the cache's benefit, never an answer
            if not isinstance(error, InvalidKeyError):  # a request that no key can be made of is none of its matters
                self.failures.log(error)
            return own.response() or (_not_cached() if question.mode == "only-if-cached" else await own.send())
        return no_answer.response()

    async def _look_up(self, question: Question, own: _Own) -> Response:
        if question.mode == "only-if-cached":
            return await self._only_if_cached(question)
        return await (self._stream(question, own) if question.streamed else self._whole(question, own))

    async def _only_if_cached(self, question: Question) -> Response:
        account = await self._account(question)
        entry = await self._cache.get_entry(
            question.key, max_age=self._max_age, usable_if=lambda answer: _usable(answer, question, account)
        )
        return _not_cached() if entry is None else self._replay(entry)

    async def _whole(self, question: Question, own: _Own) -> Response:
        account = await self._account(question)
        entry = await self._fetch(question, account, lambda: self._ask(question, account, own))
        response = None if entry.cached else own.response()
        return response or self._replay(entry)

    async def _stream(self, question: Question, own: _Own) -> Response:
        account = await self._account(question)
        refresh = question.mode == "no-cache"
        stored_key = await self._cache.stored_key(question.key)
        name = (stored_key, account, question.api_version, refresh, *self._freshness.values())
        relays = _under_way.setdefault(self._cache, WeakKeyDictionary()).setdefault(asyncio.get_running_loop(), {})

        async def work(relay: Relay[_Entry]) -> _Entry:
            return await self._fetch(question, account, lambda: self._ask(question, account, own, relay))

        def forget(relay: Relay[_Entry]) -> None:
            if relays.get(name) is relay:
                del relays[name]

        retried = False
        while True:
            relay = relays.get(name)
            leads = relay is None
            if relay is None:
                relay = relays[name] = Relay(work, forget)
            elif not relay.open:
                return await own.send()
            try:
                listener = await relay.join()
            except (_NoAnswerError, _NotSharedError):
                # As for whole answers: the error is the first one's; the others try once more, together.
                if leads or retried:
                    raise
                retried = True
                continue
            if relay.broadcast is not None:
                return self._relayed(relay.broadcast, listener, leads)
            await listener.close()
            entry = relay.task.result()
            response = own.response() if leads and not entry.cached else None
            return response or self._replay(entry)

    def _relayed(self, broadcast: Broadcast, body: Body, leads: bool) -> Response:
        if leads:
            return Response(200, [*broadcast.headers, (CONTROL_HEADER, "miss")], body)
        response = self._hit("hit", 0.0, EVENT_STREAM, _header(broadcast.headers, "request-id"), body)
        response.follows = True
        return response

    async def _fetch(self, question: Question, account: Optional[str], ask: Any) -> _Entry:
        return await self._cache.fetch(
            question.key,
            ask,
            store_if=self._storable,
            usable_if=lambda answer: _usable(answer, question, account),
            refresh=question.mode == "no-cache",
            tags=(model_tag(question.model), *self._tags),
            **self._freshness,
        )

    async def _account(self, question: Question) -> Optional[str]:
        return None if question.account is None else await self._cache.stored_key(question.account)

    def _storable(self, answer: Answer) -> bool:
        ended = answer.storable or (self._store_tool_use and answer.stop_reason == "tool_use")
        of_use = not answer.thinking or answer.account is not None
        return ended and of_use and len(answer.body) <= self._limit

    async def _ask(
        self, question: Question, account: Optional[str], own: _Own, relay: Optional[Relay[_Entry]] = None
    ) -> Answer:
        """Return the API's answer.

        :raises _NoAnswerError: if it gives none.
        :raises _NotSharedError: if it was broadcast, and is not whole, or too large to be kept.
        """
        try:
            response = await own.send()
        except Exception as error:  # noqa: BLE001 - raised again where the answer is expected
            raise _NoAnswerError(error) from None
        own.headers, content_type = response.headers, media_type(response.headers)
        parts = await blind(question.parts, self._cache)

        def read(body: bytes) -> Optional[Answer]:
            try:
                answer = read_answer(
                    body,
                    content_type=content_type,
                    request_id=_header(response.headers, "request-id"),
                    api_version=question.api_version,
                    account=account,
                    created=time.time(),
                    parts=parts,
                )
            except InvalidAnswerError:
                return None
            return answer if answer.thinking else replace(answer, account=None)

        if relay is not None and response.status == 200 and content_type == EVENT_STREAM:
            broadcast = Broadcast(response.headers, self._limit)
            relay.begin(broadcast)
            return own.pay(await _record(response.body, broadcast, relay, read))
        try:
            body = await read_whole(response.body)
        except Exception as error:  # noqa: BLE001 - likewise
            raise _NoAnswerError(error) from None
        own.answer = read(body) if response.status == 200 else None
        if own.answer is None:
            raise _NoAnswerError(_Refusal(response.status, response.headers, body))
        return own.pay(own.answer)

    def _replay(self, entry: _Entry) -> Response:
        """Return the response that a stored answer is."""
        answer = entry.value
        state = "stale" if entry.stale else "hit"
        response = self._hit(state, entry.age, answer.content_type, answer.request_id, WholeBody(answer.body))
        response.entry = entry
        return response

    def _hit(self, state: str, age: float, content_type: str, request_id: Optional[str], body: Body) -> Response:
        headers = [("content-type", content_type), (CONTROL_HEADER, state), ("age", str(int(age)))]
        if request_id is not None:
            headers.append(("request-id", f"cached_{request_id}"))
        return Response(200, headers, MarkedBody(body, content_type) if self._mark_usage else body)


class BlockingDropIn:
    """The same for blocking clients: in the event loop of a :class:`BlockingCache`, with calls in threads.

    :raises ConfigError: if the cache or an option cannot be used.
    """

    def __init__(self, cache: Union[Cache[Answer], BlockingCache[Answer]], **options: Unpack[DropInOptions]) -> None:
        if not isinstance(cache, BlockingCache):
            raise ConfigError("a blocking client takes a BlockingCache: with BlockingCache(cache) as cache: ...")
        self.cache = cache
        self._dropin = DropIn(cache.cache, **options)

    def respond(self, question: Question, send: Callable[[], Any]) -> Optional[Response]:
        """Return the reply to a question, or None if the cache is not open, which is logged.

        :param send: sends the request on, and returns the HTTP library's reply.
        :raises Exception: what ``send`` raises.
        """
        try:
            return self.cache.run(lambda: self._dropin.respond(question, ThreadedSend(send)))
        except BackendClosedError as error:
            self._dropin.failures.log(error)
            return None


async def _record(
    body: Body, broadcast: Broadcast, relay: Relay[_Entry], read: Callable[[bytes], Optional[Answer]]
) -> Answer:
    """Return the answer that a body streams, broadcast while it came.

    :raises _NotSharedError: if it is not whole, or too large to be kept.
    """
    seen, answer, failure = b"\n", None, None
    try:
        while True:
            piece = await body.next()
            if piece is None:
                break
            seen = seen[-len(_ERROR_EVENT) :] + piece
            if _ERROR_EVENT in seen:
                relay.retire()  # before they hear how it ends, and ask again
            await broadcast.send(piece)
            if _ERROR_EVENT in seen:
                break  # nothing comes after it
    except asyncio.CancelledError:
        # Everybody has left. What they left only after its end was paid for, and is kept.
        answer = None if broadcast.excessive else read(broadcast.body)
        if answer is None:
            raise
    except Exception as error:  # noqa: BLE001 - for those who listen
        failure = error
    finally:
        await body.close()
    if answer is None and failure is None and not broadcast.excessive:
        answer = read(broadcast.body)
    if answer is None:
        relay.retire()
    broadcast.end(failure)
    if answer is None:
        raise _NotSharedError
    return answer


def _usable(answer: Answer, question: Question, account: Optional[str]) -> bool:
    """Whether an answer that was stored for another request of the same key is one to this question."""
    if answer.api_version != question.api_version:
        return False
    return not answer.thinking or (account is not None and answer.account == account)


def _is_passing(error: Exception) -> bool:
    return isinstance(error, _NoAnswerError) and error.passing


def _header(headers: Headers, name: str) -> Optional[str]:
    return next((value for found, value in headers if found.lower() == name), None)


def _not_cached() -> Response:
    return _refuse(504, "the cache has no answer to this request, and only-if-cached does not ask the API")


def _refuse(status: int, message: str) -> Response:
    """Return an error in the API's format that the SDK does not retry."""
    error = {"type": "invalid_request_error" if status == 400 else "not_cached_error", "message": message}
    headers = [("content-type", "application/json"), ("x-should-retry", "false"), (CONTROL_HEADER, "miss")]
    return Response(status, headers, WholeBody(json.dumps({"type": "error", "error": error}).encode()))
