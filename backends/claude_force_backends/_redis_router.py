"""Who answers which request: one server, the master that Sentinels name, or (:mod:`._redis_cluster`) many nodes.

A router belongs to one event loop, as its channels do. It holds each call to one deadline, however many servers
and attempts that takes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import AsyncIterator, List, NamedTuple, Optional, Sequence, Union, cast

import anyio
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from claude_force_cache import BackendUnavailableError, CacheError

from ._redis_channel import Channel
from ._redis_errors import is_demoted, is_moving, translated
from ._redis_link import Command, Reply
from ._redis_server import Deployment, Server

__all__ = ["SILENCE", "Guides", "Outcome", "Request", "Router", "Sentinel", "Standalone", "late"]

SILENCE = 0.1
"""Seconds without a word after which a server that somebody gave up on counts as gone."""


class Request(NamedTuple):
    """A command and the hash slot that it is about."""

    slot: int
    command: Command


Outcome = Union[Reply, CacheError]


class Router(ABC):
    """Sends requests to where they belong. Belongs to the event loop that was running when it was made.

    :param size: how many connections there may be to each server; further callers queue in order.
    :param timeout: seconds for one call, with queueing, finding the server, and connecting.
    """

    def __init__(self, deployment: Deployment, size: int, timeout: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._deployment = deployment
        self._size = size
        self._timeout = timeout

    async def run(self, requests: Sequence[Request], *, repeatable: bool) -> List[Reply]:
        """Return the replies. If some requests fail, the others are done all the same.

        :param repeatable: whether a request may be sent again if a server may or may not have done it.
        :raises BackendUnavailableError: for the first request that failed: its server cannot be reached, does not
            answer before the deadline, or answers with an error.
        :raises ForeignStoreError: if one of our keys holds something that we would not put there.
        """
        outcomes = await self.outcomes(requests, repeatable=repeatable)
        for outcome in outcomes:
            failure = self.failure(outcome)
            if failure is not None:
                raise failure
        return outcomes

    def failure(self, outcome: Outcome) -> Optional[CacheError]:
        """Return the error that an outcome is; None for a reply, and for what lies between two nodes of a cluster."""
        if isinstance(outcome, CacheError):
            return outcome
        if isinstance(outcome, ResponseError) and not is_moving(outcome):
            error = translated(outcome, self._deployment)
            error.__cause__ = outcome
            return error
        return None

    @abstractmethod
    async def outcomes(self, requests: Sequence[Request], *, repeatable: bool, patient: bool = True) -> List[Outcome]:
        """Return for each request the reply, a ``ResponseError`` among them, or why there is none.

        :param patient: whether to wait a moment for what is just being moved to another server.
        :raises CacheError: if that is the same for all.
        """

    @abstractmethod
    async def subscribable(self) -> Server:
        """Return a server that tells of what is published.

        :raises CacheError: if there is none.
        """

    @abstractmethod
    def abort(self) -> None:
        """Cut every connection, those in use as soon as they are given back. Runs on the router's loop."""

    @abstractmethod
    async def close(self) -> None:
        """Cut every connection and let the sockets close."""


class Standalone(Router):
    """One server."""

    def __init__(self, deployment: Deployment, size: int, timeout: float) -> None:
        super().__init__(deployment, size, timeout)
        self._channel = Channel(deployment.seeds[0], size)

    async def outcomes(self, requests: Sequence[Request], *, repeatable: bool, patient: bool = True) -> List[Outcome]:
        """See :meth:`Router.outcomes`."""
        commands = [request.command for request in requests]
        end = self.loop.time() + self._timeout
        try:
            replies = await self._channel.exchange(commands, end, repeatable=repeatable)
            if any(map(is_demoted, replies)):
                # The name may belong to another server by now.
                self._channel.cut_idle()
                replies = await self._channel.exchange(commands, end, repeatable=repeatable)
            return replies
        except RedisTimeoutError as error:
            raise late(self._deployment, self._timeout) from error
        except (RedisError, OSError) as error:
            raise translated(error, self._deployment) from error

    async def subscribable(self) -> Server:
        """See :meth:`Router.subscribable`."""
        return self._channel.server

    def abort(self) -> None:
        """See :meth:`Router.abort`."""
        self._channel.abort()

    async def close(self) -> None:
        """See :meth:`Router.close`."""
        await self._channel.close()


class Guides:
    """Servers that know where others are. They are asked in turn; those that do not answer go to the end.

    :param timeout: seconds for asking all of them.
    """

    def __init__(self, servers: Sequence[Server], timeout: float) -> None:
        self._timeout = timeout
        self._channels = [Channel(server, 1, self._given_up) for server in servers]

    def add(self, servers: Sequence[Server]) -> None:
        """Ask these, too, from now on."""
        known = {str(channel.server) for channel in self._channels}
        self._channels += [Channel(server, 1, self._given_up) for server in servers if str(server) not in known]

    async def ask(self, command: Command) -> AsyncIterator[Union[List[object], CacheError]]:
        """Yield what one after the other replies, a list, or why it does not."""
        bound = self._timeout / (len(self._channels) + 1)
        for channel in list(self._channels):
            answer: Union[List[object], CacheError] = late(channel.server, bound)
            try:
                (reply,) = await channel.exchange([command], channel.loop.time() + bound, repeatable=True)
                if isinstance(reply, ResponseError):
                    raise reply
                answer = reply if isinstance(reply, list) else []
            except RedisTimeoutError:
                pass
            except (RedisError, OSError) as error:
                answer = translated(error, channel.server)
            if isinstance(answer, CacheError):
                self._put_last(channel)
            yield answer

    def abort(self) -> None:
        """Cut every connection."""
        for channel in self._channels:
            channel.abort()

    async def close(self) -> None:
        """Cut every connection and let the sockets close."""
        for channel in self._channels:
            await channel.close()

    def _given_up(self, silence: float) -> None:
        if silence >= SILENCE:
            # Whoever gave up had begun with the first one.
            self._put_last(self._channels[0])

    def _put_last(self, channel: Channel) -> None:
        self._channels.remove(channel)
        self._channels.append(channel)


class Sentinel(Router):
    """The master of a service. Whenever it fails, the Sentinels are asked who it is now."""

    def __init__(self, deployment: Deployment, size: int, timeout: float) -> None:
        super().__init__(deployment, size, timeout)
        self._guides = Guides(deployment.seeds, timeout)
        self._master: Optional[Channel] = None
        self._is_known = False
        self._lock = asyncio.Lock()

    async def outcomes(self, requests: Sequence[Request], *, repeatable: bool, patient: bool = True) -> List[Outcome]:
        """See :meth:`Router.outcomes`."""
        commands = [request.command for request in requests]
        try:
            return await self._exchange(commands, self.loop.time() + self._timeout, repeatable)
        except RedisTimeoutError as error:
            raise late(self._where(), self._timeout) from error
        except (RedisError, OSError) as error:
            raise translated(error, self._where()) from error

    async def subscribable(self) -> Server:
        """See :meth:`Router.subscribable`."""
        try:
            return (await self._find(self.loop.time() + self._timeout)).server
        except RedisTimeoutError as error:
            raise late(self._where(), self._timeout) from error

    def abort(self) -> None:
        """See :meth:`Router.abort`."""
        self._guides.abort()
        if self._master is not None:
            self._master.abort()

    async def close(self) -> None:
        """See :meth:`Router.close`."""
        await self._guides.close()
        if self._master is not None:
            await self._master.close()

    async def _exchange(self, commands: Sequence[Command], end: float, repeatable: bool) -> List[Reply]:
        master = self._master if self._master is not None and self._is_known else await self._find(end)
        try:
            replies = await master.exchange(commands, end, repeatable=repeatable)
        except RedisTimeoutError:
            raise
        except (RedisError, OSError):
            self._is_known = False
            other = await self._find(end) if repeatable else master
            if other is master:
                raise
            return await other.exchange(commands, end, repeatable=repeatable)
        if any(map(is_demoted, replies)):
            self._is_known = False
            master.cut_idle()
            replies = await (await self._find(end)).exchange(commands, end, repeatable=repeatable)
        return replies

    async def _find(self, end: float) -> Channel:
        with anyio.move_on_after(max(0.0, end - self.loop.time())):
            return await self._look_up()
        raise RedisTimeoutError("no Sentinel answered")

    async def _look_up(self) -> Channel:
        async with self._lock:
            if self._master is None or not self._is_known:
                server = await self._ask()
                if self._master is None or str(self._master.server) != str(server):
                    if self._master is not None:
                        self._master.abort()
                    self._master = Channel(server, self._size, self._given_up)
                self._is_known = True
            return self._master

    async def _ask(self) -> Server:
        failure: CacheError = BackendUnavailableError(
            f"no Sentinel at {self._deployment} knows a master of {self._deployment.service!r}: check sentinel_service"
        )
        async for answer in self._guides.ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", str(self._deployment.service))):
            if isinstance(answer, CacheError):
                failure = answer
            elif answer:
                try:
                    host, port = cast("List[bytes]", answer)
                    return self._deployment.server(host.decode(), int(port))
                except (ValueError, TypeError, AttributeError):
                    continue  # not an address
        raise failure

    def _given_up(self, silence: float) -> None:
        if silence >= SILENCE:
            self._is_known = False

    def _where(self) -> object:
        return self._deployment if self._master is None else self._master.server


def late(where: object, timeout: float) -> BackendUnavailableError:
    """Return the error for a call that met its deadline."""
    return BackendUnavailableError(
        f"Redis at {where} did not answer within {timeout:g} s: "
        "check the server and the network, or raise socket_timeout"
    )
