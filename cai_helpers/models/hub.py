"""Where models and datasets come from: the Hub, a folder, the package itself. What goes wrong is said in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple, TypeVar

from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError
from cai_helpers.models.hub_failures import asked_again, said

EMBEDDED = "embedded:"
CONFIGS = ("config.json", "adapter_config.json")  # one of them is in the folder of a model or an adapter

Result = TypeVar("Result")


def locate(name: str) -> str:
    """A Hub id or folder as it is, with ~ written out; "embedded:chat" as the folder inside the package.

    OWNER/NAME@REVISION, once it was fetched, is its folder in the Hub's cache: what loads a model knows no such names.
    """
    if (pin := pinned(name)) is not None:
        folder = next(filter(None, (_cached(*pin, file) for file in CONFIGS)), None)
        return name if folder is None else str(folder)
    if not name.startswith(EMBEDDED):
        return str(Path(name).expanduser()) if name.startswith("~") else name
    return str(resources.files("cai_helpers") / "assets" / "tiny" / name.removeprefix(EMBEDDED))


class HubName(NamedTuple):
    repository: str  # OWNER/NAME
    revision: str | None  # a commit, a tag or a branch


def hub_name(name: str) -> HubName | None:
    """OWNER/NAME or OWNER/NAME@REVISION, taken apart; None: it is something else, such as a path."""
    repository, _, revision = name.partition("@")
    if _is_path(repository) or repository.count("/") != 1 or (revision and Path(name).exists()):
        return None
    return HubName(repository, revision or None)


def pinned(name: str) -> HubName | None:
    """What `hub_name` finds, if it has a revision."""
    found = hub_name(name)
    return found if found is not None and found.revision else None


def identity(name: str | None) -> str | None:
    """What `name` stands for: a Hub id as it is; a folder by its last name and the hash of its files, so that retraining
    shows and moving does not."""
    if name is None or pinned(name) or not (folder := Path(locate(name))).is_dir():
        return name
    digest = file_hash(folder)
    assert digest is not None  # it is a folder
    return f"{name if name.startswith(EMBEDDED) else folder.resolve().name} ({digest[:12]})"


def local_folder(name: str, file: str) -> Path | None:
    """The folder of this machine that holds `file` of a model: its own, or the Hub's cache; None if there is none."""
    if (pin := pinned(name)) is not None:
        return _cached(*pin, file)
    folder = Path(locate(name))
    if folder.is_dir():
        return folder if (folder / file).is_file() else None
    return None if hub_name(name) is None else _cached(name, None, file)


def _cached(repository: str, revision: str | None, file: str) -> Path | None:
    """The snapshot in the Hub's cache that holds `file`."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def from_hub(load: Callable[[], Result], name: str) -> Result:
    """`asked`, for what loads a model: one of a pinned revision that is not here yet is fetched before."""
    if (pin := pinned(name)) is not None and locate(name) == name:
        asked(lambda: _fetch(*pin), name)
    return asked(load, name)


def asked(load: Callable[[], Result], name: str) -> Result:
    """Call `load`; turn what the Hub and the disk answer into an error that says what to do.

    Memory that is full is let through: who asked for the model knows what to make smaller.
    """
    _require_path(name)
    try:
        with warnings.catch_warnings():
            # transformers warns of a name that peft still uses; the user can do nothing about it
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # whole_weights refuses them
            return asked_again(load)
    except (CaiError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or _is_of_the_system(error):
            raise
        raise said(error, name, Path(locate(name))) from error


def _fetch(repository: str, revision: str | None) -> None:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja"]
    snapshot_download(repository, revision=revision, allow_patterns=patterns)


def _is_of_the_system(error: Exception) -> bool:
    """No space, no rights: what the disk says, not what transformers says in an OSError of its own."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError)


def _require_path(name: str) -> None:
    """
    Raises:
        CaiError: `name` can only be a path, and nothing lies there: the Hub would call it a malformed name.
    """
    if pinned(name) is not None:
        return
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
