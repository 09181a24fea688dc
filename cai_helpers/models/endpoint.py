"""A language model behind an OpenAI-compatible endpoint, as a Generator. What failed is counted, never made up."""

from __future__ import annotations

import hashlib
import importlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import InferenceClient, get_session, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError
from pydantic import Field, SecretStr

from cai_helpers.errors import CaiError
from cai_helpers.models.endpoint_answers import Answer, Failure, read_answer, refusal, retry_after, words
from cai_helpers.models.endpoint_key import read_key, require_address
from cai_helpers.schema import Completion, Messages, Record
from cai_helpers.settings import Endpoint

if TYPE_CHECKING:
    from cai_helpers.models.sampling import Sampling

_FIRST_PAUSE = 0.5  # seconds before the first retry; doubles with each
_LONGEST_PAUSE = 60.0  # seconds; also the most that a Retry-After header can ask for
_FEWEST_FAILURES = 4  # in a row, before an endpoint counts as down, however low the concurrency
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
        CaiError: a setting or the key is missing, the key must not go to this address (endpoint_key.read_key), or
            huggingface_hub is in offline mode.
    """

    def __init__(self, settings: Endpoint, alternatives: int | None = None) -> None:
        """alternatives: how many other tokens to ask for at each place, with their log-probabilities."""
        _check(settings)
        self._settings = settings
        self._alternatives = alternatives
        self._key = SecretStr(read_key(settings))  # shows as ******* wherever this object is printed
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
                if row.failure is not None:
                    self._give_up_if_hopeless(row.failure)
                else:
                    yield rows[future], row.answer
        finally:  # reached by Ctrl-C and by a caller that stops reading, too
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _row(self, chat: Messages, sampling: Sampling, key: str, stop: Event) -> _Row:
        """One row with its retries. Runs in a thread of the pool and changes nothing that others see."""
        for tries in range(1, self._settings.retries + 2):
            result = self._request(chat, sampling, key)
            if isinstance(result, Answer):
                return _Row(tries, answer=result)
            if not result.may_pass or tries > self._settings.retries or stop.wait(_pause(result, tries, key)):
                break
        return _Row(tries, failure=result)

    def _request(self, chat: Messages, sampling: Sampling, key: str) -> Answer | Failure:
        settings = self._settings
        http = _http_library()
        try:
            # a client a request, all on one session: huggingface_hub 1 keeps each response open until its client closes
            with InferenceClient(
                base_url=settings.base_url, api_key=self._key.get_secret_value(), timeout=settings.timeout
            ) as client:
                output = client.chat_completion(
                    chat,
                    model=settings.model,
                    max_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=_row_seed(sampling.seed, key),
                    logprobs=None if self._alternatives is None else True,
                    top_logprobs=self._alternatives,
                )
            return read_answer(output)
        except (TimeoutError, http.TimeoutException):
            return Failure("timeout", f"no answer within {settings.timeout:g} s", may_pass=True)
        except http.RequestError as error:
            return Failure("no connection", self._redact(str(error) or type(error).__name__), may_pass=True)
        except (HfHubHTTPError, ValueError, AttributeError, TypeError) as error:
            response = refusal(error)
            if response is not None:
                status, text = response.status_code, self._redact(words(response))
                may_pass = status in (408, 429) or status >= 500
                return Failure(f"HTTP {status}", text, may_pass, status, retry_after(response.headers))
            if isinstance(error, ValueError):
                return Failure("malformed answer", self._redact(str(error)), may_pass=False)
            raise

    def _redact(self, text: str) -> str:
        """An endpoint may repeat the key in its answer; for the same reason no error here carries a cause."""
        return " ".join(text.replace(self._key.get_secret_value(), "***").split())[:300]

    def _count(self, row: _Row) -> None:
        usage, answer, failure = self.usage, row.answer, row.failure
        changes = {"requests": usage.requests + row.tries, "retried": usage.retried + row.tries - 1}
        if answer is not None:
            self._has_answered, self._failures_in_a_row = True, 0
            changes["input_tokens"] = usage.input_tokens + answer.input_tokens
            changes["output_tokens"] = usage.output_tokens + answer.completion.tokens
            changes["unmetered"] = usage.unmetered + (not answer.metered)
        else:
            changes["failed"] = usage.failed | {failure.reason: usage.failed.get(failure.reason, 0) + 1}
            # an endpoint that has answered is not down when it refuses rows for what they say
            self._failures_in_a_row += not (self._has_answered and failure.status in _REFUSED_ROW)
        self.usage = usage.model_copy(update=changes)

    def _give_up_if_hopeless(self, failure: Failure) -> None:
        settings, said = self._settings, f": {failure.text}" if failure.text else "."
        # 403 after answers: moderation of one row (OpenRouter), or a key that has run out and fails the next rows too
        if failure.status == 401 or (failure.status == 403 and not self._has_answered):
            raise CaiError(
                f"The endpoint {settings.base_url} refuses the key ({failure.reason}){said}",
                f"Put a valid key into the environment variable {settings.key_variable}, or name another by endpoint.key_variable.",
            )
        if failure.status == 404:
            raise CaiError(
                f"The endpoint {settings.base_url} does not know the model {settings.model}, or the address is wrong{said}",
                "Check endpoint.model, and endpoint.base_url: to an address that does not end in /v1, /v1/chat/completions "
                "is added; give the whole address, up to /chat/completions, where that is wrong.",
            )
        if self._failures_in_a_row >= max(settings.concurrency, _FEWEST_FAILURES):
            raise CaiError(
                f"The endpoint {settings.base_url} failed {self._failures_in_a_row} rows in a row, at last with "
                f"{failure.reason}{said}",
                "Check endpoint.base_url and endpoint.model, and that the server runs; then start again, finished rows are kept. "
                "If it is only overloaded, lower endpoint.concurrency or raise endpoint.retries and endpoint.timeout.",
            )


class _Row(NamedTuple):
    tries: int
    answer: Answer | None = None  # exactly one of the two
    failure: Failure | None = None


def _check(settings: Endpoint) -> None:
    if settings.base_url is None or settings.model is None:
        missing = "endpoint.base_url" if settings.base_url is None else "endpoint.model"
        raise CaiError(
            f"The api critic needs {missing}.",
            "Set endpoint.base_url (such as http://localhost:8000/v1) and endpoint.model (the name the endpoint knows it by).",
        )
    require_address(settings.base_url)
    if is_offline_mode():  # its session then refuses every address, this machine's own too
        raise CaiError(
            "The api critic cannot be asked: HF_HUB_OFFLINE is set, and huggingface_hub then sends no request at all.",
            "Unset HF_HUB_OFFLINE and restart, or set generate.critic=local.",
        )


def _http_library() -> Any:
    """The HTTP library that huggingface_hub uses: httpx, or httpx2 from its version 2 on. Its errors come through."""
    return importlib.import_module(type(get_session()).__module__.partition(".")[0])


def _row_seed(seed: int, key: str) -> int:
    """31 bits, which every endpoint takes; the same row asks for the same draw in every run."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "little") >> 1


def _pause(failure: Failure, tries: int, key: str) -> float:
    """Seconds to wait after the `tries`-th try: what the endpoint asks for, else doubling, spread so that rows part."""
    if failure.retry_after is not None:
        return min(failure.retry_after, _LONGEST_PAUSE)
    spread = random.Random(f"{key}:{tries}").uniform(0.5, 1.5)
    return min(_FIRST_PAUSE * 2 ** (tries - 1) * spread, _LONGEST_PAUSE)
