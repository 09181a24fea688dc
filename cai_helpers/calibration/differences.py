"""Are labels right at the differences that a bake-off's samples have? And what does the bake-off then recommend?"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter

from pydantic import ValidationError

from cai_helpers.calibration.accuracy import Bin, Calibration, load_calibration
from cai_helpers.critique.protocol_choice import Choice, Entry, choose_protocol
from cai_helpers.critique.sampled_entry import Labels, SampledEntry
from cai_helpers.errors import CaiError
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.store import read_json
from cai_helpers.workspace import Workspace


def labels_at(calibration: Calibration, deltas: list[float]) -> Labels:
    """How often labels are right for pairs that differ by `deltas`, of those that reach the recommended min_delta.

    Accuracy from min_delta on is one figure of all gold pairs above it, most of which may differ far more than two samples
    of one model. So the accuracy of each bin of the calibration counts by how many of the deltas fall into it.
    """
    least = calibration.min_delta
    if least is None:
        return Labels(min_delta=None, above=0, right=None)
    counted = [delta for delta in deltas if delta >= least and delta > 0]
    return Labels(min_delta=least, above=len(counted), right=_weighted(calibration.bins, counted))


def _weighted(bins: list[Bin], deltas: list[float]) -> Interval | None:
    """Mean accuracy of the bins into which the deltas fall, with Wilson's interval at its effective number of gold pairs.

    The variance of a post-stratified share is Σ w² p (1 − p) / n (Cochran 1977, Sampling Techniques, section 5A.9); the
    effective number is that of a plain share with the same variance. In the variance each p has a success and a failure
    added, so that a bin without a mistake does not count as certain. The weights are taken as they are: of 48 prompts
    they are uncertain too, so the interval is a little too narrow.
    """
    if not deltas:
        return None
    lows = [one.low for one in bins]
    places = Counter(max(0, bisect_right(lows, delta) - 1) for delta in deltas)
    weighted = [(bins[place].accuracy, count / len(deltas)) for place, count in places.items()]
    share = sum(weight * accuracy.value for accuracy, weight in weighted)
    careful = [
        ((accuracy.value * accuracy.n + 1) / (accuracy.n + 2), accuracy.n, weight) for accuracy, weight in weighted
    ]
    variance = sum(weight**2 * p * (1 - p) / n for p, n, weight in careful)
    mean = sum(weight * p for p, _, weight in careful)
    pairs = sum(n for _, n, _ in careful)
    effective = min(pairs, max(1, math.floor(mean * (1 - mean) / variance + 1e-9)))
    return proportion(share * effective, effective)


def with_labels(entry: SampledEntry, calibration: Calibration | None) -> SampledEntry:
    """The entry as this calibration sees it."""
    labels = None if calibration is None else labels_at(calibration, entry.deltas)
    return entry.model_copy(update={"labels": labels})


def read_choice(workspace: Workspace) -> Choice:
    """What the workspace's bake-off recommends, judged now: an older one may name a protocol that never won, and the
    scorer may have been calibrated after it."""
    stored = read_json(workspace.bakeoff, "Delete that file, or run `cai bakeoff` again.")
    try:
        scorer = stored["scorer"]
        entries = [Entry.model_validate(row) for row in stored["entries"]]
        sampled = [SampledEntry.model_validate(row) for row in stored.get("samples", [])]
    except (KeyError, TypeError, ValidationError) as error:
        raise CaiError(
            f"{workspace.bakeoff} is not of the form that this version of cai-helpers writes.",
            "Run `cai bakeoff` again with the same --workspace, or name a protocol (generate.protocol=single/short).",
        ) from error
    calibration = load_calibration(workspace, scorer)
    return choose_protocol(entries, [with_labels(entry, calibration) for entry in sampled])
