"""The picture of a calibration: the larger the score difference, the more often should the scorer be right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_helpers.calibration.accuracy import Calibration
from cai_helpers.measures.intervals import Interval
from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, GREEN, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_calibration_plot(calibration: Calibration, path: Path) -> Path:
    return canvas.save(calibration_figure(calibration), path)


def calibration_figure(calibration: Calibration) -> Figure:
    """Accuracy by bin of |delta| with intervals, target, recommended threshold; beside it, accuracy by category."""
    names = ["all pairs", *calibration.categories] if len(calibration.categories) > 1 else ["all pairs"]
    figure, (left, right) = canvas.canvas(columns=2, width_ratios=(2.6, 1), height=4.4)
    _by_difference(left, calibration)
    canvas.finish(
        left,
        f"Is the scorer right? {calibration.pairs:,} gold pairs",
        "|score difference| (numbers in the picture: pairs)",
        "right (%)",
    )
    shares = [calibration.accuracy, *calibration.categories.values()][: len(names)]
    canvas.whiskers(right, range(len(names)), shares, BLUE)
    for place, share in enumerate(shares):
        canvas.note(right, f"{100 * share.value:.0f} % of {share.n:,}", (min(100 * share.value, 84), place), (0, 8))
    canvas.level(right, x=50, dashed=True)
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.6)
    right.set_xlim(-3, 104)
    canvas.finish(right, "By category", "right (%), 95 % interval", grid="x")
    return figure


def _by_difference(axes: Axes, calibration: Calibration) -> None:
    threshold, bins = calibration.min_delta, calibration.bins
    believed = [threshold is not None and deltas.low >= threshold for deltas in bins]
    for colour, wanted, label in ((BLUE, True, "believed"), (ORANGE, False, "not believed")):
        places = [place for place, good in enumerate(believed) if good is wanted]
        _points(axes, places, [bins[place].accuracy for place in places], colour, label)
    axes.set_xticks(range(len(bins)), [f"{deltas.low:.2f}–\n{deltas.high:.2f}" for deltas in bins])
    axes.set_ylim(0, 104)
    axes.set_xlim(-0.6, len(bins) - 0.4)
    axes.axhline(100 * calibration.target, color=GREEN, linewidth=1.2, label=f"target {100 * calibration.target:.0f} %")
    axes.axhline(50, color=INK, linewidth=0.8, linestyle="--", label="a coin")
    if any(believed) and not all(believed):
        place = believed.index(True) - 0.5
        axes.axvline(place, color=INK, linewidth=1.4, linestyle=":", label=f"min_delta {threshold:.2f}")
    canvas.legend_below(axes, columns=3, below=0.24)


def _points(axes: Axes, places: list[int], shares: list[Interval], colour: str, label: str) -> None:
    if not places:
        return
    values = [100 * share.value for share in shares]
    below = [100 * (share.value - share.low) for share in shares]
    above = [100 * (share.high - share.value) for share in shares]
    style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 6, "elinewidth": 2, "capsize": 3}
    axes.errorbar(places, values, yerr=[below, above], label=label, **style)
    for place, share in zip(places, shares, strict=True):
        canvas.note(axes, str(share.n), (place, 100 * share.low), (0, -13))
