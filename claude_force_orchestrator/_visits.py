"""Visits: requests that pass the drop-in, and what is recorded of each."""

from __future__ import annotations

import time
from typing import List, Optional

from claude_force_cache import CacheEntry

from ._answer import Answer, read_answer
from ._errors import InvalidAnswerError
from ._exchange import Question, Response, media_type
from ._prices import PriceList
from ._recorder import Recorder
from ._tracking import ExecutionRecord, Outcome

__all__ = ["Visit", "VisitBook"]


class VisitBook:
    """Where visits are written down.

    :param recorder: who is told of them.
    :param backend: the scheme of the cache's URL.
    :param prices: what tokens cost; by default as the package knows it.
    :param limit: up to how many bytes a body that passes by is kept, to see what it cost.
    """

    def __init__(self, recorder: Recorder, *, backend: str, prices: Optional[PriceList], limit: int) -> None:
        self.recorder = recorder
        self.backend = backend
        self.limit = limit
        self.prices = prices or PriceList.load()


class Visit:
    """One request, from its arrival to the end of its reply. It is recorded once, whatever becomes of it.

    What its own call brings, but to others or too late, is recorded beside it.
    """

    def __init__(self, book: VisitBook, question: Question) -> None:
        self._book = book
        self._question = question
        self._began = time.perf_counter()
        self._paid: Optional[Answer] = None
        self._ended = False
        self._counted = False
        self._crowded = False

    def pay(self, answer: Answer) -> None:
        """Take note of what the request's own call brought."""
        self._paid = answer
        if self._ended:
            self._record_beside()

    async def receive(self, response: Response) -> Response:
        """Return the reply, whose end is recorded when it comes if it is not known yet."""
        entry = response.entry
        if response.status != 200:
            self.fail(f"HTTP {response.status}")
        elif entry is not None:
            self.end("hit", entry.value, entry)
        elif response.answer is not None:
            self.end("miss", response.answer)
        else:
            response.body = _VisitedBody(response, self, self._book.limit)
        try:
            await self.settle()
        except BaseException:  # a cancellation: nobody will read the body
            await response.body.close()
            raise
        return response

    def read(self, answer: Optional[Answer], *, follows: bool) -> None:
        """End with what a body said, or with an answer that is too long to be looked at.

        :param follows: whether it was another request's.
        """
        self.end("hit" if follows else "bypass" if self._question.mode == "no-store" else "miss", answer)

    def fail(self, error: str) -> None:
        """End without an answer.

        :param error: the name of the error's class, or the reply's status.
        """
        if not self._ended:
            self._ended = True
            self._record("cancelled" if error == "CancelledError" else "failure", None, error=error)
            self._record_beside()

    def end(self, outcome: Outcome, answer: Optional[Answer], entry: Optional[CacheEntry[Answer]] = None) -> None:
        """End with an answer."""
        if self._ended:
            return
        self._ended = True
        # What cannot be looked at has a cost that nobody knows.
        cost = None if answer is None else self._book.prices.cost(answer)
        if outcome == "hit":
            self._record(outcome, answer, saved=cost, entry=entry)
            self._record_beside()
        else:
            self._counted = True
            self._record_paid(outcome, answer, cost)

    async def settle(self) -> None:
        """Wait until what was recorded has been written, if there is too much of it."""
        if self._crowded:
            self._crowded = False
            await self._book.recorder.flush()

    def _record_beside(self) -> None:
        if self._paid is not None and not self._counted:
            self._counted = True
            self._record_paid("background", self._paid, self._book.prices.cost(self._paid))

    def _record_paid(self, outcome: Outcome, answer: Optional[Answer], cost: Optional[float]) -> None:
        saved = None if answer is None else self._book.prices.prompt_cache_saved(answer)
        self._record(outcome, answer, cost=cost, prompt_cache_saved=saved)

    def _record(
        self,
        outcome: Outcome,
        answer: Optional[Answer],
        *,
        cost: Optional[float] = 0.0,
        saved: Optional[float] = 0.0,
        prompt_cache_saved: Optional[float] = 0.0,
        error: Optional[str] = None,
        entry: Optional[CacheEntry[Answer]] = None,
    ) -> None:
        question = self._question
        record = ExecutionRecord(
            ended=time.time(),
            agent=None,
            model=question.model,
            outcome=outcome,
            latency=time.perf_counter() - self._began,
            error=error,
            cost=cost,
            saved=saved,
            backend=None if question.mode == "no-store" else self._book.backend,
            streamed=question.streamed and outcome != "background",
            prompt_cache_saved=prompt_cache_saved,
        )
        if answer is not None:
            record = record._replace(
                model=answer.model,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                cache_write_tokens=answer.cache_write_tokens,
                cache_read_tokens=answer.cache_read_tokens,
            )
        if entry is not None:
            record = record._replace(key=entry.key, key_age=entry.age, stale=entry.stale)
        self._crowded = self._book.recorder.record(record) or self._crowded


class _VisitedBody:
    """The body of a reply of which it is not known yet what it says, or whether it will be whole."""

    def __init__(self, response: Response, visit: Visit, limit: int) -> None:
        self._body = response.body
        self._follows = response.follows
        self._type = media_type(response.headers)
        self._visit = visit
        self._room = limit
        self._pieces: List[bytes] = []

    async def next(self) -> Optional[bytes]:
        """Return the body's next piece, and take note of its end."""
        try:
            piece = await self._body.next()
        except Exception as error:
            self._visit.fail(type(error).__name__)
            raise
        if piece is None:
            self._end("InvalidAnswerError")
            await self._visit.settle()
        elif self._room >= 0:
            self._room -= len(piece)
            self._pieces.append(piece)
            if self._room < 0:
                self._pieces.clear()
        return piece

    async def close(self) -> None:
        """Close the body. Who does so before its end has left, unless nothing more was to come."""
        self._end("CancelledError")
        await self._body.close()

    def _end(self, error: str) -> None:
        """End the visit with what the body said.

        :param error: why, if that is no whole answer.
        """
        if self._room < 0 and error != "CancelledError":
            self._visit.read(None, follows=self._follows)
            return
        try:
            answer = read_answer(b"".join(self._pieces), content_type=self._type, created=time.time())
        except InvalidAnswerError:
            self._visit.fail(error)
        else:
            self._visit.read(answer, follows=self._follows)
        self._pieces.clear()
