"""What changed from Stage 2 to Stage 3: refusals and win rates, each with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.evaluation.comparison import READABLE_CATEGORY, Change, Comparison
from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, GREY, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_evaluation_plot(overall: Comparison, by_category: dict[str, Comparison], path: Path) -> Path:
    return canvas.save(evaluation(overall, by_category), path)


def evaluation(overall: Comparison, by_category: dict[str, Comparison]) -> Figure:
    """Refusals before and after, and how often Stage 3 wins, each with its interval."""
    figure, (left, right) = canvas.canvas(columns=2, height=2 + 0.7 * (len(by_category) + 1))
    names = [
        f"{READABLE_CATEGORY.get(name, name)}\n({comparison.prompts} prompts)"
        for name, comparison in by_category.items()
    ]
    _refusal_rates(left, names, [comparison.refusals for comparison in by_category.values()])
    groups = [overall, *by_category.values()]
    canvas.whiskers(right, range(len(groups)), [group.win_rate for group in groups], BLUE, "D")
    for place, group in enumerate(groups):
        canvas.note(right, percent(group.win_rate.value), (100 * group.win_rate.value, place), (0, 7))
    canvas.level(right, x=50, dashed=True)
    _per_cent_rows(right, [f"all\n({overall.prompts} prompts)", *names])
    canvas.finish(right, "Stage 3 wins by the reward model", "win rate against Stage 2, 95 % interval (%)", grid="x")
    return figure


def _refusal_rates(axes: Axes, names: list[str], changes: list[Change]) -> None:
    sides = (
        ("Stage 2", [change.before for change in changes], -0.13, GREY, "o", 7),
        ("Stage 3", [change.after for change in changes], 0.13, BLUE, "D", -14),
    )
    for label, rates, shift, colour, marker, above in sides:
        places = [place + shift for place in range(len(names))]
        canvas.whiskers(axes, places, rates, colour, marker, label)
        for place, rate in zip(places, rates, strict=True):
            canvas.note(axes, percent(rate.value), (100 * rate.value, place), (0, above))
    _per_cent_rows(axes, names)
    canvas.legend_below(axes, columns=2, below=0.2)
    canvas.finish(axes, "Refusals", "share of answers that refuse, 95 % interval (%)", grid="x")


def _per_cent_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlim(-4, 104)
