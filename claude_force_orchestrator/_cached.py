"""Cached clients: the drop-in as a transport, below any version of the SDK."""

from __future__ import annotations

from typing import Any, Optional, TypeVar, Union

from typing_extensions import Unpack

from claude_force_cache import BlockingCache, Cache

from ._answer import Answer
from ._dropin import BlockingDropIn, DropIn, DropInOptions
from ._errors import ConfigError
from ._exchange import CONTROL_HEADER, Question, Response
from ._http import from_library, library_of, to_library

__all__ = ["cached"]

C = TypeVar("C")


def cached(client: C, cache: Union[Cache[Answer], BlockingCache[Answer]], **options: Unpack[DropInOptions]) -> C:
    """Return a client of the SDK like ``client`` that answers repeats from a cache.

    For every version of the SDK, and for clients of other clouds as far as they send the API's own requests to
    ``.../v1/messages``. It shares the connections of ``client``: closing one closes both.

    :param client: an asynchronous client or a blocking one. It stays as it is.
    :param cache: ``open_cache(..., codec=AnswerCodec())`` for the one, ``BlockingCache`` of that for the other.
    :param options: those of :class:`CacheMiddleware`.
    :raises ConfigError: if client and cache do not go together, or an option cannot be used.
    """
    copy: Any = getattr(client, "copy", None)
    inner: Any = getattr(client, "_client", None)
    if copy is None or not hasattr(inner, "send"):
        raise ConfigError(f"a {type(client).__name__} is no client of the SDK: give an AsyncAnthropic or an Anthropic")
    library = library_of(inner)
    outer: Any
    transport: Any
    if isinstance(inner, library.AsyncClient):
        outer, transport = library.AsyncClient, _AsyncTransport(library, inner, DropIn(cache, **options))
    else:
        outer, transport = library.Client, _BlockingTransport(library, inner, BlockingDropIn(cache, **options))
    made: C = copy(
        http_client=outer(
            transport=transport,
            base_url=inner.base_url,
            headers=inner.headers,
            params=inner.params,
            cookies=inner.cookies,
            timeout=inner.timeout,
            follow_redirects=inner.follow_redirects,
            max_redirects=inner.max_redirects,
            # A proxy of the environment would be taken in place of the transport. The inner client uses it.
            trust_env=False,
        )
    )
    return made


class _Transport:
    """Sends through the client's own HTTP client, so with all that it was given."""

    def __init__(self, library: Any, inner: Any) -> None:
        self._library = library
        self._inner = inner

    def _send(self, request: Any) -> Any:
        # Redirects are followed above, so that each request comes by here.
        return self._inner.send(request, stream=True, follow_redirects=False)

    def _pass(self, response: Any) -> Any:
        """Return a reply as it came, its body still encoded."""
        return self._library.Response(
            response.status_code, headers=response.headers, stream=response.stream, extensions=response.extensions
        )


def _question(request: Any, body: bytes) -> Optional[Question]:
    question = Question.read(request.method, str(request.url), request.headers.multi_items(), body)
    if question is not None:
        request.headers.pop(CONTROL_HEADER, None)
    return question


class _AsyncTransport(_Transport):
    def __init__(self, library: Any, inner: Any, dropin: DropIn) -> None:
        super().__init__(library, inner)
        self._dropin = dropin

    async def __aenter__(self) -> _AsyncTransport:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        question = _question(request, await request.aread())
        if question is None:
            return self._pass(await self._send(request))

        async def send() -> Response:
            return from_library(await self._send(request))

        return to_library(self._library, await self._dropin.respond(question, send))

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BlockingTransport(_Transport):
    def __init__(self, library: Any, inner: Any, dropin: BlockingDropIn) -> None:
        super().__init__(library, inner)
        self._dropin = dropin

    def __enter__(self) -> _BlockingTransport:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def handle_request(self, request: Any) -> Any:
        question = _question(request, request.read())
        response = None
        if question is not None:
            response = self._dropin.respond(question, lambda: self._send(request))
        if response is None:
            return self._pass(self._send(request))
        return to_library(self._library, response, self._dropin.cache)

    def close(self) -> None:
        self._inner.close()
