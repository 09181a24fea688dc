"""How far the making of pairs is: what somebody who looks on is shown."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cai_helpers.schema import Trace


class Making(NamedTuple):
    """One moment of it."""

    newest: Trace | None  # None: none has ended in this call
    outcomes: dict[str, int]  # of all pairs on disk, those of earlier calls too
    done: int
    total: int
    seconds: float  # of this call
    seconds_left: float | None  # None: before the first pair
    tokens_per_s: float


Watcher = Callable[[Making], None]


class Tally:
    """Counts pairs as they come."""

    def __init__(self, earlier: Counter[str], coming: int) -> None:
        """earlier: outcomes of the pairs that were there before."""
        self._total, self._outcomes = earlier.total() + coming, earlier.copy()
        self._now = self._tokens = 0
        self._began = time.monotonic()

    def add(self, traces: Sequence[Trace]) -> Making:
        self._outcomes.update(trace.outcome for trace in traces)
        self._now += len(traces)
        self._tokens += sum(trace.tokens for trace in traces)
        seconds = time.monotonic() - self._began
        done = self._outcomes.total()
        return Making(
            newest=traces[-1] if traces else None,
            outcomes=dict(self._outcomes.most_common()),
            done=done,
            total=self._total,
            seconds=seconds,
            seconds_left=seconds / self._now * (self._total - done) if self._now else None,
            tokens_per_s=self._tokens / max(seconds, 1e-9),
        )
