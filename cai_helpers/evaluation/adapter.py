"""Is the adapter on disk the one that training left, and the one that was evaluated? A verdict holds for its weights alone."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.contents import file_hash
from cai_helpers.workspace import Workspace

WEIGHTS = "adapter_model.safetensors"


def weights_hash(adapter: Path) -> str | None:
    """sha256 of the adapter's tensors as they lie on disk; None where there are none."""
    return file_hash(adapter / WEIGHTS)


def exchanged(workspace: Workspace) -> str:
    """A sentence where the adapter is not what a finished training left in this workspace; "" where it is, or none was trained."""
    manifest = workspace.manifest("train")
    if manifest is None or not workspace.adapter.exists():
        return ""
    if file_hash(workspace.adapter) in manifest.outputs.values():
        return ""
    return (
        f"EXCHANGED: {workspace.adapter.name} is not what training left here on {manifest.finished}; it was replaced or edited "
        "since. What is said of the training is not said of it. `cai train --fresh` trains anew; a copy of the trained one can "
        "be put back"
    )


def evaluated_another(workspace: Workspace) -> str:
    """A sentence where the verdict on disk is of other weights than the adapter has now; "" where it holds, or there is none."""
    manifest = workspace.manifest("evaluate")
    if manifest is None or manifest.fingerprint.get("input adapter") == file_hash(workspace.adapter):
        return ""
    return "The verdict is of another adapter than the one that lies here now, which was exchanged since: run `cai evaluate`"
