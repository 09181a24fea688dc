"""The rounds as curves: wins, refusals, log-probability under the base, length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.evaluation.rounds import Round
from cai_helpers.measures.intervals import Interval
from cai_helpers.pages import canvas
from cai_helpers.pages.canvas import BLUE, GREEN, GREY, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Line(NamedTuple):
    label: str
    colour: str
    of: Callable[[Round], Interval | None]


def save_rounds_plot(rounds: Sequence[Round], path: Path) -> Path:
    return canvas.save(rounds_figure(rounds), path)


def rounds_figure(rounds: Sequence[Round]) -> Figure:
    """Four panels over the number of the round; shares with their 95 % intervals."""
    figure, (wins, refusals, likelihood, length) = canvas.canvas(columns=2, rows=2, height=7)
    _shares(
        wins,
        rounds,
        [
            _Line("over the first Stage 2", BLUE, lambda round_: round_.over_first),
            _Line("over the round before", ORANGE, lambda round_: round_.over_before),
        ],
    )
    canvas.level(wins, y=50, dashed=True)
    canvas.finish(wins, "Win rate", "round", "%")
    _shares(
        refusals,
        rounds,
        [
            _Line("harmful requests", BLUE, lambda round_: round_.harmful_refused),
            _Line("benign requests", RED, lambda round_: round_.benign_refused),
        ],
    )
    canvas.finish(refusals, "Refusals", "round", "%")
    _values(likelihood, rounds, lambda round_: round_.log_probability, GREEN)
    canvas.finish(likelihood, "Log-probability under the base", "round", "nats a token")
    _values(length, rounds, lambda round_: round_.words, GREY)
    length.set_ylim(0, 1.15 * max(round_.words for round_ in rounds) or 1)
    canvas.finish(length, "Length", "round", "words")
    return figure


def _shares(axes: Axes, rounds: Sequence[Round], lines: Sequence[_Line]) -> None:
    for place, line in enumerate(lines):
        found = [(round_.number, line.of(round_)) for round_ in rounds]
        known = [(number, interval) for number, interval in found if interval is not None]
        numbers = [number + 0.06 * (place - 0.5) for number, _ in known]
        axes.errorbar(
            numbers,
            [100 * interval.value for _, interval in known],
            yerr=[
                [100 * (interval.value - interval.low) for _, interval in known],
                [100 * (interval.high - interval.value) for _, interval in known],
            ],
            fmt="o-",
            color=line.colour,
            capsize=3,
            label=line.label,
        )
    axes.set_ylim(-4, 104)
    _rounds(axes, rounds)
    canvas.legend_below(axes, columns=2, below=0.16)


def _values(axes: Axes, rounds: Sequence[Round], of: Callable[[Round], float | None], colour: str) -> None:
    known = [(round_.number, value) for round_ in rounds if (value := of(round_)) is not None]
    axes.plot([number for number, _ in known], [value for _, value in known], "o-", color=colour)
    _rounds(axes, rounds)


def _rounds(axes: Axes, rounds: Sequence[Round]) -> None:
    numbers = [round_.number for round_ in rounds]
    axes.set_xticks(numbers, ["Stage 2" if number == 0 else str(number) for number in numbers])
    axes.set_xlim(-0.3, max(numbers) + 0.3)
