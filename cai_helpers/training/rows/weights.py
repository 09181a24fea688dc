"""How much each pair counts: rows are repeated or left out so that, on average, each is seen as often as it weighs.

TRL's losses average over the batch before a weight could be applied, and a copy of them would have to follow every
release. So the rows are resampled: a row of weight 1.7 stands once or twice in the data, one of weight 0.3 once or not at
all. In expectation the epoch's loss is the weighted one, and the number of steps stays what it was.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Train

# Clipped to these multiples of the median, or a handful of extreme scores would be the whole data set.
_LEAST, _MOST = 0.25, 2.0


class Weighted(NamedTuple):
    rows: list[PreferenceRow]
    said: str | None  # what was done, for the log; None: every row counts the same


def weigh(rows: list[PreferenceRow], train: Train, seed: int) -> Weighted:
    """`rows` resampled by `row_weights`; the same rows, in their order, where all weigh the same."""
    weights = row_weights(rows, train)
    if all(weight == 1 for weight in weights):
        return Weighted(rows, None)
    counts = resample(weights, seed)
    times = Counter(counts)
    by = " and ".join(["score difference"] * train.weight_by_delta + ["who labelled"] * (train.person_weight != 1))
    said = ", ".join(f"{times[count]} rows {_times(count)}" for count in sorted(times))
    repeated = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    return Weighted(repeated, f"weighted by {by}: {len(rows)} rows became {len(repeated)} ({said})")


def row_weights(rows: Sequence[PreferenceRow], train: Train) -> list[float]:
    """A person's row weighs train.person_weight; the reward model's 1, or by its clipped delta, 1 on average."""
    by_model = [row for row in rows if row.labelled_by == "reward model"]
    deltas = {id(row): abs(row.delta or 0.0) for row in by_model}
    if not train.weight_by_delta or not any(deltas.values()):
        return [1.0 if row.labelled_by == "reward model" else train.person_weight for row in rows]
    middle = median(deltas.values())
    clipped = {row: min(max(delta, _LEAST * middle), _MOST * middle) for row, delta in deltas.items()}
    mean = math.fsum(clipped.values()) / len(clipped)
    return [clipped[id(row)] / mean if id(row) in clipped else train.person_weight for row in rows]


def resample(weights: Sequence[float], seed: int) -> list[int]:
    """How often each row stands in the data: its weight rounded down or up, the total that of the weights, rounded.

    Systematic resampling (Kitagawa 1996, Journal of Computational and Graphical Statistics 5): one random offset for
    all, so that the counts vary as little as whole numbers can.
    """
    offset = random.Random(f"{seed}:weights").random()
    counts, total, before = [], 0.0, math.floor(offset)
    for weight in weights:
        total += weight
        after = math.floor(total + offset + 1e-9)  # a sum of tenths must not fall below its whole number
        counts.append(after - before)
        before = after
    return counts


def _times(count: int) -> str:
    return {0: "left out", 1: "once", 2: "twice"}.get(count, f"{count} times")
