"""The held-out pairs one by one, when training is over: was length learned?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.schema import PreferenceRow, Record, Side


class HeldOutPair(Record):
    """One pair under the policy that is taken home. Rewards are β · (policy − reference log-probability)."""

    id: str
    chosen_side: Side
    chosen_tokens: int  # of the answer
    rejected_tokens: int
    reward_chosen: float
    reward_rejected: float

    @property
    def margin(self) -> float:
        return self.reward_chosen - self.reward_rejected


class LengthSplit(Record):
    """Accuracy on the pairs whose chosen side has the length that is usual for it, and on the others."""

    direction: str  # the usual one: the chosen side is "longer" or "shorter"
    usual: Interval
    other: Interval

    def line(self) -> str:
        return (
            f"{self.usual.percent()} of {self.usual.n} pairs whose chosen side is {self.direction}, "
            f"{self.other.percent()} of {self.other.n} others"
        )


def as_measured(
    rows: Sequence[PreferenceRow], encoded: Iterable[dict[str, Any]], rewards: Sequence[tuple[float, float]]
) -> list[HeldOutPair]:
    """rows, their token ids under `chosen_ids` and `rejected_ids`, and (chosen, rejected) rewards, in one order."""
    return [
        HeldOutPair(
            id=row.id,
            chosen_side=row.chosen_side,
            chosen_tokens=len(ids["chosen_ids"]),
            rejected_tokens=len(ids["rejected_ids"]),
            reward_chosen=chosen,
            reward_rejected=rejected,
        )
        for row, ids, (chosen, rejected) in zip(rows, encoded, rewards, strict=True)
    ]


def split_by_length(pairs: Sequence[HeldOutPair]) -> LengthSplit | None:
    """None where all pairs point one way: then length and content cannot be told apart.

    Pairs of equal lengths are left out; a margin of exactly 0 is no pair ranked right.
    """
    longer = [pair for pair in pairs if pair.chosen_tokens > pair.rejected_tokens]
    shorter = [pair for pair in pairs if pair.chosen_tokens < pair.rejected_tokens]
    if not longer or not shorter:
        return None
    usual, other = (longer, shorter) if len(longer) >= len(shorter) else (shorter, longer)
    return LengthSplit(
        direction="longer" if usual is longer else "shorter", usual=_accuracy(usual), other=_accuracy(other)
    )


def _accuracy(pairs: Sequence[HeldOutPair]) -> Interval:
    share = proportion(sum(pair.margin > 0 for pair in pairs), len(pairs))
    assert share is not None  # of at least one pair: split_by_length has looked
    return share
