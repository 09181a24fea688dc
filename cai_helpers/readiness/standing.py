"""You are here: what a workspace holds, what is half-way, and what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cai_helpers.readiness.check import Check
from cai_helpers.workspace import NOTEBOOK_OF_STAGE, Workspace

_STAGES = ("generate", "score", "curate", "analyze", "train", "evaluate", "export")
_SOON = {"curate", "analyze", "export"}  # the plan counts them together


def here(workspace: Workspace, minutes: Mapping[str, float] | None = None) -> str:
    """One line. minutes: by stage, as the plan models them."""
    done = [stage for stage in _STAGES if workspace.manifest_of(stage).exists()]
    ahead = [stage for stage in _STAGES if stage not in done]
    begun = [text for stage in ahead if (text := _half_way(workspace, stage))]
    holds = f"{', '.join(done)} done" if done else "nothing is done yet"
    parts = [holds, *begun]
    if not ahead:
        return f"{holds}: all of the run; notebook {NOTEBOOK_OF_STAGE['export']} has the zip"
    following = f"next: {ahead[0]} (notebook {NOTEBOOK_OF_STAGE[ahead[0]]})"
    if minutes is None:
        return "; ".join([*parts, following])
    needed = minutes.get(ahead[0])
    left = sum(value for stage, value in minutes.items() if stage in ahead)
    took = "less than a minute" if ahead[0] in _SOON or needed is None else f"about {needed:.0f} minutes"
    return "; ".join([*parts, f"{following}, {took}; about {left:.0f} minutes to the end, modelled"])


def standing(workspace: Workspace, minutes: Mapping[str, float] | None = None) -> list[Check]:
    """Where the workspace is, and the line."""
    return [
        Check("workspace", True, str(workspace.root.absolute())),
        Check("you are here", True, here(workspace, minutes)),
    ]


def _half_way(workspace: Workspace, stage: str) -> str:
    if stage == "generate" and workspace.traces.exists():
        return f"generate half-way: {_rows(workspace.traces)} of {_rows(workspace.prompts)} pairs"
    if stage == "train":
        steps = [path.name.removeprefix("checkpoint-") for path in workspace.checkpoints.glob("checkpoint-*")]
        newest = max((int(step) for step in steps if step.isdigit()), default=None)
        return "" if newest is None else f"train half-way: step {newest}"
    if stage == "evaluate" and workspace.answers.exists():
        return f"evaluate half-way: {_rows(workspace.answers)} answers"
    return ""


def _rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
