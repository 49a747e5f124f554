"""Calls: one request to the API, its attempts, and what their failures are called."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import random
import time
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from types import MappingProxyType
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Mapping, NamedTuple, Optional, Tuple, Type, TypeVar
from urllib.parse import urlsplit

import anyio

from ._budget import Budget, Reservation
from ._client import Clients
from ._errors import (
    AuthenticationError,
    BadRequestError,
    CallError,
    CallTimeoutError,
    ConnectionFailedError,
    InvalidAnswerError,
    OrchestratorError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    SpendLimitError,
    StoppedError,
)
from ._families import Families, Family
from ._http import library_of
from ._pace import Start
from ._prompt_caching import PromptCaching
from ._request import Request

__all__ = ["MAX_RETRY_AFTER", "Caller", "Reply", "backoff", "error_of", "retry_after"]

T = TypeVar("T")

MAX_RETRY_AFTER = 300.0
"""The longest pause, in seconds, that a server may ask for. A call that is told to wait longer fails at once."""

_BACKOFF_BASE = 0.5
_BACKOFF_MOST = 8.0
_REFUSALS = 9
_SPEND_LIMIT = "enforced_spend_limit_reached"
_RETRIED = frozenset({408, 409, 429})
_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
"""What the SDK's HTTP library, whichever it is, calls the failures before anything was sent."""

_BY_STATUS: Mapping[int, Type[CallError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    408: ServerError,
    409: ServerError,
    429: RateLimitError,
    529: OverloadedError,
}


def backoff(failures: int, asked: Optional[float], *, jitter: float, waited: float = 0.0) -> float:
    """Return the pause before the next attempt, in seconds.

    With the same jitter each is twice the one before, up to 8 s; another jitter makes it up to two fifths shorter. So a
    call that draws its jitter once backs off in earnest, and calls that failed together do not return together. What
    else held the last attempt up counts, too: whoever came later than it meant to and fails again doubles that. What
    the server asked for is never undercut; the jitter comes on top of it.

    :param failures: how many attempts failed, at least 1.
    :param asked: the seconds that the server asked for, or None.
    :param jitter: from 0 to below 1.
    :param waited: the seconds between the last two attempts, 0.0 if there was one.
    """
    if asked is not None:
        return asked + jitter * _BACKOFF_BASE
    pause = (0.6 + 0.4 * jitter) * min(_BACKOFF_MOST, _BACKOFF_BASE * 2.0 ** min(failures, 16))
    return max(pause, min(_BACKOFF_MOST, 2 * waited))


def retry_after(headers: Mapping[str, str], *, now: float) -> Optional[float]:
    """Return the seconds that a reply asks to wait, or None if it does not say.

    :param now: seconds since 1970, to which a date in the header is compared.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - now)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def error_of(status: int, message: str, **known: Any) -> CallError:
    """Return the error that a status of the API means."""
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else BadRequestError)
    return kind(message, status=status, **known)


class Reply(NamedTuple):
    """What the API answered, with status 200.

    :param message: the SDK's ``Message``.
    :param body: the reply's body as it came, content encodings undone.
    :param headers: the reply's headers; names are looked up whatever their case.
    :param content_type: the media type without its parameters, in lower case.
    :param sent: the request's headers, likewise. They hold the credentials.
    :param reservation: what is reserved for it in the budget, still to be settled.
    """

    message: Any
    body: bytes
    headers: Mapping[str, str]
    content_type: str
    sent: Mapping[str, str]
    reservation: Reservation


class Caller:
    """Makes calls, within the limits of their families, with one owner of retries and time-outs.

    :param clients: where the SDK's clients come from.
    :param families: the limits.
    :param timeout: the bound of each attempt in seconds, from sending it to the last byte of the answer.
    :param max_retries: how many attempts may follow failures. Being told to wait (429) is no failure of the call,
        but of all that share the quota: nine such replies are accepted besides, or ``max_retries`` if that is more;
        none if it is 0.
    :param on_attempt: called before each attempt.
    :param budget: what each attempt draws on.
    :param most: returns what an attempt can cost at most in USD.
    :param prompt_caching: decides which requests are marked.
    :param clock: seconds since 1970.
    """

    def __init__(
        self,
        clients: Clients,
        families: Families,
        *,
        endpoint: str,
        timeout: float,
        max_retries: int,
        on_attempt: Callable[[], None],
        budget: Budget,
        most: Callable[[Request], float],
        prompt_caching: PromptCaching,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clients = clients
        self._families = families
        self._host = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_refusals = max(max_retries, _REFUSALS) if max_retries else 0
        self._on_attempt = on_attempt
        self._budget = budget
        self._most = most
        self._prompt_caching = prompt_caching
        self._clock = clock
        self._stopped = False
        self._waits: Dict[anyio.CancelScope, asyncio.AbstractEventLoop] = {}

    def stop(self) -> None:
        """Begin no more attempts until :meth:`resume`; those under way are finished. May be called from any thread."""
        self._stopped = True
        for scope, loop in list(self._waits.items()):
            try:
                loop.call_soon_threadsafe(scope.cancel)
            except RuntimeError:
                continue  # the loop is closed, and nobody waits in it any more

    def resume(self) -> None:
        """Undo :meth:`stop`."""
        self._stopped = False

    async def _wait(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Return what ``wait`` returns.

        :raises StoppedError: if there are to be no more attempts.
        """
        if not self._stopped:
            with anyio.CancelScope() as scope:
                self._waits[scope] = asyncio.get_running_loop()
                try:
                    return await wait()
                finally:
                    del self._waits[scope]
        raise StoppedError

    async def call(self, request: Request) -> Reply:
        """Return the API's reply.

        :raises CallError: if the API does not answer; the SDK's exception is the cause.
        :raises StoppedError: if no attempt was under way, and there are to be no more.
        :raises InvalidAnswerError: if it answers something that the SDK cannot read.
        :raises BudgetError: if the budget does not allow the next attempt.
        :raises ConfigError: if the SDK is not installed, or the key cannot be sent.
        """
        most = self._most(request)
        self._budget.check(most)
        client = await self._clients.get()
        family = self._families.of(request.template.model)
        await self._wait(lambda: self._families.enter(family))
        try:
            return await self._call(client, request, family, most)
        finally:
            self._families.leave(family)

    async def manage(
        self, send: Callable[[Any], Awaitable[T]], *, seconds: Optional[float] = None, repeat: bool = True
    ) -> T:
        """Return what ``send`` returns, which asks the API for something else than a message.

        It has its own limits at the API, so those of the families do not hold.

        :param send: is given the SDK's client.
        :param seconds: the bound of each attempt; by default that of all calls.
        :param repeat: whether a request of which nobody knows what became of it may be sent again. One that met a
            rate limit or an overload may be in any case.
        :raises OrchestratorError: like :meth:`call`.
        """
        import anthropic

        client = await self._clients.get()
        hidden = tuple(secret for secret in (client.api_key, client.auth_token) if secret)
        jitter = random.random()  # noqa: S311 - spreads load, guards nothing
        failures = refusals = 0
        while True:
            if self._stopped:
                raise StoppedError
            try:
                with anyio.fail_after(self._timeout if seconds is None else seconds):
                    return await send(client)
            except (anthropic.AnthropicError, TimeoutError) as error:
                cause: Exception = error
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InvalidAnswerError(f"the reply of {self._host} is not JSON: {_line(error, hidden)}") from error
            failure = self._judge(cause, failures + refusals + 1, hidden)
            untouched = failure.refused or isinstance(failure.error, OverloadedError)
            refusals += untouched
            failures += not untouched
            if not failure.passing or failures > self._max_retries or refusals > self._max_refusals:
                raise failure.error from cause
            if not untouched and not repeat:
                raise failure.error from cause
            pause = backoff(failures + refusals, failure.asked, jitter=jitter)
            await self._wait(partial(asyncio.sleep, pause))

    async def sent_headers(self) -> Mapping[str, str]:
        """Return the headers that every request is sent with. They hold the credentials.

        :raises OrchestratorError: if the SDK is not installed, or there is no key.
        """
        client = await self._clients.get()
        return {name.lower(): value for name, value in client.default_headers.items() if isinstance(value, str)}

    @asynccontextmanager
    async def streamed(
        self, send: Callable[[Any], Awaitable[Any]], *, silence: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a reply that is read piece by piece.

        :param send: as for :meth:`manage`; returns what the SDK decodes the reply with.
        :param silence: how many seconds may pass between one piece and the next.
        :raises OrchestratorError: like :meth:`call`; and while it is read, if it cannot be read to its end.
        """
        decoder = await self.manage(send)
        try:
            yield self._pieces(decoder.http_response, silence)
        finally:
            await decoder.close()

    async def _pieces(self, response: Any, silence: float) -> AsyncIterator[bytes]:
        pieces = response.aiter_bytes()
        while True:
            try:
                with anyio.fail_after(silence):
                    piece = await pieces.__anext__()
            except StopAsyncIteration:
                return
            except (TimeoutError, library_of(response).HTTPError) as error:
                raise ConnectionFailedError(f"the connection to {self._host} broke off: {_line(error, ())}") from error
            yield piece

    async def _call(self, client: Any, request: Request, family: Family, most: float) -> Reply:
        import anthropic

        # A server may quote the key that it refuses.
        hidden = tuple(secret for secret in (client.api_key, client.auth_token) if secret)
        jitter = random.random()  # noqa: S311 - spreads load, guards nothing
        failures = refusals = 0
        cause: Optional[Exception] = None
        failed_at: Optional[float] = None
        while True:
            # What is refused anyway does not wait for its turn first.
            self._budget.check(most)
            # Here the end of the family's pause is waited for, if the API asked for one.
            start = await self._wait(lambda: self._families.start(family, patience=MAX_RETRY_AFTER))
            if start is None:
                raise self._too_long(family) from cause
            waited = 0.0 if failed_at is None else time.monotonic() - failed_at
            try:
                if self._stopped:  # in the very turn in which this one's came
                    raise StoppedError
                return await self._attempt(client, request, family, start, most=most)
            except (anthropic.AnthropicError, TimeoutError) as error:
                cause = error
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InvalidAnswerError(f"the reply of {self._host} is not JSON: {_line(error, hidden)}") from error
            finally:
                self._families.end(family)
            failed_at = time.monotonic()
            failure = self._judge(cause, failures + refusals + 1, hidden)
            if failure.refused:
                family.refused(start, failure.headers, failure.asked)
                refusals += 1
            else:
                failures += 1
                if failure.passing:
                    family.faulted()
            if not failure.passing or failures > self._max_retries or refusals > self._max_refusals:
                raise failure.error from cause
            if not failure.refused or failure.asked is None:
                pause = backoff(failures + refusals, failure.asked, jitter=jitter, waited=waited)
                await self._wait(partial(asyncio.sleep, pause))

    async def _attempt(self, client: Any, request: Request, family: Family, start: Start, *, most: float) -> Reply:
        reservation = await self._budget.reserve(most)
        mark, tokens = self._prompt_caching.mark(request.template), None
        try:
            self._on_attempt()
            with anyio.fail_after(self._timeout):
                reply = await _send(client, request.arguments(mark=mark.wanted), reservation)
            family.answered(start, reply.headers)
            tokens = _prompt_cache_tokens(reply.message)
            return reply
        except BaseException as error:
            # Also what nobody waits for any more, or cannot be read, may have been billed.
            reservation.settle(0.0 if _unbilled(error) else None)
            raise
        finally:
            self._prompt_caching.learn(mark, tokens)

    def _too_long(self, family: Family) -> RateLimitError:
        text = (
            f"{self._host} asks to wait {family.pause:,.0f} s more before calls of {family.name}, "
            f"and more than {MAX_RETRY_AFTER:.0f} s is not waited"
        )
        return RateLimitError(text, status=429, attempts=0)

    def _judge(self, error: Exception, attempts: int, hidden: Tuple[str, ...]) -> _Failure:
        """Return what the SDK's error means here."""
        import anthropic

        after = f" ({attempts} attempts)" if attempts > 1 else ""
        if isinstance(error, (TimeoutError, anthropic.APITimeoutError)):
            text = f"no complete answer from {self._host} within {self._timeout:g} s{after}; raise timeout_seconds"
            return _Failure(CallTimeoutError(text, attempts=attempts), passing=True)
        if isinstance(error, anthropic.APIConnectionError):
            text = f"cannot reach {self._host}: {_line(error.__cause__ or error, hidden)}{after}"
            return _Failure(ConnectionFailedError(text, attempts=attempts), passing=True)
        if isinstance(error, anthropic.APIResponseValidationError):
            return _Failure(InvalidAnswerError(f"{self._host} sent what is no message: {_line(error, hidden)}"))
        if not isinstance(error, anthropic.APIStatusError):
            return _Failure(CallError(f"the SDK refused the call: {_line(error, hidden)}", attempts=attempts))
        status, headers = error.status_code, error.response.headers
        message, code = _read_body(error.body)
        asked = retry_after(headers, now=self._clock())
        passing = (status in _RETRIED or status >= 500) and headers.get("x-should-retry") != "false"
        kind = _BY_STATUS.get(status, ServerError if status >= 500 else BadRequestError)
        refused = status == 429 and code != _SPEND_LIMIT
        if kind is RateLimitError and not refused:
            kind, passing = SpendLimitError, False
        text = f"{self._host} answered {status}: {_line(message or error, hidden)}{after}"
        if asked is not None and asked > MAX_RETRY_AFTER:
            text += f"; it asks to wait {asked:,.0f} s, and more than {MAX_RETRY_AFTER:.0f} s is not waited"
            passing = False
        request_id = headers.get("request-id")
        return _Failure(
            kind(text, status=status, request_id=request_id, attempts=attempts), passing, asked, refused, headers
        )


async def _send(client: Any, arguments: Mapping[str, Any], reservation: Reservation) -> Reply:
    raw = await client.messages.with_raw_response.create(**arguments, timeout=None)
    parsed = raw.parse()
    message = await parsed if inspect.isawaitable(parsed) else parsed  # SDKs before 1.0 parse without awaiting
    response = raw.http_response
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Reply(message, response.content, response.headers, content_type, raw.http_request.headers, reservation)


def _prompt_cache_tokens(message: Any) -> int:
    """Return how many tokens a message says were written to the API's prompt cache, or read from it."""
    usage = getattr(message, "usage", None)
    counts = (getattr(usage, f"cache_{kind}_input_tokens", None) for kind in ("creation", "read"))
    return sum(count for count in counts if isinstance(count, int))


def _unbilled(error: BaseException) -> bool:
    """Whether an attempt that failed certainly cost nothing: it was not sent, or the API answered with an error."""
    import anthropic

    if isinstance(error, anthropic.APIConnectionError):
        return type(error.__cause__).__name__ in _UNSENT
    if isinstance(error, anthropic.APIError):
        return isinstance(error, anthropic.APIStatusError)
    return isinstance(error, anthropic.AnthropicError)


class _Failure(NamedTuple):
    """A failed attempt.

    :param passing: whether another attempt may fare better.
    :param asked: the seconds that the server asks to wait before it, or None.
    :param refused: whether it met a rate limit.
    :param headers: those of the reply.
    """

    error: OrchestratorError
    passing: bool = False
    asked: Optional[float] = None
    refused: bool = False
    headers: Mapping[str, str] = MappingProxyType({})


def _read_body(body: object) -> Tuple[Optional[str], Optional[str]]:
    """Return the message and the error code in the body of an error."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None, None
    message, details = error.get("message"), error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else error.get("type")
    return message if isinstance(message, str) else None, code if isinstance(code, str) else None


def _line(text: object, hidden: Tuple[str, ...]) -> str:
    """Return text of others as one line of bounded length, without the secrets in it."""
    line = " ".join(str(text).split()) or type(text).__name__
    for secret in hidden:
        line = line.replace(secret, "***")
    return line if len(line) <= 300 else f"{line[:300]}..."
