"""Rows that take several answers one after another, many rows at once and without a barrier between the answers.

A row is a generator function: it yields the requests whose answers it needs next, is sent their completions, and returns
what it has come to. A row that has its draft goes on to its critique while others still draft.
"""

from __future__ import annotations

from collections.abc import Generator as Coroutine
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from cai_helpers.models.generator import Answered, Generator, Request, Session
from cai_helpers.schema import Completion, Messages

if TYPE_CHECKING:
    from cai_helpers.models.sampling import Sampling

T = TypeVar("T")
Row = Coroutine[list[Request], list[Completion], T]
Coming = Coroutine[list[T], None, None]  # can be closed before its end


def flow(rows: Iterable[Row[T]], batch_size: int) -> Coming[T]:
    """What the rows return, as they end; an empty list where none has ended since the last.

    A row begins when all generators have room, so that few are begun and not ended: those are what a kill loses, and a
    slow endpoint holds up the drafts that would wait for it. A row of which a request failed for now is dropped.

    Raises:
        CaiError: a generator cannot go on; rows that had ended were yielded before.
    """
    under_way = _UnderWay[T](batch_size)
    try:
        yield from under_way.all_of(rows)
    finally:  # reached by errors, Ctrl-C and a caller that stops reading, too
        under_way.close()


class _UnderWay(Generic[T]):
    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._sessions: dict[int, Session] = {}  # by the identity of their generators
        self._asked: dict[int, tuple[_Begun[T], int]] = {}  # by the identity of a request: who asked, and its place

    def all_of(self, rows: Iterable[Row[T]]) -> Iterator[list[T]]:
        waiting = iter(rows)
        row = next(waiting, None)
        while row is not None or self._asked:
            ended: list[T] = []
            while row is not None and all(session.room > 0 for session in self._sessions.values()):
                ended += self._go_on(_Begun(row), None)
                row = next(waiting, None)
            if ended:
                yield ended
            busy = [session for session in self._sessions.values() if session.unfinished]
            for session in busy:
                yield self._take(session.step(wait=len(busy) == 1))

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()

    def _take(self, answers: list[Answered]) -> list[T]:
        ended: list[T] = []
        for request, completion in answers:
            row, place = self._asked.pop(id(request))
            row.answers[place] = completion
            row.missing -= 1
            if row.missing == 0 and None not in row.answers:
                ended += self._go_on(row, [answer for answer in row.answers if answer is not None])
        return ended

    def _go_on(self, row: _Begun[T], completions: list[Completion] | None) -> list[T]:
        """Send a row on to its next requests; what it has come to, if that was its last."""
        try:
            requests = next(row.row) if completions is None else row.row.send(completions)
        except StopIteration as end:
            return [end.value]
        row.answers, row.missing = [None] * len(requests), len(requests)
        for place, request in enumerate(requests):
            self._asked[id(request)] = row, place
        for generator in {id(request.generator): request.generator for request in requests}.values():
            session = self._sessions.get(id(generator)) or generator.open(self._batch_size)
            self._sessions[id(generator)] = session
            session.add([request for request in requests if request.generator is generator])
        return []


class _Begun(Generic[T]):
    """A row with the answers that it waits for."""

    def __init__(self, row: Row[T]) -> None:
        self.row = row
        self.answers: list[Completion | None] = []
        self.missing = 0


def answers_of(
    generator: Generator, chats: Iterable[tuple[int, Messages]], sampling: Sampling, keys: list[str], batch_size: int
) -> Iterator[tuple[int, Completion]]:
    """(number, completion) of each of the numbered `chats` as it ends; one that failed for now is left out."""

    def alone(number: int, chat: Messages) -> Row[tuple[int, Completion]]:
        [completion] = yield [Request(generator, chat, sampling, keys[number])]
        return number, completion

    for ended in flow((alone(number, chat) for number, chat in chats), batch_size):
        yield from ended
