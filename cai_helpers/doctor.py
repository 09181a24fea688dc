"""Is this machine ready? Each line is ok, or says what to do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from cai_helpers.machine.hardware import GIB, ram_bytes, this_machine
from cai_helpers.models.hub import EMBEDDED
from cai_helpers.models.open_models import OPEN_CHOICE, OPEN_MODELS
from cai_helpers.planning.card import CARDS
from cai_helpers.planning.plan import plan_run
from cai_helpers.readiness.check import Check, tried
from cai_helpers.readiness.needs import needed
from cai_helpers.readiness.versions import versions
from cai_helpers.sections import USUAL_REWARD
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace


def examine(settings: Settings, workspace: Workspace) -> list[Check]:
    """Python, libraries, memory and token, and all that generating and what follows it need: see readiness.needs."""
    judge = [settings.evaluate.scorer.model] if settings.evaluate.scorer else []
    rewards = [source.model for source in settings.models.rewards]
    names = [settings.models.base, settings.models.adapter, *rewards, *judge]
    remote = [name for name in names if name and not name.startswith(EMBEDDED) and not Path(name).exists()]
    token = [_token(remote)] if remote else []
    return [
        _python(),
        *versions(),
        *_trl_imports(),
        _memory(),
        *token,
        *needed(settings, workspace, "generate"),
        *_plan(settings, workspace),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), version, "Use Python 3.11 or newer.")


def _trl_imports() -> list[Check]:
    try:
        importlib.import_module("trl")
    except ImportError as error:
        return [Check("trl", False, f"does not import: {error}", "Reinstall it, then restart the runtime.")]
    return []


def _memory() -> Check:
    gib = ram_bytes() / GIB
    return Check("RAM", gib >= 7, f"{gib:.1f} GiB", "8 GB are needed to load the models.")


def _token(remote: list[str]) -> Check:
    from huggingface_hub import get_token

    if get_token() is not None:
        return Check("Hub token", True, "set")
    if set(remote) <= {*OPEN_MODELS, USUAL_REWARD}:
        return Check("Hub token", True, "none, and these models need none")
    todo = "Set HF_TOKEN (Colab: the key icon on the left). Gemma is gated and needs one."
    return Check("Hub token", False, "none", f"{todo} {OPEN_CHOICE}")


def _plan(settings: Settings, workspace: Workspace) -> list[Check]:
    """How long the run will take, where a data sheet tells: on a card that is known, or that the preset is sized for."""
    machine = this_machine()
    name = settings.preset if machine.device == "cpu" else machine.name
    known = next((card for card in CARDS if card in name.lower()), None)
    if known is None:
        return []
    return [
        tried(
            "plan",
            lambda: f"{plan_run(settings, workspace, known).verdict()} on {known.upper()} (`cai plan` says more)",
        )
    ]
