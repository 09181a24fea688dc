"""How often a person agrees with the reward model: pairs judged blind, kept in pairs/blind.jsonl.

A judgement holds no score: after a change of the reward model the same judgements tell of the new one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pydantic

from cai_helpers.errors import CaiError
from cai_helpers.inspection.rows import Row
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.schema import TWO_SIDED, Record
from cai_helpers.store import JsonlStore, read_jsonl

Verdict = Literal["revision", "draft", "skip"]
Shown = Literal["revision", "draft"]


class Judgement(Record):
    """What a person said of one pair without knowing which side was which."""

    key: str  # overrides.pair_key
    id: str  # the prompt's, for people who read the file
    better: Verdict
    left: Shown  # what stood on the left
    time: str  # UTC, ISO 8601


class Agreement(Record):
    """Judgements against the reward model's scores. Only rows that the person did not skip count."""

    agreed: int
    judged: int
    skipped: int
    left: int  # how often the person took the left side, which tells nothing: about half is as it should be
    share: Interval | None  # agreed of judged, Wilson
    disagreed: list[str]  # keys

    def lines(self) -> list[str]:
        """The result as a person reads it."""
        if self.share is None:
            return ["Nothing was judged, so there is nothing to report."]
        return [
            f"You agree with the reward model on {self.agreed} of {self.judged} rows: {self.share.percent()}.",
            _meaning(self.share),
            f"You took the left side {self.left} times of {self.judged}; sides are shuffled, so about half is usual."
            + (f" {self.skipped} skipped." if self.skipped else ""),
        ]


def _meaning(share: Interval) -> str:
    if share.low > 0.5:
        comparison = "Better than a coin toss"
    elif share.high < 0.5:
        comparison = "Worse than a coin toss: look at the rows you disagree on before training"
    else:
        comparison = "By these rows alone it could be a coin toss"
    return f"{comparison}. {share.n} rows are a first check; each further round narrows the interval."


def can_be_judged(row: Row) -> bool:
    """Two different texts, two scores, and one of them the higher."""
    pair = row.pair
    return pair.outcome in TWO_SIDED and not pair.identical and bool(pair.delta)


def draw_rows(
    rows: list[Row],
    count: int,
    seed: int,
    judged: Iterable[str] = (),
    fit: Callable[[Row], bool] = can_be_judged,
) -> list[int]:
    """`count` random places of rows that are `fit` and whose key is not in `judged`; fewer if there are no more.

    The draw depends on the seed and the texts alone: with what was judged left out, a second round goes on where the
    first one ended.
    """
    done = set(judged)
    places = {row.key: place for place, row in enumerate(rows) if row.key not in done and fit(row)}
    order = sorted(places, key=lambda key: random.Random(f"{seed}:blind:{key}").random())
    return [places[key] for key in order[:count]]


def side_on_the_left(key: str, seed: int) -> Shown:
    return random.Random(f"{seed}:left:{key}").choice(("revision", "draft"))


def append_judgement(path: Path, row: Row, better: Verdict, left: Shown) -> Judgement:
    """Add one judgement to the file and return it; it is on disk then."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    judgement = Judgement(key=row.key, id=row.pair.id, better=better, left=left, time=time)
    JsonlStore(path).append([judgement.model_dump()])
    return judgement


def read_judgements(path: Path) -> list[Judgement]:
    """All judgements, of a pair that was judged twice the later one; none if there is no file.

    Raises:
        CaiError: a line is no judgement; the message names it.
    """
    if not path.exists():
        return []
    judgements: dict[str, Judgement] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            judgement = Judgement.model_validate(row)
        except pydantic.ValidationError as error:
            raise CaiError(
                f"{path}, row {number}: {error.errors()[0]['msg']}.",
                "Correct or remove that line; the inspector's blind mode writes it.",
            ) from error
        judgements[judgement.key] = judgement
    return list(judgements.values())


def agreement(judgements: Iterable[Judgement], rows: Iterable[Row]) -> Agreement:
    """Compare with the scores of `rows`; judgements about pairs that are not among them, or are tied now, are left out."""
    deltas = {row.key: row.pair.delta for row in rows if can_be_judged(row) and row.pair.delta is not None}
    known = [judgement for judgement in judgements if judgement.key in deltas]
    judged = [judgement for judgement in known if judgement.better != "skip"]
    disagreed = [
        judgement.key for judgement in judged if (judgement.better == "revision") != (deltas[judgement.key] > 0)
    ]
    agreed = len(judged) - len(disagreed)
    return Agreement(
        agreed=agreed,
        judged=len(judged),
        skipped=len(known) - len(judged),
        left=sum(judgement.better == judgement.left for judgement in judged),
        share=proportion(agreed, len(judged)),
        disagreed=disagreed,
    )
