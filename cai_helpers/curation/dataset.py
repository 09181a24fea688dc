"""What becomes of all pairs: every rule, and those that look at many pairs together. Of a pair some bytes are held, no text."""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy

from cai_helpers.curation.overrides import Override, pair_key
from cai_helpers.curation.rules import (
    Dropped,
    answers_over_refusal,
    drop_reason,
    overruled,
    preference_row,
    refuses_over_answer,
)
from cai_helpers.measures.near_duplicates import WordNumbers, near_copies_in
from cai_helpers.schema import PreferenceRow, ScoredPair, Side, transcript
from cai_helpers.settings import Curate

OWN_CATEGORY = "chat"  # of pairs that a person made


class Overruled(NamedTuple):
    """What a person's decisions did."""

    kept: int
    dropped: int
    against_reward: int  # kept rows whose chosen side has the lower score
    elsewhere: int  # decisions about pairs that are not in this file


class OwnPairs(NamedTuple):
    """What became of the pairs that a person made in the chat."""

    added: int = 0
    held_out: int = 0  # their prompt is one of the evaluation's: trained on, it would measure nothing any more
    alike: int = 0  # both answers are the same text


class Curation:
    """What becomes of each pair. `results` gives the rows themselves, from the pairs read again.

    Places are those of the pairs in their file, and after them a person's own pairs.
    """

    def __init__(self, settings: Curate, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self.reasons: list[str | None] = []  # why it is no row, by place; None: it is one
        self._pairs = 0
        # of the rows, those that a rule about many of them drops included
        self._places = array("q")
        self._ids: list[str] = []
        self._categories: list[str] = []
        self._sides: list[Side] = []
        self._deltas = array("d")  # NaN: none
        self._refuses_over_answer, self._answers_over_refusal = bytearray(), bytearray()
        self._words = WordNumbers()  # of the prompts
        self._hashes: dict[int, bytes] = {}  # of refusals over answers, by row
        self._decisions: dict[int, Override] = {}  # a person's, by row
        self._own_rows: list[PreferenceRow] = []
        self.own = OwnPairs()
        self.elsewhere = 0

    def add(self, result: PreferenceRow | str, decision: Override | None) -> None:
        """The next place. decision: a person's about it."""
        if isinstance(result, str):
            self.reasons.append(result)
            return
        row = len(self._places)
        self._places.append(len(self.reasons))
        self.reasons.append(None)
        self._ids.append(result.id)
        self._categories.append(sys.intern(result.category))
        self._sides.append(result.chosen_side)
        self._deltas.append(math.nan if result.delta is None else result.delta)
        self._refuses_over_answer.append(refuses_over_answer(result))
        self._answers_over_refusal.append(answers_over_refusal(result))
        if self._settings.near_duplicates is not None:
            self._words.add(transcript(result.prompt))
        if self._refuses_over_answer[row]:
            self._hashes[row] = _balance_hash(result, self._seed)
        if decision is not None:
            self._decisions[row] = decision

    def add_own(self, decisions: list[Override], held_out: Collection[str]) -> None:
        """The pairs that a person made, when all others are in."""
        self._pairs = len(self.reasons)
        self.own, made = _own_pairs(decisions, held_out)
        self.elsewhere = sum(one.pair is None for one in decisions)
        for decision, row in made:
            self.add(row, decision)
            self._own_rows.append(row)

    def drop_among_many(self) -> None:
        """The rules that look at many rows; what a person decided stays."""
        for reason, rule in (("near_duplicate", self._near_duplicates), ("balance", self._too_many_refusals)):
            for row in rule():
                self.reasons[self._places[row]] = reason
        del self._words, self._hashes

    def results(self, pairs: Iterable[ScoredPair]) -> Iterator[PreferenceRow | Dropped]:
        """Each row and each dropped pair, in the order of the pairs, then a person's own. pairs: the same once more."""
        by_person = {self._places[row]: decision for row, decision in self._decisions.items()}
        for place, (pair, reason) in enumerate(zip(pairs, self.reasons[: self._pairs], strict=True)):
            if reason is not None:
                yield Dropped(pair, reason)
            else:
                made = _result(pair, by_person.get(place))
                assert not isinstance(made, str)  # it was a row before
                yield made
        yield from self._own_rows

    def _near_duplicates(self) -> list[int]:
        """Rows whose prompt nearly repeats that of a row with a person's label or a larger score difference."""
        if self._settings.near_duplicates is None:
            return []
        by_person = numpy.zeros(len(self._places), dtype=bool)
        by_person[list(self._decisions)] = True
        order = numpy.lexsort((-numpy.abs(numpy.nan_to_num(self._deltas)), ~by_person))  # equal ones stay in order
        copies = near_copies_in(self._words, order, self._settings.near_duplicates)
        found = (row for row, copy_of in zip(order.tolist(), copies, strict=True) if copy_of is not None)
        return [row for row in found if row not in self._decisions]

    def _too_many_refusals(self) -> list[int]:
        """The refusals over answers that are one too many, drawn by hash."""
        share = self._settings.max_refusal_share
        refusing = [row for row in self._kept() if self._refuses_over_answer[row]]
        if share is None or share == 1 or not refusing or len(refusing) <= share * self.kept:
            return []
        others = self.kept - len(refusing)
        surplus = len(refusing) - int(others * share / (1 - share))  # r / (r + others) ≤ share
        candidates = [row for row in refusing if row not in self._decisions]
        return sorted(candidates, key=self._hashes.__getitem__)[:surplus]

    def _kept(self) -> Iterator[int]:
        return (row for row, place in enumerate(self._places) if self.reasons[place] is None)

    @property
    def kept(self) -> int:
        return self.reasons.count(None)

    @property
    def dropped(self) -> Counter[str]:
        return Counter(reason for reason in self.reasons if reason is not None)

    @property
    def ids(self) -> set[str]:
        """Of the prompts of all rows."""
        return {self._ids[row] for row in self._kept()}

    @property
    def categories(self) -> Counter[str]:
        return Counter(self._categories[row] for row in self._kept())

    @property
    def sides(self) -> Counter[str]:
        return Counter(self._sides[row] for row in self._kept())

    @property
    def refusals_chosen(self) -> int:
        return sum(self._refuses_over_answer[row] for row in self._kept())

    @property
    def refusals_rejected(self) -> int:
        return sum(self._answers_over_refusal[row] for row in self._kept())

    @property
    def overruled(self) -> Overruled:
        decided = [row for row in self._decisions if self._places[row] < self._pairs]
        return Overruled(
            kept=len(decided),
            dropped=self.reasons.count("overruled"),
            against_reward=sum(self._deltas[row] < 0 for row in decided),
            elsewhere=self.elsewhere,
        )


def curate(
    pairs: Iterable[ScoredPair],
    overrides: dict[str, Override],
    settings: Curate,
    seed: int,
    held_out: Collection[str] = (),
) -> Curation:
    """Apply every rule. overrides: by overrides.pair_key. Rows that a person decided about pass the other rules.

    held_out: ids of the prompts that evaluation asks; a person's own pair about one of them becomes no row.
    """
    curation = Curation(settings, seed)
    decided: set[str] = set()
    for pair in pairs:
        decision = None
        if overrides:
            key = pair_key(pair.prompt, pair.base_response, pair.revised_response)
            if (decision := overrides.get(key)) is not None:
                decided.add(key)
        dropped = drop_reason(pair, settings) if decision is None else None
        curation.add(dropped or _result(pair, decision), decision)
    curation.add_own([one for key, one in overrides.items() if key not in decided], held_out)
    curation.drop_among_many()
    return curation


def _result(pair: ScoredPair, decision: Override | None) -> PreferenceRow | str:
    return preference_row(pair) if decision is None else overruled(pair, decision)


def _own_pairs(
    decisions: list[Override], held_out: Collection[str]
) -> tuple[OwnPairs, list[tuple[Override, PreferenceRow]]]:
    """Rows of the pairs that a person made, in the order in which they were decided."""
    rows: list[tuple[Override, PreferenceRow]] = []
    kept_back = alike = 0
    for decision in decisions:
        if decision.pair is None or decision.decision == "drop":
            continue
        pair = ScoredPair(
            prompt=transcript(decision.pair.messages),
            messages=decision.pair.messages,
            base_response=decision.pair.base_response,
            revised_response=decision.pair.revised_response,
            base_score=0.0,  # nobody scored it; `delta` is none as well
            revised_score=None,
            chosen=None,
            category=OWN_CATEGORY,
        )
        row = overruled(pair, decision)
        if isinstance(row, str):
            alike += 1
        elif row.id in held_out:
            kept_back += 1
        else:
            rows.append((decision, row))
    return OwnPairs(added=len(rows), held_out=kept_back, alike=alike), rows


def _balance_hash(row: PreferenceRow, seed: int) -> bytes:
    """A fixed random order of rows, the same whatever the order of the file."""
    content = f"{seed}:balance:{row.id}:{row.chosen[0]['content']}"
    return hashlib.sha256(content.encode(errors="backslashreplace")).digest()
