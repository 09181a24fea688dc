"""What the Hub and a broken download answer, in words: what happened, and what to do. And when to ask once more."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cai_helpers.errors import CaiError
from cai_helpers.models.open_models import OPEN_CHOICE

PAUSES = (1.0, 4.0)  # seconds before the second and third request, where the Hub is busy

Result = TypeVar("Result")


def asked_again(load: Callable[[], Result]) -> Result:
    """`load`, up to three times where the Hub said that it is busy (429) or ill (5xx): that passes, the rest does not."""
    for pause in PAUSES:
        try:
            return load()
        except Exception as error:
            status = _status(error)
            if status is None or (status != 429 and status < 500):
                raise
            time.sleep(pause)
    return load()


def said(error: Exception, name: str, folder: Path) -> CaiError:
    """The error to show for one that loading `name` raised; `folder`: where it would lie on this machine.

    transformers and datasets wrap the Hub's errors, so what caused them is looked at as well.
    """
    if "trust_remote_code" in str(error) or "scripts are no longer supported" in str(error):
        return CaiError(
            f"{name} brings Python code of its own, which would have to run on this machine; it is never run.",
            "Take a model whose architecture transformers knows (its config.json then needs no auto_map), or a dataset of "
            "plain files (Parquet, JSONL).",
        )
    if (status := _status(error)) is not None:
        return _of_status(status, error, name)
    if folder.exists():
        return CaiError(
            f"{name} could not be loaded: {_first_line(error)}",
            "A file of it is missing, cut off or damaged: copy or download its folder again.",
        )
    if any(isinstance(link, transport_error()) for link in _chain(error)):
        return CaiError(
            f"The Hub could not be reached for {name}: {_first_line(_innermost(error))}",
            "Check the network and run the same again. Without one, give a folder that is here; what was downloaded before "
            "is found with HF_HUB_OFFLINE=1.",
        )
    damaged = " If it was downloaded before, its copy is damaged: remove it (`hf cache rm`) and download it again."
    return CaiError(
        f"There is no folder {name} here, and as a name on the Hub: {name} could not be loaded: {_first_line(error)}",
        "Check the name or path, and that this machine reaches the Hub."
        + ("" if isinstance(error, OSError) else damaged),
    )


def transport_error() -> type[Exception]:
    """The connection error of the HTTP library that huggingface_hub uses: httpx, or httpx2 from its version 2 on."""
    from huggingface_hub import get_session

    library = type(get_session()).__module__.partition(".")[0]
    return importlib.import_module(library).TransportError


def _of_status(status: int, error: Exception, name: str) -> CaiError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    chain = _chain(error)
    if any(isinstance(link, GatedRepoError) for link in chain):  # a subclass of RepositoryNotFoundError: first
        return CaiError(
            f"{name} is gated: its licence must be accepted once.",
            f"Open https://huggingface.co/{name}, accept, and set HF_TOKEN to a token of that account. {OPEN_CHOICE}",
        )
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return CaiError(f"{name} has no such revision.", "Check the revision on its page: a branch, a tag or a commit.")
    if status == 404 or any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return CaiError(f"{name} is not on the Hub, or is private.", "Check the name; for a private one set HF_TOKEN.")
    if status == 401:
        return CaiError(
            f"The Hub does not take the token it was given for {name} (HTTP 401).",
            "Make a new one at https://huggingface.co/settings/tokens and set HF_TOKEN to it, or unset it: public models need none.",
        )
    if status == 403:
        return CaiError(
            f"The Hub refuses {name} to this account (HTTP 403).",
            f"Open https://huggingface.co/{name} and ask for access, or use a token that may read it (HF_TOKEN).",
        )
    if status == 429:
        return CaiError(
            f"The Hub has had too many requests from here (HTTP 429) and did not give {name}.",
            "Wait some minutes and run the same again. With a token (HF_TOKEN) it takes more.",
        )
    if status >= 500:
        return CaiError(
            f"The Hub is not well (HTTP {status}) and did not give {name}, asked {len(PAUSES) + 1} times.",
            "Look at https://status.huggingface.co and run the same again later: what is here already is not fetched again.",
        )
    return CaiError(
        f"The Hub answered HTTP {status} for {name}: {_first_line(error)}",
        "Check the name, and that no proxy or login page stands between this machine and the Hub.",
    )


def _status(error: Exception) -> int | None:
    """The HTTP status that the Hub answered with, if that is what went wrong."""
    for link in _chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and what it was raised from or while."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def _innermost(error: Exception) -> BaseException:
    return _chain(error)[-1]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
