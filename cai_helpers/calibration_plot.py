"""The picture of a calibration: the larger the score difference, the more often should the scorer be right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers import canvas
from cai_helpers.calibration import Calibration
from cai_helpers.canvas import BLUE, GREEN, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_calibration_plot(calibration: Calibration, folder: Path) -> Path:
    return canvas.save(calibration_figure(calibration), folder / "calibration.png")


def calibration_figure(calibration: Calibration) -> Figure:
    """Accuracy by bin of |delta| with intervals, target, recommended threshold; beside it, accuracy by category."""
    names = ["all pairs", *calibration.categories] if len(calibration.categories) > 1 else ["all pairs"]
    figure, (left, right) = canvas.canvas(columns=2, width_ratios=(2.6, 1), height=4.4)
    _by_difference(left, calibration)
    canvas.finish(left, f"Is the scorer right? {calibration.pairs:,} gold pairs", "|score difference|", "right (%)")
    shares = [calibration.accuracy, *calibration.categories.values()][: len(names)]
    canvas.whiskers(right, range(len(names)), shares, BLUE)
    for place, share in enumerate(shares):
        canvas.note(right, f"{100 * share.value:.0f} % of {share.n:,}", (100 * share.value, place), (0, 8))
    canvas.level(right, x=50, dashed=True)
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.6)
    right.set_xlim(0, 104)
    canvas.finish(right, "By category", "right (%), 95 % interval", grid="x")
    return figure


def _by_difference(axes: Axes, one: Calibration) -> None:
    places = range(len(one.bins))
    for place, found in enumerate(one.bins):
        share = found.accuracy
        spread = [[100 * (share.value - share.low)], [100 * (share.high - share.value)]]
        believed = (one.min_delta is not None and found.low >= one.min_delta) or one.min_delta == 0
        colour = BLUE if believed else ORANGE
        axes.errorbar(
            place, 100 * share.value, yerr=spread, fmt="o", color=colour, markersize=6, elinewidth=2, capsize=3
        )
        canvas.note(axes, f"{share.n}", (place, 100 * share.low), (0, -13))
    axes.set_xticks(places, [f"{found.low:.2f}–\n{found.high:.2f}" for found in one.bins])
    axes.set_ylim(0, 104)
    axes.set_xlim(-0.6, len(one.bins) - 0.4)
    axes.axhline(50, color=INK, linewidth=0.8, linestyle="--", label="a coin")
    axes.axhline(100 * one.target, color=GREEN, linewidth=1.2, label=f"target {100 * one.target:.0f} %")
    _threshold(axes, one)
    axes.plot([], [], "o", color=BLUE, label="believed (number: pairs)")
    axes.plot([], [], "o", color=ORANGE, label="not believed")
    canvas.legend_below(axes, columns=3, below=0.24)


def _threshold(axes: Axes, one: Calibration) -> None:
    if one.min_delta is None:
        axes.plot([], [], linestyle="none", label="no min_delta is enough")
        return
    first = next((place for place, found in enumerate(one.bins) if found.low >= one.min_delta > 0), 0)
    axes.axvline(first - 0.5, color=INK, linewidth=1.4, linestyle=":", label=f"min_delta {one.min_delta:.2f}")
