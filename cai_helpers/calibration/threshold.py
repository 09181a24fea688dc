"""From which score difference on is a label believed? curate.min_delta, where it is left to the calibration."""

from __future__ import annotations

from typing import NamedTuple

from cai_helpers.calibration.accuracy import load_calibration
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

NO_DIFFERENCE_TRUSTED = (
    "Take another scorer (models.reward, score.by) and try it with `cai calibrate`, calibrate on more gold pairs, or decide "
    "the pairs yourself in the inspector: what a person decided is kept. curate.min_delta=0 trains on such labels all the "
    "same."
)


class Threshold(NamedTuple):
    """The least |score difference| of a pair that trains."""

    value: float  # in units of the scorer; 0 where no difference is trusted, which `trusted` tells
    trusted: bool  # False: "auto", and the calibration trusts the scorer at no difference
    why: str  # in words, where it comes from
    warning: str = ""  # to be said aloud

    def line(self) -> str:
        return f"{self.value:.2f}: {self.why}" if self.trusted else f"none: {self.why}"


def threshold_of(settings: Settings, workspace: Workspace, from_elsewhere: bool = False) -> Threshold:
    """curate.min_delta as a number; "auto" is what the calibration of the scorer that labelled the pairs recommends.

    A scorer that was tried and is to be trusted at no difference has no number: its labels are not taken. One that was
    never tried gets 0, with a warning: nothing is known against it.

    from_elsewhere: the pairs are a file whose scorer nobody knows.
    """
    asked = settings.curate.min_delta
    if asked != "auto":
        return Threshold(asked, True, "as curate.min_delta says")
    scored = None if from_elsewhere else workspace.manifest("score")
    calibration = None if scored is None else load_calibration(workspace, scored.report["scorer"])
    if calibration is None:
        return _not_calibrated(from_elsewhere)
    if calibration.min_delta is None:
        goal = f"{100 * calibration.target:.0f} %"
        return Threshold(
            0.0,
            False,
            f"auto, but of {calibration.pairs} gold pairs ({calibration.verdict}) the scorer is right on {goal} and better "
            f"than a coin at no difference. {NO_DIFFERENCE_TRUSTED}",
        )
    right = "" if calibration.above is None else f", right on {calibration.above.percent()} of {calibration.above.n}"
    return Threshold(calibration.min_delta, True, f"auto: from there on labels are believed{right} gold pairs")


def _not_calibrated(from_elsewhere: bool) -> Threshold:
    whose = "the scorer of a file from elsewhere is unknown" if from_elsewhere else "the scorer was not calibrated"
    remedy = "" if from_elsewhere else " Run `cai calibrate`, then `cai curate` again."
    why = f"auto, but {whose}: every difference counts"
    return Threshold(0.0, True, why, f"WARNING: curate.min_delta={why}, however small. Labels may be noise.{remedy}")
