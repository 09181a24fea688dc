"""A language model behind an OpenAI-compatible endpoint, as a Generator. What failed is counted, never made up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from cai_helpers.errors import CaiError
from cai_helpers.models.endpoint_answers import Answer, Failure
from cai_helpers.models.endpoint_failures import reason_to_stop
from cai_helpers.models.endpoint_request import EndpointRequests
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
                f"The api critic needs {'endpoint.base_url' if settings.base_url is None else 'endpoint.model'}.",
                "Set endpoint.base_url (such as http://localhost:8000/v1) and endpoint.model (the name the endpoint knows it by).",
            )
        self._settings = settings
        self._requests = EndpointRequests(settings.base_url, settings.model, settings, alternatives)
        self._failures_in_a_row = 0
        self._has_answered = False
        self.usage = Usage(input_price=settings.input_price, output_price=settings.output_price)

    def generate(
        self, chats: list[Messages], sampling: Sampling, keys: list[str], batch_size: int
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into `chats`, completion) as answers come in; a row that failed is left out and counted.

        batch_size: without meaning here; `concurrency` requests are under way at once.

        Raises:
            CaiError: the endpoint refuses the key, does not know the model, or one row after another fails.
        """
        for index, answer in self.answers(chats, sampling, keys):
            yield index, answer.completion

    def answers(self, chats: list[Messages], sampling: Sampling, keys: list[str]) -> Iterator[tuple[int, Answer]]:
        """The same, with all that came back."""
        stop = Event()
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="endpoint")
        try:
            rows = {
                pool.submit(self._row, chat, sampling, key, stop): index
                for index, (chat, key) in enumerate(zip(chats, keys, strict=True))
            }
            for future in as_completed(rows):
                row = future.result()
                self._count(row)
                if isinstance(row.result, Answer):
                    yield rows[future], row.result
                elif error := self._reason_to_stop(row.result):
                    raise error
        finally:  # reached by Ctrl-C and by a caller that stops reading, too
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _row(self, chat: Messages, sampling: Sampling, key: str, stop: Event) -> _Row:
        """One row with its retries. Runs in a thread of the pool and changes nothing that others see."""
        tries = 1
        result = self._requests.send(chat, sampling, key)
        while isinstance(result, Failure) and result.may_pass and tries <= self._settings.retries:
            if stop.wait(_pause(result, tries, key)):
                break
            tries += 1
            result = self._requests.send(chat, sampling, key)
        return _Row(tries, result)

    def _count(self, row: _Row) -> None:
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

    def _reason_to_stop(self, failure: Failure) -> CaiError | None:
        return reason_to_stop(failure, self._failures_in_a_row, self._has_answered, self._settings)


class _Row(NamedTuple):
    tries: int
    result: Answer | Failure


def _pause(failure: Failure, tries: int, key: str) -> float:
    """Seconds to wait after the `tries`-th try: what the endpoint asks for, else doubling, spread so that rows part."""
    if failure.retry_after is not None:
        return min(failure.retry_after, _LONGEST_PAUSE)
    spread = random.Random(f"{key}:{tries}").uniform(0.5, 1.5)
    return min(_FIRST_PAUSE * 2 ** (tries - 1) * spread, _LONGEST_PAUSE)
