"""What happened to the pairs: where they went, by how much revisions win, whether length, principles or refusals explain it."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cai_helpers.analysis.statistics import Statistics, Transitions
from cai_helpers.evaluation.figures import READABLE_CATEGORY
from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, GREEN, GREY, INK, ORANGE, RED, percent
from cai_helpers.schema import TWO_SIDED, SideNames

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS = 4000  # drawn in a scatter plot; more of them make a blot
_BARS = 20  # principles drawn
_BINS = 40
_NO_PAIRS = "no row has two texts and two scores"
_READABLE = {
    "kept": "draft kept by the critic",
    "chosen_cut_off": "winner cut off",
    "sampled": "two usable samples",
    "untrusted": "labels not trusted",
    "meta_commentary": "meta-commentary",
    "unknown": "not told by the file",
    "overruled": "dropped by a person",
    "tie": "score difference too small",
    "length_ratio": "lengths too unequal",
    "balance": "refusals beyond the balance",
    "near_duplicate": "nearly the same prompt",
}


def save_pair_plots(
    frame: pd.DataFrame, statistics: Statistics, curation: dict | None, folder: Path
) -> dict[str, Path]:
    """Draw every picture of a file of pairs into `folder`; name → path.

    curation: what the curate stage counted, if it has run on this file.
    """
    figures = {
        "funnel": funnel(statistics, curation),
        "delta_by_outcome": delta_by_outcome(frame, statistics),
        "length_against_delta": length_against_delta(frame, statistics),
        # of samples nobody was shown a principle, and the best one always wins
        **({} if statistics.sampled else {"principles": principles(statistics)}),
        "transitions": transitions(statistics),
    }
    return {name: canvas.save(figure, folder / f"{name}.png") for name, figure in figures.items()}


def funnel(statistics: Statistics, curation: dict | None) -> Figure:
    """What was generated, what each filter took away, what is left."""
    if curation is not None:
        total, steps = curation["generated"], curation["dropped"]
        last = f"kept for DPO\n({curation['train']} train, {curation['eval']} held out)"
    else:
        total, steps = statistics.rows, _lost(statistics)
        last = "two texts to compare"
    names = ["pairs generated", *(_readable(name) for name in steps), last]
    left = total - np.cumsum([0, *steps.values()])  # what remains after each step
    counts = [total, *steps.values(), left[-1]]
    starts = [0, *left[1:], 0]
    figure, (axes,) = canvas.canvas(height=1.6 + 0.36 * len(names))
    canvas.bars(axes, names, counts, [BLUE, *[ORANGE] * len(steps), GREEN], left=starts)
    for place, (count, start) in enumerate(zip(counts, starts, strict=True)):
        axes.text(start + count + total * 0.01, place, f"{count:,}  ({_share(count, total)})", va="center", color=INK)
    axes.set_xlim(0, total * 1.18)
    canvas.finish(axes, f"Where {total:,} pairs went", "pairs", grid="x")
    return figure


def delta_by_outcome(frame: pd.DataFrame, statistics: Statistics) -> Figure:
    """By how much revisions win or lose, beside how many rows have none."""
    figure, (left, right) = canvas.canvas(columns=2, width_ratios=(3, 1.3))
    deltas = frame.loc[frame["compared"], "delta"]
    if len(deltas):
        _delta_histogram(left, deltas, statistics)
    else:
        canvas.nothing(left, _NO_PAIRS)
    heading = f"Reward of {len(deltas):,} {statistics.sides.revised}s against their {statistics.sides.base}s"
    canvas.finish(left, heading, _delta_name(statistics), "pairs")
    names, counts = list(statistics.outcomes), list(statistics.outcomes.values())
    colours = {"revised": BLUE, "sampled": BLUE, "kept": GREEN, "unknown": GREY}
    canvas.bars(right, [_readable(name) for name in names], counts, [colours.get(name, ORANGE) for name in names])
    for place, count in enumerate(counts):
        right.text(count + max(counts) * 0.03, place, f"{count:,}", va="center", color=INK)
    right.set_xlim(0, max(counts) * 1.35)
    canvas.finish(right, "Outcomes", "pairs", grid="x")
    return figure


def length_against_delta(frame: pd.DataFrame, statistics: Statistics) -> Figure:
    """Does the reward follow length? The line is the median of tenths."""
    figure, (axes,) = canvas.canvas(height=5)
    pairs = frame[frame["compared"]]
    if len(pairs) > _DOTS:
        pairs = pairs.sample(_DOTS, random_state=0)
    if len(pairs):
        _length_dots(axes, pairs)
    else:
        canvas.nothing(axes, _NO_PAIRS)
    bias = statistics.length_bias_like_for_like.longer_wins
    told = "too few pairs to say" if bias is None else f"the longer side wins {bias.percent()}"
    heading = f"Length against reward (both answer or both refuse: {told})"
    lengths = f"length of {statistics.sides.revised} − length of {statistics.sides.base} (words)"
    canvas.finish(axes, heading, lengths, _delta_name(statistics), grid="both")
    return figure


def principles(statistics: Statistics) -> Figure:
    """How often each principle was shown, and how its revisions fare."""
    shown = statistics.principles[:_BARS]
    figure, (left, right) = canvas.canvas(columns=2, width=12, height=1.6 + 0.42 * max(len(shown), 4), sharey=True)
    if not shown:
        canvas.nothing(left, "no row names a principle")
    canvas.bars(left, [textwrap.fill(group.name, 44) for group in shown], [100 * group.share for group in shown], BLUE)
    more = statistics.distinct_principles - len(shown)
    evenness = "" if statistics.principle_evenness is None else f", evenness {statistics.principle_evenness:.2f}"
    heading = f"Principles shown{evenness}" + (f" ({more} more)" if more else "")
    canvas.finish(left, heading, "share of rows (%)", grid="x")
    compared = [(place, group.wins) for place, group in enumerate(shown) if group.wins is not None]
    canvas.whiskers(right, [place for place, _ in compared], [wins for _, wins in compared], BLUE)
    canvas.level(right, x=50, dashed=True)
    right.set_xlim(0, 100)
    right.tick_params(labelleft=False)
    canvas.finish(right, "Revisions that win", "win rate, 95 % interval (%)", grid="x")
    return figure


def transitions(statistics: Statistics) -> Figure:
    """Which drafts answered or refused, and which revisions do."""
    tables = {"all pairs": statistics.transitions}
    if len(statistics.transitions_by_category) > 1:
        named = {READABLE_CATEGORY.get(name, name): table for name, table in statistics.transitions_by_category.items()}
        tables |= dict(list(named.items())[:2])
    figure, panels = canvas.canvas(columns=len(tables), height=3.6, width=3.1 * max(len(tables), 2))
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        _transition_table(axes, name, table, statistics.sides)
    panels[0].set_ylabel(statistics.sides.base, color=INK)
    return figure


def _lost(statistics: Statistics) -> dict[str, int]:
    """Rows that cannot be compared, by reason, when no curation has counted them."""
    lost = {name: count for name, count in statistics.outcomes.items() if name not in TWO_SIDED}
    lost |= {"identical": statistics.masquerading} if statistics.masquerading else {}
    others = statistics.rows - sum(lost.values()) - statistics.compared
    return lost | ({"not scored": others} if others > 0 else {})


def _delta_histogram(axes: Axes, deltas: pd.Series, statistics: Statistics) -> None:
    low, high = np.quantile(deltas, [0.002, 0.998])  # one outlier must not flatten all others
    width = max((high - low) / _BINS, 1e-6)
    edges = np.arange(math.floor(low / width), math.ceil(high / width) + 1.5) * width  # zero is an edge
    shown = deltas.clip(edges[0], edges[-1])
    lost, won = (
        f"{statistics.sides.base} scores higher ({statistics.base_better:,})",
        f"{statistics.sides.revised} scores higher ({statistics.revised_better:,})",
    )
    axes.hist(shown[shown < 0], bins=edges, color=ORANGE, label=lost)
    axes.hist(shown[shown >= 0], bins=edges, color=BLUE, label=won)
    canvas.level(axes, x=0)
    axes.axvline(deltas.mean(), color=INK, linewidth=1, linestyle="--", label=f"mean {deltas.mean():+.2f}")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.35)  # room for the legend
    axes.legend(loc="upper right", framealpha=0.9, edgecolor="none")


def _length_dots(axes: Axes, pairs: pd.DataFrame) -> None:
    longer, before, after = (
        pairs["revised_words"] - pairs["base_words"],
        pairs["base_refuses"],
        pairs["revised_refuses"],
    )
    kinds = {
        "answer → answer": (~before & ~after, BLUE, "o"),
        "answer → refusal": (~before & after, RED, "^"),
        "refusal → answer": (before & ~after, GREEN, "s"),
        "refusal → refusal": (before & after, GREY, "D"),
    }
    for name, (rows, colour, marker) in kinds.items():
        if rows.any():
            style: dict[str, Any] = {"s": 14, "color": colour, "marker": marker, "alpha": 0.45, "linewidths": 0}
            axes.scatter(longer[rows], pairs.loc[rows, "delta"], label=name, **style)
    canvas.level(axes, x=0, y=0)
    if longer.nunique() >= 10:
        tenths = pd.qcut(longer, 10, duplicates="drop")
        middle = pd.DataFrame({"longer": longer, "delta": pairs["delta"]}).groupby(tenths, observed=True).median()
        axes.plot(middle["longer"], middle["delta"], color=INK, marker="o", markersize=4, linewidth=1.8, label="median")
    canvas.legend_below(axes, columns=5)


def _transition_table(axes: Axes, name: str, table: Transitions, sides: SideNames) -> None:
    counts = np.array(
        [[table.answer_to_answer, table.answer_to_refusal], [table.refusal_to_answer, table.refusal_to_refusal]]
    )
    shares = counts / max(1, counts.sum())
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(2, 2):
        text = f"{percent(shares[row, column])}\n{counts[row, column]:,}"
        colour = "white" if shares[row, column] > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11)
    axes.set_xticks([0, 1], ["answers", "refuses"])
    axes.set_yticks([0, 1], ["answers", "refuses"], rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_xlabel(sides.revised, color=INK)
    axes.spines[:].set_visible(False)
    canvas.title(axes, f"{name} ({counts.sum():,})")


def _delta_name(statistics: Statistics) -> str:
    return f"reward of {statistics.sides.revised} − reward of {statistics.sides.base}"


def _readable(name: str) -> str:
    return _READABLE.get(name, name.replace("_", " "))


def _share(count: int, total: int) -> str:
    return percent(count / max(1, total))
