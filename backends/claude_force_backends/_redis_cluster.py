"""Requests to a Redis Cluster: each goes to the node that holds its slot, and follows it when it moves.

Nodes are asked in parallel, one exchange for each. What a node says of a slot's place is believed at once, and
the whole map is read anew. A node that fails is left alone for twenty times as long as that took, at most a
second; then one caller, after a look whether another node has taken its place, tries it again. Meanwhile the keys of
that node fail at once, and those of the others work.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, Dict, List, Optional, Sequence, Tuple, cast

import anyio
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from claude_force_cache import BackendUnavailableError, CacheError, PartlyUnavailableError

from ._redis_channel import Channel
from ._redis_errors import is_moving, reason_of, translated
from ._redis_layout import SLOTS
from ._redis_link import Command, Reply
from ._redis_router import SILENCE, Guides, Outcome, Request, Router, late
from ._redis_server import Deployment, Server

__all__ = ["Cluster"]

_PAUSE_FACTOR = 20
_LONGEST_PAUSE = 1.0
_FIRST_DELAY, _REPETITIONS = 0.005, 6
"""A request whose slot is between two nodes is repeated after 5, 10, 20, 40 and 80 milliseconds."""

_logger = logging.getLogger("claude_force_cache")


class _Node:
    """A node, and whether it works."""

    def __init__(self, server: Server, size: int) -> None:
        self.channel = Channel(server, size, self._given_up)
        self.reason = ""
        self._next_try = 0.0

    def admits(self) -> bool:
        """Return whether the node may be asked; of those who try one that failed, one at a time."""
        if not self.reason:
            return True
        now = self.channel.loop.time()
        if now < self._next_try:
            return False
        self._next_try = now + _LONGEST_PAUSE
        return True

    def worked(self) -> None:
        if self.reason:
            self.reason = ""
            _logger.warning("Redis at %s answers again", self.channel.server)

    def failed(self, reason: str, seconds: float) -> None:
        if not self.reason:
            _logger.warning("going on without Redis at %s: %s", self.channel.server, reason)
        self.reason = reason
        self._next_try = self.channel.loop.time() + min(_LONGEST_PAUSE, _PAUSE_FACTOR * seconds)

    def _given_up(self, silence: float) -> None:
        if silence >= SILENCE:
            self.failed(f"it said nothing for {silence:.1f} s", silence)


class _Call:
    """The state of one call: what is known of each request, and which ones have to be sent (again)."""

    def __init__(self, requests: Sequence[Request], repeatable: bool, end: float) -> None:
        self.requests = requests
        self.repeatable = repeatable
        self.end = end
        self.outcomes: List[Outcome] = [None] * len(requests)
        self.again = list(range(len(requests)))
        self.asked: Dict[int, _Node] = {}
        self.moving = False
        self.lost = False

    def fail(self, indexes: Sequence[int], error: CacheError) -> None:
        for index in indexes:
            self.outcomes[index] = error


class Cluster(Router):
    """The nodes of a cluster. The URL's servers are only asked for the map of slots."""

    def __init__(self, deployment: Deployment, size: int, timeout: float) -> None:
        super().__init__(deployment, size, timeout)
        self._guides = Guides(deployment.seeds, timeout)
        self._nodes: Dict[str, _Node] = {}
        self._masters: List[_Node] = []
        self._owners: List[Optional[_Node]] = []
        self._lock = asyncio.Lock()

    async def outcomes(self, requests: Sequence[Request], *, repeatable: bool, patient: bool = True) -> List[Outcome]:
        """See :meth:`Router.outcomes`."""
        call = _Call(requests, repeatable, self.loop.time() + self._timeout)
        if not self._owners:
            await self._read_map(call.end)
        delay = _FIRST_DELAY
        for _ in range(_REPETITIONS):
            await self._send(call)
            if not call.again or (call.moving and not patient) or self.loop.time() >= call.end:
                break
            if call.lost:
                await self._read_map(call.end)
            if call.moving:
                await asyncio.sleep(delay)
                delay *= 2
        if patient:
            for index, outcome in enumerate(call.outcomes):
                if isinstance(outcome, ResponseError):
                    call.outcomes[index] = self._part(translated(outcome, self._deployment), None)
        return call.outcomes

    async def subscribable(self) -> Server:
        """See :meth:`Router.subscribable`."""
        if not self._owners:
            await self._read_map(self.loop.time() + self._timeout)
        working = [node for node in self._masters if not node.reason]
        if not working:
            raise self._error(None)
        # Each node hears of everything, so the processes spread over them.
        return random.choice(working).channel.server  # noqa: S311 - no secret depends on it

    def abort(self) -> None:
        """See :meth:`Router.abort`."""
        self._guides.abort()
        for node in self._nodes.values():
            node.channel.abort()

    async def close(self) -> None:
        """See :meth:`Router.close`."""
        await self._guides.close()
        for node in list(self._nodes.values()):
            await node.channel.close()

    async def _send(self, call: _Call) -> None:
        """Send what is to be sent, each request to its node, and note what became of it."""
        groups: Dict[Tuple[_Node, bool], List[int]] = {}
        for index in call.again:
            asked = call.asked.pop(index, None)
            node = asked or self._owners[call.requests[index].slot]
            if node is None:
                call.outcomes[index] = self._error(None)
            else:
                groups.setdefault((node, asked is not None), []).append(index)
        call.again, call.moving, call.lost = [], False, False
        if len(groups) == 1:
            (((node, asking), indexes),) = groups.items()
            await self._ask(call, node, indexes, asking)
        elif groups:
            async with anyio.create_task_group() as tasks:
                for (node, asking), indexes in groups.items():
                    tasks.start_soon(self._ask, call, node, indexes, asking)

    async def _ask(self, call: _Call, node: _Node, indexes: List[int], asking: bool) -> None:
        """Send requests to one node. Raises nothing."""
        if node.reason:
            if not node.admits():
                call.fail(indexes, self._error(node))
                return
            # Perhaps another node has taken its place.
            await self._read_map(call.end)
            stay = [index for index in indexes if asking or self._owners[call.requests[index].slot] is node]
            call.again += [index for index in indexes if index not in stay]
            if not stay:
                return
            indexes = stay
        commands: List[Command] = [call.requests[index].command for index in indexes]
        began = self.loop.time()
        try:
            replies = await node.channel.exchange(commands, call.end, repeatable=call.repeatable, asking=asking)
        except RedisTimeoutError:
            call.fail(indexes, self._part(late(node.channel.server, self._timeout), node))
        except (RedisError, OSError) as error:
            node.failed(reason_of(error), self.loop.time() - began)
            call.fail(indexes, self._part(translated(error, node.channel.server), node))
            if call.repeatable:
                call.lost = True
                call.again += indexes
        else:
            self._note(call, node, indexes, replies, self.loop.time() - began)

    def _note(self, call: _Call, node: _Node, indexes: List[int], replies: List[Reply], seconds: float) -> None:
        down = None
        for index, reply in zip(indexes, replies):
            call.outcomes[index] = reply
            if isinstance(reply, MovedError):
                self._owners[call.requests[index].slot] = self._told(reply, node)
                call.lost = True
                call.again.append(index)
            elif isinstance(reply, AskError):
                call.asked[index] = self._told(reply, node)
                call.again.append(index)
            elif is_moving(reply):
                call.moving = True
                call.again.append(index)
            elif isinstance(reply, ClusterDownError):
                down = reply
            elif isinstance(reply, ResponseError):
                call.outcomes[index] = self._part(translated(reply, node.channel.server), node)
        if down is None:
            node.worked()
            return
        node.failed(reason_of(down), seconds)
        call.fail([index for index in indexes if call.outcomes[index] is down], self._error(node))

    async def _read_map(self, end: float) -> None:
        """Learn which node holds which slots, unless somebody else has just done so. Keeps the old map if nobody tells.

        :raises CacheError: if there is none yet.
        """
        before = self._owners
        with anyio.move_on_after(max(0.0, end - self.loop.time())):
            async with self._lock:
                if self._owners is not before:
                    return
                failure: CacheError = self._error(None)
                most = 0
                async for answer in self._guides.ask(("CLUSTER", "SLOTS")):
                    if isinstance(answer, CacheError):
                        failure = answer
                        continue
                    try:
                        rows = cast("List[List[Any]]", answer)
                        covered = sum(last - first + 1 for first, last, *_ in rows)
                        if covered > most:
                            self._learn(rows)
                            most = covered
                    except (ValueError, TypeError, AttributeError):
                        continue  # not a map of slots
                    if covered == SLOTS:
                        break
        if not self._owners:
            raise failure

    def _learn(self, rows: List[List[Any]]) -> None:
        owners: List[Optional[_Node]] = [None] * SLOTS
        for first, last, (host, port, *_), *_ in rows:
            if not 0 <= first <= last < SLOTS:
                raise ValueError("no slots of a cluster")
            node = self._node(self._deployment.server(host.decode(), int(port)))
            owners[first : last + 1] = [node] * (last - first + 1)
        self._owners = owners
        self._masters = list(dict.fromkeys(node for node in owners if node is not None))
        for address, node in list(self._nodes.items()):
            if node not in self._masters:
                node.channel.abort()
                del self._nodes[address]
        self._guides.add([node.channel.server for node in self._masters])

    def _told(self, error: AskError, by: _Node) -> _Node:
        return self._node(self._deployment.server(error.host or by.channel.server.host, error.port))

    def _node(self, server: Server) -> _Node:
        node = self._nodes.get(str(server))
        if node is None:
            node = self._nodes[str(server)] = _Node(server, self._size)
        return node

    def _error(self, node: Optional[_Node]) -> CacheError:
        """Return the error for requests to a node that failed a moment ago, or to none."""
        if node is None:
            reason = f"no node of the Redis Cluster at {self._deployment} holds some of the slots"
        else:
            reason = f"Redis at {node.channel.server} is not available ({node.reason})"
        return self._part(BackendUnavailableError(f"{reason}: check the nodes of the cluster"), node)

    def _part(self, error: CacheError, node: Optional[_Node]) -> CacheError:
        """Return the error as one of a part of the store, while any other node works."""
        works = any(other is not node and not other.reason for other in self._masters)
        return PartlyUnavailableError(str(error)) if works and type(error) is BackendUnavailableError else error
