"""The model that a run starts from: base and Stage-2 adapter are there, fit together, and can be trained on."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import EMBEDDED, asked, hub_name, identity, local_folder, locate, pinned
from cai_helpers.models.language import load_chat_format
from cai_helpers.readiness.adapter_fit import CONFIG_FILE, adapter_fit
from cai_helpers.readiness.check import Check, tried
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

_KNOWN: dict[
    tuple[str | None, str | None], list[Check]
] = {}  # by content; of what was ok, over the life of the process


def policy(settings: Settings, workspace: Workspace) -> list[Check]:
    """Base, chat format and adapter. No weight of the base is read."""
    models = settings.models
    key = identity(models.base), identity(models.adapter)
    if key not in _KNOWN:
        checks = _tried(models.base, models.adapter)
        fetched = models.adapter is None or local_folder(models.adapter, CONFIG_FILE) is not None
        if not fetched or not all(check.ok for check in checks):
            return checks
        _KNOWN[key] = checks
    return _KNOWN[key]


def _tried(base: str, adapter: str | None) -> list[Check]:
    checks = [access("base model", base, "config.json")]
    if checks[0].ok:
        checks.append(tried("chat format", lambda: _chat_format(base)))
    if adapter is None:
        return checks
    there = access("adapter", adapter, CONFIG_FILE)
    if there.ok and checks[0].ok and local_folder(adapter, CONFIG_FILE) is None:
        there = tried("adapter", lambda: _fetched(adapter))  # it is small: compared before anything long
    folder = local_folder(adapter, CONFIG_FILE)
    if not (there.ok and checks[0].ok) or folder is None:  # what is still to be fetched is compared afterwards
        return [*checks, there]
    return [*checks, tried("adapter", lambda: adapter_fit(base, adapter, folder))]


def _fetched(adapter: str) -> str:
    from huggingface_hub import snapshot_download

    repository, revision = hub_name(adapter) or (adapter, None)
    asked(lambda: snapshot_download(repository, revision=revision, allow_patterns=["adapter_*"]), adapter)
    if local_folder(adapter, CONFIG_FILE) is None:
        raise CaiError(f"{adapter} on the Hub has no {CONFIG_FILE}: it is no adapter.", "Name your Stage-2 LoRA.")
    return f"{adapter}, fetched"


def access(role: str, name: str, file: str) -> Check:
    """Whether a model is on this machine, or may be fetched. file: one that its folder must have."""
    if local_folder(name, file) is not None:
        return Check(role, True, f"{name}, on this machine")
    if pinned(name) is not None:
        return tried(role, lambda: _on_hub(name))
    if Path(locate(name)).is_dir():
        return Check(role, False, f"The folder {name} has no {file}.", "Copy it again, or check the path.")
    if name.startswith(EMBEDDED):
        return Check(
            role, False, f"{name} is missing.", "The package was installed without its models: install it again."
        )
    if name.startswith((".", "/", "~", "drive/", "MyDrive/", "My Drive/")) or name.count("/") != 1:
        return Check(
            role,
            False,
            f"There is no folder {locate(name)}.",
            "Check the path, or give a Hub id of the form owner/name.",
        )
    return tried(role, lambda: _on_hub(name))


def _on_hub(name: str) -> str:
    from huggingface_hub import auth_check, is_offline_mode

    if is_offline_mode():
        raise CaiError(
            f"{name} is not on this machine, and HF_HUB_OFFLINE is set.",
            "Unset HF_HUB_OFFLINE and restart, or give a folder that is here.",
        )
    repository, _ = hub_name(name) or (name, None)
    asked(lambda: auth_check(repository), name)
    return f"{name}, accessible on the Hub"


def _chat_format(base: str) -> str:
    chat_format = load_chat_format(base)
    chat_format.require_trainable()
    chat_format.require_closed()
    return chat_format.line()
