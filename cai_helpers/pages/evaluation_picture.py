"""Base model, Stage 2 and Stage 3: win rates and refusals, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.evaluation.figures import BASE, OF_BASE, POLICY_NAME, STAGE2, STAGE3, Comparison, readable
from cai_helpers.measures.intervals import Interval
from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, GREY, ORANGE, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save_evaluation_plot(overall: Comparison, by_category: dict[str, Comparison], path: Path) -> Path:
    return canvas.save(evaluation(overall, by_category), path)


def evaluation(overall: Comparison, by_category: dict[str, Comparison]) -> Figure:
    """Who wins against Stage 2, and how often each model refuses, each with its interval; one below the other, for narrow pages."""
    height = 2.4 + 0.75 * (2 * len(by_category) + 1)
    figure, (above, below) = canvas.canvas(rows=2, width=6.4, height=height)
    groups = {"all": overall} | {readable(name): comparison for name, comparison in by_category.items()}
    wins = {STAGE3: [group.win_rate for group in groups.values()]}
    if all(OF_BASE in group.against for group in groups.values()):
        wins[BASE] = [group.against[OF_BASE].win_rate for group in groups.values()]
    _shares(above, groups, wins)
    canvas.level(above, x=50, dashed=True)
    canvas.finish(above, "Who wins against Stage 2, by the judge", "win rate, 95 % interval (%)", grid="x")
    kinds = {name: group for name, group in groups.items() if name != "all"}
    _shares(below, kinds, _refusals(list(kinds.values())))
    canvas.finish(below, "Refusals", "share of answers that refuse, 95 % interval (%)", grid="x")
    return figure


def _refusals(groups: Sequence[Comparison]) -> dict[str, list[Interval]]:
    shares = {STAGE2: [group.refusals.before for group in groups], STAGE3: [group.refusals.after for group in groups]}
    if all(BASE in group.policies for group in groups):
        shares[BASE] = [group.policies[BASE].refusals for group in groups]
    return shares


_LOOK = {BASE: (GREY, "s"), STAGE2: (ORANGE, "o"), STAGE3: (BLUE, "D")}


def _shares(axes: Axes, groups: dict[str, Comparison], shares: dict[str, list[Interval]]) -> None:
    """One row a group, and in it one interval a model."""
    shown = [policy for policy in _LOOK if policy in shares]
    for number, policy in enumerate(shown):
        colour, marker = _LOOK[policy]
        places = [place + 0.24 * (number - (len(shown) - 1) / 2) for place in range(len(groups))]
        canvas.whiskers(axes, places, shares[policy], colour, marker, POLICY_NAME[policy])
        for place, share in zip(places, shares[policy], strict=True):
            canvas.note(axes, percent(share.value), (100 * share.high, place), (12, -3))
    axes.set_yticks(range(len(groups)), [f"{name}\n({group.prompts} prompts)" for name, group in groups.items()])
    axes.set_ylim(len(groups) - 0.5, -0.6)
    axes.set_xlim(-4, 112)
    canvas.legend_below(axes, columns=3, below=0.25)
