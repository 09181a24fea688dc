"""The figures of an evaluation as a table: one column a kind of request, one row a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cai_helpers.evaluation.figures import BASE, OF_BASE, OF_CHANCE, OVER_BASE, Change, Comparison
from cai_helpers.measures.intervals import Interval

Cell = list[str]  # its lines, the first one large


class TableRow(NamedTuple):
    name: str
    cells: list[Cell]


def table_rows(columns: Sequence[Comparison], judged: str = "") -> list[TableRow]:
    """A row of cells for every figure that at least one column has.

    judged: what stands beside each win rate of Stage 3, where the judge labelled the training pairs.
    """
    wins = TableRow("win rate against Stage 2", [[*_win_rate(one), *([judged] if judged else [])] for one in columns])
    rows = [TableRow(name, [cell_of(one) or ["–"] for one in columns]) for name, cell_of in _ROWS]
    return [wins, *(row for row in rows if any(cell != ["–"] for cell in row.cells))]


def _win_rate(one: Comparison) -> Cell:
    return [one.win_rate.percent(), f"{one.wins} won, {one.ties} tied, {one.losses} lost"]


def _against(pairing: str) -> Callable[[Comparison], Cell]:
    return lambda one: [one.against[pairing].win_rate.percent()] if pairing in one.against else []


def _at_equal_length(one: Comparison) -> Cell:
    found = one.length_controlled
    if found is None:
        return []
    return [found.note] if found.win_rate is None else [found.win_rate.percent()]


def _change(name: str) -> Callable[[Comparison], Cell]:
    def cell(one: Comparison) -> Cell:
        change: Change | None = getattr(one, name)
        if change is None:
            return []
        return [f"{change.before.percent()} → {change.after.percent()}", change.difference.points()]

    return cell


def _refusals_of_base(one: Comparison) -> Cell:
    return [one.policies[BASE].refusals.percent()] if BASE in one.policies else []


def _fit(one: Comparison) -> Cell:
    return [f"{_or_few(one.fit_before)} → {_or_few(one.fit_after)}"]


def _or_few(fit: Interval | None) -> str:
    return "too few" if fit is None else fit.percent()


def _mean_delta(one: Comparison) -> Cell:
    return [one.mean_delta.number() if one.mean_delta else "too few prompts"]


def _logp(one: Comparison) -> Cell:
    shift = one.logp
    if shift is None or shift.before is None or shift.after is None or shift.difference is None:
        return []
    return [f"{shift.before.value:.2f} → {shift.after.value:.2f}", shift.difference.number()]


def _kl(one: Comparison) -> Cell:
    return [one.kl.number()] if one.kl else []


def _length(one: Comparison) -> Cell:
    return [f"{one.words_before:.0f} → {one.words_after:.0f} words"]


_ROWS: list[tuple[str, Callable[[Comparison], Cell]]] = [
    ("at equal length (shown, never a gate)", _at_equal_length),
    ("the base model against Stage 2", _against(OF_BASE)),
    ("win rate against the base model", _against(OVER_BASE)),
    ("Stage 2 again, another seed, against Stage 2", _against(OF_CHANCE)),
    ("mean reward difference", _mean_delta),
    ("refusals, Stage 2 → 3", _change("refusals")),
    ("refusals of the base model", _refusals_of_base),
    ("partial refusals", _change("partial")),
    ("degenerate answers", _change("degenerate")),
    ("cut off at the token limit", _change("truncated")),
    ("topic fit (50 % is chance)", _fit),
    ("log-probability under the base model, nats a token", _logp),
    ("KL to Stage 2, nats an answer", _kl),
    ("mean length", _length),
]
