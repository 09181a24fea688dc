"""Is this machine ready? Each line is ok, or says what to do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, choose_dtype, free_disk, ram_bytes, this_machine
from cai_helpers.manifest import library_versions
from cai_helpers.models.hub import EMBEDDED, OPEN_CHOICE, OPEN_MODELS, from_hub, locate
from cai_helpers.models.language import load_chat_format
from cai_helpers.sections import USUAL_REWARD
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

_LEAST = {"torch": (2, 4), "transformers": (5, 15), "trl": (1, 15), "peft": (0, 20), "datasets": (4, 0)}
_DISK_NEEDED = 12 * GIB  # gemma-2b 4.7, reward model 1.7, checkpoints and adapters of a run
_GPU_NEEDED = 14 * GIB


class Check(NamedTuple):
    name: str
    ok: bool
    found: str
    todo: str = ""  # empty when ok

    def line(self) -> str:
        mark = "ok  " if self.ok else "TODO"
        return f"{mark}  {self.name}: {self.found}" + ("" if self.ok else f"\n      → {self.todo}")


def examine(settings: Settings, workspace: Workspace) -> list[Check]:
    """Python, libraries, accelerator, memory, disk, token, and access to each model of the settings."""
    embedded = settings.models.base.startswith(EMBEDDED)
    checks = [_python(), *_libraries(), _accelerator(settings, embedded), _memory(), _disk(workspace, embedded)]
    judge = settings.evaluate.scorer.model if settings.evaluate.scorer else None
    wanted = [settings.models.base, settings.models.adapter, settings.models.reward.model, judge]
    names = list(dict.fromkeys(name for name in wanted if name))
    remote = [name for name in names if not Path(locate(name)).exists()]
    if remote:
        checks.append(_token(remote))
    checks += [_access(name, name in remote) for name in names]
    return checks if settings.models.base in remote else [*checks, _chat_format(settings.models.base)]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), version, "Use Python 3.11 or newer.")


def _libraries() -> list[Check]:
    checks = []
    for name, version in library_versions().items():
        if version == "missing":
            checks.append(
                Check(
                    name,
                    False,
                    "missing",
                    'Install it: pip install -r requirements.txt (Colab: pip install --no-deps "trl==1.16.0").',
                )
            )
            continue
        least = _LEAST.get(name, (0,))
        recent = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit()) >= least
        checks.append(Check(name, recent, version, f"Version {'.'.join(map(str, least))} or newer is needed."))
    try:
        importlib.import_module("trl")
    except ImportError as error:
        checks.append(Check("trl", False, f"does not import: {error}", "Reinstall it, then restart the runtime."))
    return checks


def _accelerator(settings: Settings, embedded: bool) -> Check:
    machine = this_machine()
    precision = choose_dtype(settings.models.dtype, machine)
    if machine.device == "cpu":
        return Check(
            "GPU", embedded, f"none, {precision} on {machine.name}", "In Colab: Runtime → Change runtime type → T4 GPU."
        )
    found = f"{machine.gpus} × {machine.name}, {machine.memory / GIB:.1f} GiB, {precision}"
    return Check("GPU", embedded or machine.memory >= _GPU_NEEDED, found, "Gemma-2b needs a card of 16 GB.")


def _memory() -> Check:
    gib = ram_bytes() / GIB
    return Check("RAM", gib >= 7, f"{gib:.1f} GiB", "8 GB are needed to load the models.")


def _disk(workspace: Workspace, embedded: bool) -> Check:
    free = free_disk(workspace.root.absolute())
    needed = GIB if embedded else _DISK_NEEDED
    return Check(
        "disk",
        free >= needed,
        f"{free / GIB:.0f} GiB free",
        f"{needed / GIB:.0f} GiB are needed; free some, or give another --workspace.",
    )


def _token(remote: list[str]) -> Check:
    from huggingface_hub import get_token

    if get_token() is not None:
        return Check("Hub token", True, "set")
    if set(remote) <= {*OPEN_MODELS, USUAL_REWARD}:
        return Check("Hub token", True, "none, and these models need none")
    todo = "Set HF_TOKEN (Colab: the key icon on the left). Gemma is gated and needs one."
    return Check("Hub token", False, "none", f"{todo} {OPEN_CHOICE}")


def _chat_format(name: str) -> Check:
    try:
        chat_format = load_chat_format(name)
        chat_format.require_trainable()
    except CaiError as error:
        return Check("chat format", False, error.what, error.todo)
    return Check("chat format", True, chat_format.line())


def _access(name: str, remote: bool) -> Check:
    if not remote:
        return Check(name, True, "on this machine")
    if name.startswith(EMBEDDED):
        return Check(name, False, "missing", "The package was installed without its models: install it again.")
    from huggingface_hub import auth_check

    try:
        from_hub(lambda: auth_check(name), name)
    except CaiError as error:
        return Check(name, False, error.what, error.todo)
    return Check(name, True, "accessible")
