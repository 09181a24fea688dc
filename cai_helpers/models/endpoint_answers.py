"""What an OpenAI-compatible endpoint answered: a completion, or why there is none."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from cai_helpers.schema import Completion

_CUT_OFF = ("length", "max_tokens", "content_filter")  # the text did not end by itself


class Alternative(NamedTuple):
    token: str
    logprob: float


class Answer(NamedTuple):
    completion: Completion
    input_tokens: int
    metered: bool  # the endpoint said how many tokens
    alternatives: list[list[Alternative]] | None  # to each token of the text, where they were asked for and given


class Failure(NamedTuple):
    reason: str  # what it is counted under
    text: str  # in the endpoint's words
    may_pass: bool  # trying again can help
    status: int | None = None  # of the HTTP answer, if there was one
    retry_after: float | None = None  # seconds that the endpoint asks to wait


def read_answer(output: Any) -> Answer:
    """
    Raises:
        ValueError: it is no chat completion. (huggingface_hub makes None of any field that is missing.)
    """
    choices = output.choices
    if not isinstance(choices, list) or not choices or not hasattr(choices[0], "message"):
        raise ValueError(f"no choices in the answer: {getattr(output, 'error', None) or output}")
    text = getattr(choices[0].message, "content", 0)
    if text is not None and not isinstance(text, str):  # null: all tokens went into reasoning, or a filter took it
        raise ValueError(f"no text in the answer: {choices[0].message}")
    tokens, input_tokens = (_tokens(output.usage, name) for name in ("completion_tokens", "prompt_tokens"))
    finish = "length" if choices[0].finish_reason in _CUT_OFF else "stop"
    completion = Completion(text=(text or "").strip(), tokens=tokens or 0, finish=finish)
    metered = tokens is not None and input_tokens is not None
    return Answer(completion, input_tokens or 0, metered, _alternatives(choices[0]))


def _alternatives(choice: Any) -> list[list[Alternative]] | None:
    places = getattr(getattr(choice, "logprobs", None), "content", None)
    if not places:
        return None
    return [[Alternative(one.token, one.logprob) for one in place.top_logprobs or []] for place in places]


def _tokens(usage: Any, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) else None


def refusal(error: Exception) -> Any | None:
    """The HTTP answer behind `error`, if there is one.

    An error body that is JSON but no object, such as Gemini's list, makes huggingface_hub itself stumble while it
    writes its error; the answer then hangs on the error it was handling.
    """
    response = getattr(error, "response", None)
    return response if response is not None else getattr(error.__context__, "response", None)


def words(response: Any) -> str:
    """What the endpoint says about its refusal; a gateway's HTML page says nothing."""
    return "" if "html" in response.headers.get("content-type", "") else response.text


def retry_after(headers: Any) -> float | None:
    """Seconds from a Retry-After header, which gives them as a number or as a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without its time zone
        return None
