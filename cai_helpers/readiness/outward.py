"""Where a run writes or sends to besides its workspace: the person says so, not a file that may be somebody else's."""

from __future__ import annotations

from cai_helpers.readiness.check import Check
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace


def outward(settings: Settings, workspace: Workspace) -> list[Check]:
    """A workspace is a folder that people hand on; what its settings.json says must not send away what is made in it."""
    train = settings.train
    values = {"train.copy_to": train.copy_to, "train.report_to": train.report_to}
    return [
        Check(
            name,
            False,
            f"only a settings file names {values[name]}, and the file may be somebody else's",
            f"If it is yours, repeat --set {name}={values[name]} in this command (in a notebook: settings = "
            f'colab.change(workspace, "{name}={values[name]}")); if not, --set {name}={_NOWHERE[name]}.',
        )
        for name in sorted(settings.by_file_alone)
    ]


_NOWHERE = {"train.copy_to": "null", "train.report_to": "none"}
