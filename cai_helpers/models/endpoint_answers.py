"""What an OpenAI-compatible endpoint answered: a completion, or why there is none."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from cai_helpers.schema import Completion

_CUT_OFF = ("length", "max_tokens", "content_filter")  # the text did not end by itself
_TITLE = re.compile(r"<title[^<>]{0,200}>([^<]*)", re.IGNORECASE)
_SAYING = ("error", "errors", "message", "detail", "msg", "error_description")  # where the words of a refusal stand


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


def read_response(status: int, headers: Mapping[str, str], body: bytes) -> Answer | Failure:
    """What came back over HTTP; headers: names in lower case, or a mapping that does not tell cases apart."""
    if not 200 <= status < 300:
        return _refusal(status, words(headers, body), headers)
    if _is_web_page(headers, body):  # of a network that wants a login first, or of another server
        return Failure("web page", words(headers, body), may_pass=True)
    try:
        answer = json.loads(body)
        if (error := _own_error(answer)) is not None:
            return _refusal(error, _said(answer), headers)
        return read_answer(answer)
    except (ValueError, RecursionError) as error:
        return Failure("malformed answer", str(error), may_pass=False)


def read_answer(answer: Any) -> Answer:
    """
    Raises:
        ValueError: it is no chat completion.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if choice is None or not isinstance(message, dict):
        raise ValueError(f"no choices in the answer: {_said(answer) or answer}")
    text = message.get("content", 0)
    if text is not None and not isinstance(text, str):  # null: all tokens went into reasoning, or a filter took it
        raise ValueError(f"no text in the answer: {message}")
    tokens, input_tokens = (_tokens(answer.get("usage"), name) for name in ("completion_tokens", "prompt_tokens"))
    finish = "length" if choice.get("finish_reason") in _CUT_OFF else "stop"
    whole = (
        (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )  # halves of pairs are no characters
    completion = Completion(text=whole.strip(), tokens=tokens or 0, finish=finish)
    metered = tokens is not None and input_tokens is not None
    return Answer(completion, input_tokens or 0, metered, _alternatives(choice.get("logprobs")))


def words(headers: Mapping[str, str], body: bytes) -> str:
    """What the endpoint says about its refusal: the message in its JSON, a web page's title, or the text itself."""
    text = body.decode("utf-8", "replace").strip()
    if _is_web_page(headers, body):
        title = _TITLE.search(text)
        said = " ".join(html.unescape(title[1]).split()) if title else ""
        return f"a web page titled {said!r}" if said else "a web page"
    try:
        return _said(json.loads(text)) or text
    except (ValueError, RecursionError):
        return text


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header, which gives them as a number or as a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds == seconds else None  # "nan" is a number to Python
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without its time zone
        return None


def _refusal(status: int, text: str, headers: Mapping[str, str]) -> Failure:
    may_pass = status in (408, 425, 429) or status >= 500
    if 300 <= status < 400:
        text = f"it sends requests on to {headers.get('location', 'an address that it does not name')}"
    return Failure(f"HTTP {status}", text, may_pass, status, retry_after(headers))


def _own_error(answer: Any) -> int | None:
    """The status in the body of an answer that HTTP calls a success, as gateways write it: {"error": {"code": 429}}."""
    error = answer.get("error") if isinstance(answer, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else None


def _said(content: Any, depth: int = 4) -> str:
    """The words in an error body: {"error": {"message": …}}, {"error": …}, {"detail": [{"msg": …}]}, a list of such."""
    if isinstance(content, str):
        return content.strip()
    if depth == 0:
        return ""
    if isinstance(content, list):
        return "; ".join(filter(None, (_said(item, depth - 1) for item in content[:3])))
    if isinstance(content, dict):
        return next(filter(None, (_said(content[name], depth - 1) for name in _SAYING if name in content)), "")
    return ""


def _is_web_page(headers: Mapping[str, str], body: bytes) -> bool:
    start = body[:200].lstrip().lower()
    return "html" in headers.get("content-type", "") or start.startswith((b"<!doctype html", b"<html"))


def _tokens(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else None


def _alternatives(logprobs: Any) -> list[list[Alternative]] | None:
    places = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not places:
        return None
    try:
        return [
            [Alternative(str(item["token"]), float(item["logprob"])) for item in place.get("top_logprobs") or []]
            for place in places
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"log-probabilities of another form: {logprobs}") from error
