"""Is this machine ready? Each line is ok, or says what to do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, ram_bytes, this_machine
from cai_helpers.models.hub import EMBEDDED
from cai_helpers.models.open_models import OPEN_CHOICE
from cai_helpers.planning.card import CARDS
from cai_helpers.planning.plan import plan_run
from cai_helpers.readiness.check import Check
from cai_helpers.readiness.needs import needed
from cai_helpers.readiness.standing import standing
from cai_helpers.readiness.versions import versions
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace


def examine(settings: Settings, workspace: Workspace) -> list[Check]:
    """Python, libraries, memory and token, and all that generating and what follows it need: see readiness.needs."""
    judge = [settings.evaluate.scorer.model] if settings.evaluate.scorer else []
    rewards = [source.model for source in settings.models.rewards]
    names = [settings.models.base, settings.models.adapter, *rewards, *judge]
    remote = [name for name in names if name and not name.startswith(EMBEDDED) and not Path(name).exists()]
    ready = needed(settings, workspace, "generate")
    token = [_token(ready)] if remote else []
    plan, minutes = _plan(settings, workspace)
    return [_python(), *versions(), *_trl_imports(), _memory(), *token, *ready, *plan, *standing(workspace, minutes)]


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


def _token(ready: list[Check]) -> Check:
    """A token is asked for only by what refuses to be read without one."""
    from huggingface_hub import get_token

    closed = [check for check in ready if not check.ok and any(word in check.found for word in ("gated", "private"))]
    if get_token() is not None:
        return Check("Hub token", True, "set")
    if not closed:
        return Check("Hub token", True, "none, and nothing here needs one")
    todo = "Set HF_TOKEN (Colab: the key icon on the left)."
    return Check("Hub token", False, f"none, and {closed[0].name} needs one", f"{todo} {OPEN_CHOICE}")


def _plan(settings: Settings, workspace: Workspace) -> tuple[list[Check], dict[str, float] | None]:
    """How long the run will take, and each stage in minutes, where a data sheet tells: on a card that is known, or that the
    preset is sized for."""
    machine = this_machine()
    name = settings.preset if machine.device == "cpu" else machine.name
    known = next((card for card in CARDS if card in name.lower()), None)
    if known is None:
        return [], None
    try:
        plan = plan_run(settings, workspace, known)
    except CaiError as error:
        return [Check("plan", False, error.what, error.todo)], None
    return [Check("plan", True, f"{plan.verdict()} on {known.upper()} (`cai plan` says more)")], plan.minutes
