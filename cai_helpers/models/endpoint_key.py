"""The key of an endpoint, and where it may go: to an address that the person named, and to nobody else.

A workspace is a folder that people hand on. What its settings.json says must not decide who gets a secret of the
person who opens it.
"""

from __future__ import annotations

import ipaddress
import os
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
from huggingface_hub import get_token

from cai_helpers.errors import CaiError
from cai_helpers.settings import Endpoint

_HUB = "huggingface.co"  # and its sub-domains, such as router.huggingface.co
_HUB_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def read_key(settings: Endpoint) -> str | None:
    """The key from its environment variable; None for a server on this machine where it is not set.

    Raises:
        CaiError: there is no usable key, or it must not be sent to `base_url`: only a file names that address, it is
            plain http to another machine, or the key is the Hub's token and the address is not the Hub's.
    """
    assert settings.base_url is not None, "whoever asks has an address"
    name, address = settings.key_variable, require_address(settings.base_url)
    if not name.isidentifier():  # most likely the key itself: not repeated here
        raise CaiError(
            "endpoint.key_variable is not the name of an environment variable.",
            "Put the key into an environment variable, and only that variable's name, such as OPENAI_API_KEY, here.",
        )
    key = os.environ.get(name, "").strip()
    if not key and is_this_machine(address.hostname):
        return None
    if not key or not key.isascii() or not key.isprintable():
        raise CaiError(
            f"The environment variable {name} {'holds no usable key' if key else 'is not set'}.",
            f"Set {name} to the endpoint's key (in Colab: from the secrets panel), or name another variable by "
            "endpoint.key_variable.",
        )
    _require_right_to_send(settings, settings.base_url, address, key)
    return key


class Address(NamedTuple):
    scheme: str
    hostname: str


def require_address(base_url: str) -> Address:
    """What decides where a key may go.

    Raises:
        CaiError: it is no web address. A user name or a backslash in it is refused too: they make a name look like another's.
    """
    try:
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        # the HTTP client must read the same host and a port that there is
        same = host == httpx.URL(base_url).host and parts.port != 0
        is_address = same and parts.scheme in ("http", "https") and not ("@" in parts.netloc or "\\" in base_url)
    except (ValueError, httpx.InvalidURL):
        is_address = False
    if not is_address or not host:
        raise CaiError(
            f"endpoint.base_url is {base_url!r}, which is no web address.",
            "Write it with http:// or https://, such as http://localhost:8000/v1.",
        )
    return Address(parts.scheme, host)


def _require_right_to_send(settings: Endpoint, url: str, address: Address, key: str) -> None:
    name = settings.key_variable
    if _is_hub_token(name, key) and not _is_hub(address.hostname):
        raise CaiError(
            f"{name} holds your Hugging Face token, and {url} is not Hugging Face's: the token is not sent there.",
            "Put the key that this endpoint gave you into a variable of its own, such as OPENAI_API_KEY, and name it by "
            "endpoint.key_variable. A server that needs no key: name a variable that is not set.",
        )
    if address.scheme == "http" and not is_this_machine(address.hostname):
        raise CaiError(
            f"The key in {name} is not sent to {url}: without https everybody on the way can read it.",
            "Write https:// in endpoint.base_url, or bring the server to this machine (ssh -L 8000:localhost:8000 HOST) "
            "and name http://localhost:8000/v1.",
        )
    if not settings.named_by_person and not _named_by_environment(url):
        raise CaiError(
            f"The key in {name} is not sent to {url}: only a settings file names that address, and the file may be "
            "somebody else's.",
            f"If you trust it, repeat --set endpoint.base_url={url} in this command, or set CAI_ENDPOINT={url} in the "
            f'environment; in a notebook: settings = colab.change(workspace, "endpoint.base_url={url}"). A server that '
            "needs no key: name a variable that is not set by endpoint.key_variable.",
        )


def _named_by_environment(url: str) -> bool:
    return os.environ.get("CAI_ENDPOINT", "").strip().rstrip("/") == url.rstrip("/")


def is_this_machine(host: str) -> bool:
    """True of localhost and of loopback addresses; a name that another host could have is none."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _is_hub(host: str) -> bool:
    return host == _HUB or host.endswith(f".{_HUB}")


def _is_hub_token(name: str, key: str) -> bool:
    """By the variable's name, or because it holds what the Hub's own variables, or a login on this machine, hold."""
    return name in _HUB_VARIABLES or key in (get_token(), *(os.environ.get(own, "").strip() for own in _HUB_VARIABLES))
