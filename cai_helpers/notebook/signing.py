"""Sign in to the Hub, only when something needs it: a gated or private model or dataset, or a push.

A token is looked for in the environment, a saved login, Colab's secrets; then it is asked for, hidden. It lives in this process
alone (HF_TOKEN) and is never printed or written.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import CONFIGS, from_hub, hub_name, local_folder
from cai_helpers.models.open_models import OPEN_CHOICE
from cai_helpers.notebook.places import in_colab
from cai_helpers.prompts.sources import is_file
from cai_helpers.settings import Settings

SECRET = "HF_TOKEN"
_OPEN_DATA = ("Anthropic/hh-rlhf",)


def sign_in_where_needed(settings: Settings) -> None:
    """Ask for a token if something of this run may not be read without one; else say nothing.

    Raises:
        CaiError: there is no token, or its account may not read it.
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return
    for name, kind in remote_names(settings):
        if (reason := closed(name, kind)) is not None:
            sign_in(f"{name} is {reason}")
            if (still := closed(name, kind)) is not None:
                raise CaiError(
                    f"{name} is {still}, and the account {whoami()} may not read it.",
                    f"Open https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name} with that account and accept "
                    "its licence or ask for access; or sign in as somebody else: colab.sign_in(again=True). "
                    + (OPEN_CHOICE if kind == "model" else ""),
                )


def remote_names(settings: Settings) -> list[tuple[str, str]]:
    """What the run fetches from the Hub and is not on this machine: (name, "model" or "dataset")."""
    judge = [settings.evaluate.scorer.model] if settings.evaluate.scorer else []
    models = [settings.models.base, settings.models.adapter, *(one.model for one in settings.models.rewards), *judge]
    on_hub = [(name, found.repository) for name in models if name and (found := hub_name(name)) is not None]
    names = [
        (repository, "model") for name, repository in on_hub if not any(local_folder(name, file) for file in CONFIGS)
    ]
    sources = [settings.prompts.source, settings.prompts.eval_source]
    data = [(name, "dataset") for name in sources if name and not is_file(name) and name not in _OPEN_DATA]
    return list(dict.fromkeys(names + data))


def closed(name: str, kind: str) -> str | None:
    """Why it may not be read with the token there is: gated, or private; None: it may, or the Hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi().auth_check(name, repo_type=kind)
    except GatedRepoError:  # a subclass of the next one
        return "gated: its licence has to be accepted, by an account"
    except RepositoryNotFoundError:
        return "private, or there is none of that name"
    except (HfHubHTTPError, OSError):  # no network, or a Hub that is ill: the download says so, if it is needed
        return None
    return None


def sign_in(reason: str = "", again: bool = False) -> None:
    """Put a token where huggingface_hub looks for it, and say whose it is. `reason` says what needs it.

    again: forget the one that there is, and ask for another account's.

    Raises:
        CaiError: there is none, or the Hub does not take it.
    """
    if again:
        sign_out()
    if reason:
        print(f"A Hub token is needed: {reason}.")
    sources: tuple[Callable[[], str | None], ...] = (_asked,) if again else (_there, _secret, _asked)
    token = next(filter(None, (source() for source in sources)), None)
    if token is None:
        raise _no_token(reason)
    os.environ[SECRET] = token
    try:
        print(f"Signed in to the Hub as {whoami()}.")
    except CaiError:
        del os.environ[SECRET]
        raise


def sign_out() -> None:
    """Forget the token: the one of this process, and the saved login."""
    import huggingface_hub

    os.environ.pop(SECRET, None)
    os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
    if huggingface_hub.get_token() is not None:
        huggingface_hub.logout()


def whoami() -> str:
    """The account of the token.

    Raises:
        CaiError: the Hub does not take it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    return from_hub(lambda: HfApi().whoami(), "your account")["name"]


def _there() -> str | None:
    """Of the environment, or of a login that was saved on this machine."""
    from huggingface_hub import get_token

    return os.environ.get(SECRET) or (None if in_colab() and not _saved() else get_token())


def _saved() -> bool:
    """Whether a login was saved. Asked before `get_token`, which in Colab would open the window of the secrets by itself."""
    from huggingface_hub import constants

    return os.path.exists(constants.HF_TOKEN_PATH)


def _secret() -> str | None:
    """Colab's secret; None, and why, where it cannot be had."""
    if not in_colab():
        return None
    from google.colab import userdata

    try:
        return userdata.get(SECRET).strip() or None
    except userdata.SecretNotFoundError:
        print(f"Colab has no secret {SECRET}: you can add one with the key icon on the left.")
    except userdata.NotebookAccessError:
        print(
            f"Colab has the secret {SECRET}, and this notebook may not read it: switch on its access (key icon, left)."
        )
    except userdata.TimeoutException:
        print(f"Colab did not answer for the secret {SECRET}: the page is closed or detached. Reconnect to use it.")
    return None


def _asked() -> str | None:
    """A hidden prompt; where this front end has none, the Hub's own login."""
    from getpass import getpass

    try:
        return getpass("Hub token (https://huggingface.co/settings/tokens; it is not shown): ").strip() or None
    except (EOFError, NotImplementedError):  # ipykernel's StdinNotImplementedError is one of these
        return _by_widget()


def _by_widget() -> str | None:
    """huggingface_hub's login box, which saves the login; None: it was not used yet."""
    from huggingface_hub import get_token, notebook_login

    from_hub(notebook_login, "your account")
    return get_token()


def _no_token(reason: str) -> CaiError:
    how = (
        f"Add a Colab secret {SECRET} (the key icon on the left) and give this notebook access"
        if in_colab()
        else f"Set {SECRET}"
    )
    return CaiError(
        f"No Hub token{f', and {reason}' if reason else ''}.",
        f"{how}, or call colab.sign_in() and paste it. A token is made at https://huggingface.co/settings/tokens. {OPEN_CHOICE}",
    )
