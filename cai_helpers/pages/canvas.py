"""The pieces that pictures are made of. Colours can be told apart by the colour-blind (Okabe & Ito 2008)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cai_helpers.measures.intervals import Interval
from cai_helpers.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#9AA5B1", "#1F2933"
_GRID = "#E4E7EB"


def canvas(
    columns: int = 1,
    rows: int = 1,
    width: float = 9,
    height: float = 4.2,
    width_ratios: Sequence[float] | None = None,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches and its panels, row by row."""
    # Figure and not pyplot: no global state, no backend chosen for the notebook that imports this
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    inside = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
    figure = Figure(figsize=(width, height), dpi=120, layout=inside, facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=width_ratios, sharey=sharey)
    return figure, list(panels.ravel())


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)


def finish(axes: Axes, heading: str, x: str, y: str = "", grid: Literal["both", "x", "y"] = "y") -> None:
    """Title, units and quiet lines. Call it last: it sees to the labels that are there."""
    title(axes, heading)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a principle may be called "$1"


def level(axes: Axes, x: float | None = None, y: float | None = None, dashed: bool = False) -> None:
    """A thin line across the panel at `x` or `y`."""
    style: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": "--" if dashed else "-"}
    if x is not None:
        axes.axvline(x, **style)
    if y is not None:
        axes.axhline(y, **style)


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str] | str, **options) -> None:
    """Horizontal bars, the first on top."""
    axes.barh(range(len(names)), values, color=colours, **options)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def whiskers(
    axes: Axes,
    places: Sequence[float],
    intervals: Sequence[Interval],
    colour: str,
    marker: str = "o",
    label: str | None = None,
) -> None:
    """One point with its interval a row, in per cent."""
    values = [100 * interval.value for interval in intervals]
    below = [100 * (interval.value - interval.low) for interval in intervals]
    above = [100 * (interval.high - interval.value) for interval in intervals]
    style: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 6, "elinewidth": 2, "capsize": 3}
    axes.errorbar(values, places, xerr=[below, above], label=label, **style)


def note(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **options) -> None:
    """Small text beside a point, `offset` in points."""
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": INK}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    axes.annotate(text, place, offset, **(style | options))


def legend_below(axes: Axes, columns: int, below: float = 0.12) -> None:
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -below)}
    for handle in axes.legend(frameon=False, ncols=columns, **place).legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=11)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, atomically."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    return path


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
