"""The machine of a run: a GPU where the preset is sized for one, and room on the disk."""

from __future__ import annotations

from cai_helpers.machine.hardware import GIB, choose_dtype, free_disk, this_machine
from cai_helpers.models.hub import EMBEDDED
from cai_helpers.readiness.check import Check
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

SIZED_FOR_GPU = ("t4", "a100")  # presets
_GEMMA = 14 * GIB  # of GPU memory
# Checkpoints of a LoRA on gemma-2b with their optimizer states (0.3 GiB each), the adapter, the supervised phase, the zip.
_RUN = 2 * GIB
_EMBEDDED_RUN = GIB // 4


def gpu(settings: Settings, workspace: Workspace) -> list[Check]:
    """On a CPU, generating with a model of usual size takes days: that is not begun unless `cpu` is set."""
    machine = this_machine()
    precision = choose_dtype(settings.models.dtype, machine)
    embedded = settings.models.base.startswith(EMBEDDED)
    if machine.device != "cpu":
        small = "" if embedded or machine.memory >= _GEMMA else "; WARNING: Gemma-2b needs a card of 16 GB"
        found = f"{machine.gpus} × {machine.name}, {machine.memory / GIB:.1f} GiB, {precision}{small}"
        return [Check("GPU", True, found)]
    on = f"{precision} on {machine.name}"
    if embedded or settings.cpu or settings.preset not in SIZED_FOR_GPU:
        return [Check("GPU", True, f"none: {on}")]
    return [
        Check(
            "GPU",
            False,
            f"none ({on}), and the preset {settings.preset} is sized for one: it would take days here",
            "In Colab choose Runtime → Change runtime type → T4 GPU, and run the notebook again from the top. Without a GPU, "
            '--preset smoke runs everything on the embedded models in a minute (in notebook 00: preset = "smoke"). If your '
            'model is small enough for a CPU, say so with --cpu (in a notebook: colab.change(workspace, "cpu=true")).',
        )
    ]


def disk(settings: Settings, workspace: Workspace) -> list[Check]:
    """What a run writes to its workspace. The room for models that are to be fetched is the download's to ask for."""
    free = free_disk(workspace.root.absolute())
    needed = _EMBEDDED_RUN if settings.models.base.startswith(EMBEDDED) else _RUN
    where = workspace.root.absolute()
    return [
        Check(
            "disk",
            free >= needed,
            f"{free / GIB:.1f} GiB free at {where}",
            f"{needed / GIB:g} GiB are needed for checkpoints and results: free some, or give another --workspace.",
        )
    ]
