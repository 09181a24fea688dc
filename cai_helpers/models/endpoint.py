"""A language model behind an OpenAI-compatible endpoint, as a Generator. What failed is counted, never made up."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from cai_helpers.errors import CaiError
from cai_helpers.models.endpoint_answers import Answer, Failure
from cai_helpers.models.endpoint_failures import reason_to_stop
from cai_helpers.models.endpoint_request import EndpointRequests
from cai_helpers.models.flow import answers_of
from cai_helpers.models.generator import Answered, Request
from cai_helpers.schema import Completion, Messages, Record
from cai_helpers.settings import Endpoint

if TYPE_CHECKING:
    from cai_helpers.models.sampling import Sampling

_FIRST_PAUSE = 0.5  # seconds before the first retry; doubles with each
_LONGEST_PAUSE = 60.0  # seconds; also the most that a Retry-After header can ask for
_REFUSED_ROW = (400, 413, 422)  # what endpoints answer to a row they filter, or that is too long


class Usage(Record):
    """What the endpoint was asked for and what it cost, over the life of one EndpointGenerator."""

    input_price: float  # currency units a million tokens
    output_price: float
    requests: int = 0  # sent, retries included
    retried: int = 0  # of these, second and later tries of a row
    failed: dict[str, int] = Field({})  # reason → rows that have no completion
    input_tokens: int = 0
    output_tokens: int = 0
    unmetered: int = 0  # answers that do not say their tokens: they are missing in the two figures above, and in `cost`

    @property
    def cost(self) -> float:
        """In the currency of the two prices."""
        return (self.input_tokens * self.input_price + self.output_tokens * self.output_price) / 1e6

    def lines(self) -> list[tuple[str, str]]:
        """For a person: (what, figure)."""
        failed = ", ".join(f"{reason} {count}" for reason, count in self.failed.items()) or "none"
        unmetered = f"; {self.unmetered} answers did not say theirs" if self.unmetered else ""
        return [
            ("endpoint requests", f"{self.requests}, of which {self.retried} were repeated"),
            ("endpoint failures", failed),
            ("endpoint tokens", f"{self.input_tokens:,} in, {self.output_tokens:,} out{unmetered}"),
            ("endpoint cost", f"{self.cost:.4f} by endpoint.input_price and endpoint.output_price"),
        ]


class EndpointGenerator:
    """Asks an OpenAI-compatible endpoint, several rows at once; `usage` counts requests, tokens and failures.

    Raises:
        CaiError: a setting or the key is missing, or the key must not go to this address (endpoint_key.read_key).
    """

    def __init__(self, settings: Endpoint, alternatives: int | None = None) -> None:
        """alternatives: how many other tokens to ask for at each place, with their log-probabilities."""
        if settings.base_url is None or settings.model is None:
            raise CaiError(
                f"An endpoint needs {'endpoint.base_url' if settings.base_url is None else 'endpoint.model'}.",
                "Set endpoint.base_url (such as http://localhost:8000/v1) and endpoint.model (the name the endpoint knows it by).",
            )
        self._settings = settings
        self._requests = EndpointRequests(settings.base_url, settings.model, settings, alternatives)
        self._failures_in_a_row = 0
        self._has_answered = False
        self.usage = Usage(input_price=settings.input_price, output_price=settings.output_price)

    def open(self, batch_size: int) -> EndpointSession:
        """batch_size: without meaning here; `concurrency` requests are under way at once."""
        return EndpointSession(self, self._settings.concurrency)

    def generate(
        self, chats: list[Messages], sampling: Sampling, keys: list[str], batch_size: int
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into `chats`, completion) as answers come in; a row that failed is left out and counted.

        Raises:
            CaiError: the endpoint refuses the key, does not know the model, or one row after another fails.
        """
        return answers_of(self, enumerate(chats), sampling, keys, batch_size)

    def answers(self, chats: list[Messages], sampling: Sampling, keys: list[str]) -> Iterator[tuple[int, Answer]]:
        """The same, with all that came back."""
        session = self.open(0)
        try:
            requests = [Request(self, chat, sampling, key) for chat, key in zip(chats, keys, strict=True)]
            index = {id(request): place for place, request in enumerate(requests)}
            session.add(requests)
            while session.unfinished:
                for request, answer in session.answered(wait=True):
                    if answer is not None:
                        yield index[id(request)], answer
        finally:
            session.close()

    def ask(self, request: Request, stop: Event) -> Row:
        """One row with its retries. Runs in a thread of the pool and changes nothing that others see."""
        tries = 1
        result = self._requests.send(request.chat, request.sampling, request.key)
        while isinstance(result, Failure) and result.may_pass and tries <= self._settings.retries:
            if stop.wait(_pause(result, tries, request.key)):
                break
            tries += 1
            result = self._requests.send(request.chat, request.sampling, request.key)
        return Row(tries, result)

    def count(self, row: Row) -> CaiError | None:
        """Put a row into `usage`; why the run has to stop, if it has to."""
        usage, result = self.usage, row.result
        changes: dict[str, object] = {
            "requests": usage.requests + row.tries,
            "retried": usage.retried + row.tries - 1,
        }
        if isinstance(result, Answer):
            self._has_answered, self._failures_in_a_row = True, 0
            changes["input_tokens"] = usage.input_tokens + result.input_tokens
            changes["output_tokens"] = usage.output_tokens + result.completion.tokens
            changes["unmetered"] = usage.unmetered + (not result.metered)
        else:
            changes["failed"] = usage.failed | {result.reason: usage.failed.get(result.reason, 0) + 1}
            # an endpoint that has answered is not down when it refuses rows for what they say
            self._failures_in_a_row += not (self._has_answered and result.status in _REFUSED_ROW)
        self.usage = usage.model_copy(update=changes)
        if isinstance(result, Answer):
            return None
        return reason_to_stop(result, self._failures_in_a_row, self._has_answered, self._settings)


class Row(NamedTuple):
    tries: int
    result: Answer | Failure


class EndpointSession:
    """Requests of an EndpointGenerator, `concurrency` of them at once; the others wait."""

    def __init__(self, generator: EndpointGenerator, concurrency: int) -> None:
        self._generator = generator
        self._concurrency = concurrency
        self._stop = Event()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="endpoint")
        self._asked: dict[Future[Row], Request] = {}
        self._done: SimpleQueue[Future[Row]] = SimpleQueue()
        self._error: CaiError | None = None

    def add(self, requests: Iterable[Request]) -> None:
        for request in requests:
            future = self._pool.submit(self._generator.ask, request, self._stop)
            self._asked[future] = request
            future.add_done_callback(self._done.put)

    @property
    def unfinished(self) -> int:
        return len(self._asked)

    @property
    def room(self) -> int:
        """As many wait as are under way, so that none of them waits for a draft to come."""
        return 2 * self._concurrency - len(self._asked)

    def step(self, wait: bool) -> list[Answered]:
        return [(request, None if answer is None else answer.completion) for request, answer in self.answered(wait)]

    def answered(self, wait: bool) -> list[tuple[Request, Answer | None]]:
        """What has been answered since; None for a row that failed. wait: until there is one.

        Raises:
            CaiError: the endpoint has failed for good. What it had answered was handed out before.
        """
        if self._error is not None:
            raise self._error
        answers: list[tuple[Request, Answer | None]] = []
        for future in self._done_now(wait):
            row = future.result()
            answer = row.result if isinstance(row.result, Answer) else None
            if answer is not None or self._error is None:  # what fails after the end is known says nothing new
                self._error = self._generator.count(row) or self._error
            if answer is not None or self._error is None:
                answers.append((self._asked.pop(future), answer))
        if self._error is not None and not answers:
            raise self._error
        return answers

    def _done_now(self, wait: bool) -> list[Future[Row]]:
        done = [self._done.get()] if wait and self._asked else []
        while not self._done.empty():
            done.append(self._done.get())
        return done

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _pause(failure: Failure, tries: int, key: str) -> float:
    """Seconds to wait after the `tries`-th try: what the endpoint asks for, else doubling, spread so that rows part."""
    if failure.retry_after is not None:
        return min(failure.retry_after, _LONGEST_PAUSE)
    spread = random.Random(f"{key}:{tries}").uniform(0.5, 1.5)
    return min(_FIRST_PAUSE * 2 ** (tries - 1) * spread, _LONGEST_PAUSE)
