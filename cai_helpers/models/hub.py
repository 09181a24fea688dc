"""Where models and datasets come from: the Hub, a folder, the package itself. What goes wrong is said in words."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError

EMBEDDED = "embedded:"
# Instruct models that anyone can load without a token and that fit a T4 (docs/MODELS.md): the choices of the notebooks' form.
OPEN_MODELS = (
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-0.6B",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
)
OPEN_CHOICE = f"As base model (models.base, --model) these need neither licence nor token: {', '.join(OPEN_MODELS)}."


def locate(name: str) -> str:
    """A Hub id or folder as it is, with ~ written out; "embedded:chat" as the folder inside the package."""
    if not name.startswith(EMBEDDED):
        return str(Path(name).expanduser()) if name.startswith("~") else name
    return str(resources.files("cai_helpers") / "assets" / "tiny" / name.removeprefix(EMBEDDED))


def identity(name: str | None) -> str | None:
    """What `name` stands for: a Hub id as it is; a folder by the hash of its files, so that retraining shows."""
    if name is None or not (folder := Path(locate(name))).is_dir():
        return name
    digest = file_hash(folder)
    assert digest is not None  # it is a folder
    return f"{name} ({digest[:12]})"


def local_folder(name: str, file: str) -> Path | None:
    """The folder of this machine that holds `file` of a model: its own, or the Hub's cache; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(locate(name))
    if folder.is_dir():
        return folder if (folder / file).is_file() else None
    if name.startswith((EMBEDDED, ".", "/", "~")) or name.count("/") != 1:
        return None
    cached = try_to_load_from_cache(name, file)
    return Path(cached).parent if isinstance(cached, str) else None


def from_hub(load: Callable, name: str):
    """Call `load`; turn what the Hub and the disk answer into an error that says what to do.

    transformers wraps the Hub's errors in OSError, so the cause is looked at as well.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    _require_path(name)
    try:
        with warnings.catch_warnings():
            # transformers warns of a name that peft still uses; the user can do nothing about it
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # whole_weights refuses them
            return load()
    except (OSError, ValueError, RuntimeError, transport_error()) as error:
        if "trust_remote_code" in str(error) or "scripts are no longer supported" in str(error):
            raise CaiError(
                f"{name} brings Python code of its own, which would have to run on this machine; it is never run.",
                "Take a model whose architecture transformers knows (its config.json then needs no auto_map), or a dataset of "
                "plain files (Parquet, JSONL).",
            ) from error
        chain = [error, error.__cause__, error.__context__]
        if any(isinstance(link, GatedRepoError) for link in chain):  # a subclass of RepositoryNotFoundError: first
            raise CaiError(
                f"{name} is gated: its licence must be accepted once.",
                f"Open https://huggingface.co/{name}, accept, and set HF_TOKEN to a token of that account. {OPEN_CHOICE}",
            ) from error
        if any(isinstance(link, RepositoryNotFoundError) for link in chain):
            raise CaiError(
                f"{name} is not on the Hub, or is private.", "Check the name; for a private one set HF_TOKEN."
            ) from error
        if not isinstance(error, (ValueError, RuntimeError)) or any(isinstance(link, HfHubHTTPError) for link in chain):
            missing = (
                "" if Path(locate(name)).exists() else f"There is no folder {name} here, and as a name on the Hub: "
            )
            raise CaiError(
                f"{missing}{name} could not be loaded: {str(error).splitlines()[0]}",
                "Check the name or path, and that this machine reaches the Hub.",
            ) from error
        raise


def _require_path(name: str) -> None:
    """
    Raises:
        CaiError: `name` can only be a path, and nothing lies there: the Hub would call it a malformed name.
    """
    path = Path(locate(name))
    if not _is_path(name) or path.exists():
        return
    if name.startswith(EMBEDDED):
        embedded = sorted(file.parent.name for file in Path(locate(f"{EMBEDDED}.")).glob("*/*config.json"))
        known = ", ".join(EMBEDDED + model for model in dict.fromkeys(embedded))
        raise CaiError(f"There is no embedded model {name}.", f"Take one of {known}.")
    missing = next(folder for folder in (*reversed(path.parents), path) if not folder.exists())
    raise CaiError(
        f"There is no folder {name}{'' if missing == path else f': its part {missing} is missing already'}.",
        f"Check the path; it is read from {Path.cwd()}. In Colab, mount the Drive first if it lies there. A model on the "
        "Hub is named by owner and name, such as google/gemma-2b-it.",
    )


def _is_path(name: str) -> bool:
    """A name on the Hub is NAME or OWNER/NAME, and begins with a letter, a digit or an underscore."""
    return name.startswith((EMBEDDED, ".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def transport_error() -> type[Exception]:
    """The connection error of the HTTP library that huggingface_hub uses: httpx, or httpx2 from its version 2 on."""
    from huggingface_hub import get_session

    library = type(get_session()).__module__.partition(".")[0]
    return importlib.import_module(library).TransportError
