"""How well does a counter agree with people? Counts of a card, and the figures that stand beside every rate."""

from __future__ import annotations

import math

from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.schema import Record


class Agreement(Record):
    """A two-way counter against people's labels, as four counts; every figure is computed from them."""

    hits: int  # people say yes, the counter too
    misses: int  # people say yes, the counter no
    false_alarms: int
    correct_rejections: int
    on: str  # what was labelled, by whom, and how it was kept apart from what the counter was made from
    command: str  # prints these counts again

    @property
    def n(self) -> int:
        return self.hits + self.misses + self.false_alarms + self.correct_rejections

    @property
    def sensitivity(self) -> Interval:
        """Share of people's yes that are counted."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def specificity(self) -> Interval:
        """Share of people's no that are not counted."""
        return _share(self.correct_rejections, self.correct_rejections + self.false_alarms)

    @property
    def accuracy(self) -> Interval:
        return _share(self.hits + self.correct_rejections, self.n)

    @property
    def kappa(self) -> float:
        """Agreement beyond chance, 1 at its best (Cohen 1960, Educational and Psychological Measurement 20, 37–46)."""
        said, meant = self.hits + self.false_alarms, self.hits + self.misses
        chance = (said * meant + (self.n - said) * (self.n - meant)) / self.n**2
        return (self.accuracy.value - chance) / (1 - chance) if chance < 1 else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall of yes."""
        return 2 * self.hits / (2 * self.hits + self.misses + self.false_alarms)

    def brief(self) -> str:
        """What stands in the same line as a rate."""
        return f"κ {self.kappa:.2f} with people"

    def sentence(self) -> str:
        """The line that stands beside rates: how far the counter is to be trusted, on what, and how to see it again."""
        return (
            f"κ {self.kappa:.2f} with people, sensitivity {self.sensitivity.percent()}, "
            f"specificity {self.specificity.percent()}, on {self.on} ({self.command})"
        )


def _share(part: int, whole: int) -> Interval:
    share = proportion(part, whole)
    assert share is not None, "a card counts at least one text of each kind"
    return share
