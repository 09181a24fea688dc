"""What revisions under one principle, or under one constitution, came to on the same drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cai_helpers.measures.intervals import Interval, mean_of, paired_difference, proportion
from cai_helpers.measures.refusals import is_refusal
from cai_helpers.schema import Record, Trace


class Scored(NamedTuple):
    """A trace, and by how much its revision scores above its draft; None where there is no usable revision."""

    trace: Trace
    delta: float | None


class PrincipleEntry(Record):
    """Shares are of all prompts: a principle that is never applied wins nothing."""

    name: str
    words: str
    prompts: int
    revised: int
    kept: int
    wins: int
    losses: int
    win_rate: Interval | None  # of the revisions
    net: Interval  # (won − lost) a prompt, between −1 and 1
    refusals: Interval  # share after less share before, in pairs
    length: Interval | None  # words of the revision less words of the draft

    def figures(self) -> dict[str, str]:
        """A row of the table."""
        return {
            "principle": self.name,
            "revised": f"{self.revised / self.prompts:.0%}",
            "kept": f"{self.kept / self.prompts:.0%}",
            "revised wins": "–" if self.win_rate is None else self.win_rate.percent(),
            "won − lost, of all": self.net.points(),
            "refusals": self.refusals.points(),
            "words": "–"
            if self.length is None
            else f"{self.length.value:+.0f} ({self.length.low:+.0f} to {self.length.high:+.0f})",
        }


def entry_of(name: str, words: str, rows: Sequence[Scored]) -> PrincipleEntry:
    """`rows` must not be empty. A share's interval is Wilson's or Newcombe's, a mean's the bootstrap's."""
    revised = [row for row in rows if row.delta is not None]
    wins, losses = (sum(sign * row.delta > 0 for row in revised if row.delta is not None) for sign in (1, -1))
    signs = np.array([0.0 if row.delta is None else np.sign(row.delta) for row in rows])
    net = mean_of(signs) or Interval(value=float(signs.mean()), low=-1, high=1, n=len(rows))
    pairs = [(is_refusal(row.trace.draft), is_refusal(_after(row))) for row in rows]
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    refusals = paired_difference(
        counts.get((True, True), 0),
        counts.get((True, False), 0),
        counts.get((False, True), 0),
        counts.get((False, False), 0),
    )
    assert refusals is not None, "there is at least one row"
    longer = np.array([len(row.trace.revision.split()) - len(row.trace.draft.split()) for row in revised])
    return PrincipleEntry(
        name=name,
        words=words,
        prompts=len(rows),
        revised=len(revised),
        kept=sum(row.trace.outcome == "kept" for row in rows),
        wins=wins,
        losses=losses,
        win_rate=proportion(wins + (len(revised) - wins - losses) / 2, len(revised)),
        net=net,
        refusals=refusals,
        length=mean_of(longer),
    )


def _after(row: Scored) -> str:
    """What would be kept of the pair: the revision, or the draft where there is none."""
    return row.trace.revision if row.delta is not None else row.trace.draft
