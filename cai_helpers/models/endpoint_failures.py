"""When an endpoint's failures end the run, and what is then said: what happened in its words, and what to do."""

from __future__ import annotations

from cai_helpers.errors import CaiError
from cai_helpers.models.endpoint_answers import Failure
from cai_helpers.settings import Endpoint

_FEWEST_FAILURES = 4  # in a row, before an endpoint counts as down, however low the concurrency
_AGAIN = "Then start again: finished rows are kept."
_BUSY = "It is overloaded, or your quota is used up. Lower endpoint.concurrency, or raise endpoint.retries."
_TODO = {  # by what the last row failed with
    "timeout": "Raise endpoint.timeout or lower endpoint.concurrency, and check that the server is not stuck.",
    "no connection": "Check endpoint.base_url, that the server runs, and that this machine reaches it (network, firewall, proxy).",
    "web page": "Check endpoint.base_url. If it is right, the network answers in its place: open it in a browser and log in.",
    "malformed answer": "Check that endpoint.base_url is an OpenAI-compatible one, which answers /v1/chat/completions.",
    "HTTP 402": "Pay for more credit at the endpoint, or name another.",
    "HTTP 403": "Check what the key may do, and how much of its quota is left.",
    "HTTP 400": "Read its words above: it refuses the request itself. Take another endpoint.model, or fewer tokens.",
    "HTTP 413": "It takes no prompts that long: lower prompts.max_tokens or generate.critic_tokens.",
    "HTTP 422": "Read its words above: it refuses the request itself. Take another endpoint.model, or fewer tokens.",
    "HTTP 429": _BUSY,
    "HTTP 503": f"If a model is still being loaded, wait. {_BUSY}",
}
_SERVER = (
    "Check that the server is well (its log says why it fails). If it is only overloaded, lower endpoint.concurrency."
)


def reason_to_stop(failure: Failure, failures_in_a_row: int, has_answered: bool, settings: Endpoint) -> CaiError | None:
    """An error where trying more rows is of no use; None where the run goes on without this row."""
    url, said = settings.base_url, f": {failure.text}" if failure.text else ", without a word."
    # 403 after answers: moderation of one row (OpenRouter), or a key that has run out and fails the next rows too
    if failure.status == 401 or (failure.status == 403 and not has_answered):
        return CaiError(
            f"The endpoint {url} refuses the key ({failure.reason}){said}",
            f"Put a valid key into the environment variable {settings.key_variable}, or name another by endpoint.key_variable.",
        )
    if failure.status in (404, 405):
        return CaiError(
            f"The endpoint {url} does not know the model {settings.model}, or the address is wrong ({failure.reason}){said}",
            "Check endpoint.model, and endpoint.base_url: to an address that does not end in /v1, /v1/chat/completions "
            "is added; give the whole address, up to /chat/completions, where that is wrong.",
        )
    if failure.status is not None and 300 <= failure.status < 400:
        return CaiError(
            f"The endpoint {url} does not answer itself ({failure.reason}){said}",
            "The key is not carried on to another address. If you trust that one, name it as endpoint.base_url; if it is a "
            "login page, the network wants you to log in first.",
        )
    if failures_in_a_row >= max(settings.concurrency, _FEWEST_FAILURES):
        todo = _TODO.get(failure.reason, _SERVER)
        return CaiError(
            f"The endpoint {url} failed {failures_in_a_row} rows in a row, at last with {failure.reason}{said}",
            f"{todo} {_AGAIN}",
        )
    return None
