"""One request to an OpenAI-compatible endpoint over HTTP: an Answer or a Failure comes back, never an exception.

The key travels to the address of the settings and no further: redirects are not followed, and a server on this machine
is asked without the proxy of the environment.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import SecretStr

from cai_helpers.errors import CaiError
from cai_helpers.models.endpoint_answers import Answer, Failure, read_response
from cai_helpers.models.endpoint_key import is_this_machine, read_key, require_address
from cai_helpers.schema import Messages
from cai_helpers.settings import Endpoint

if TYPE_CHECKING:
    from cai_helpers.models.sampling import Sampling


class EndpointRequests:
    """Sends chats; safe to share between threads.

    Raises:
        CaiError: the address or the key is missing, the key must not go to this address (endpoint_key.read_key), or the
            environment names a proxy or certificates that cannot be used.
    """

    def __init__(self, base_url: str, model: str, settings: Endpoint, alternatives: int | None) -> None:
        """alternatives: how many other tokens to ask for at each place, with their log-probabilities."""
        key = read_key(settings)  # first: it looks at the address, too
        self._url = completions_url(base_url)
        self._model = model
        self._alternatives = alternatives
        self._timeout = settings.timeout
        self._key = None if key is None else SecretStr(key)  # shows as ******* wherever this object is printed
        self._client = _client(base_url, key, settings)

    def send(self, chat: Messages, sampling: Sampling, key: str) -> Answer | Failure:
        """key: names the row's randomness."""
        asked = {
            "messages": chat,
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": _row_seed(sampling.seed, key),
            "stream": False,
        }
        if self._alternatives is not None:
            asked |= {"logprobs": True, "top_logprobs": self._alternatives}
        try:
            result = self._post(asked)
        except httpx.TimeoutException:
            return Failure("timeout", f"no answer within {self._timeout:g} s", may_pass=True)
        except httpx.DecodingError as error:  # not the compression that its header names
            return Failure("malformed answer", self._redact(str(error)), may_pass=False)
        except httpx.RequestError as error:
            return Failure("no connection", self._redact(str(error) or type(error).__name__), may_pass=True)
        return result if isinstance(result, Answer) else result._replace(text=self._redact(result.text))

    def _post(self, asked: dict[str, object]) -> Answer | Failure:
        """The limit is on the whole answer: gateways send white space while the model thinks, so that no read takes long."""
        deadline = time.monotonic() + self._timeout
        with self._client.stream("POST", self._url, json=asked) as response:
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer is still coming")
            return read_response(response.status_code, response.headers, bytes(body))

    def _redact(self, text: str) -> str:
        """An endpoint may repeat the key in its answer; for the same reason no error about it carries a cause."""
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "***")
        return " ".join(text.split())[:300]


def completions_url(base_url: str) -> str:
    """The address that answers chats: as given up to /chat/completions, else with what is missing of /v1/chat/completions."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return urlunsplit(parts._replace(path=path))


def _client(base_url: str, key: str | None, settings: Endpoint) -> httpx.Client:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.concurrency)
    try:
        # a transport of one's own takes no proxy from the environment: it would be asked for this machine's own server
        local = httpx.HTTPTransport(limits=limits) if is_this_machine(require_address(base_url).hostname) else None
        return httpx.Client(headers=headers, timeout=settings.timeout, limits=limits, transport=local)
    except (ImportError, ValueError, OSError) as error:  # a SOCKS proxy without its package, no address, no such file
        raise CaiError(
            f"No connection to {base_url} can be set up: {error}",
            "Check the environment variables HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR.",
        ) from error


def _row_seed(seed: int, key: str) -> int:
    """31 bits, which every endpoint takes; the same row asks for the same draw in every run."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:4], "little") >> 1
