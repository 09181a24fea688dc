"""Everything that can be counted in a frame of scored pairs, with intervals. A frame in, figures out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from cai_helpers.analysis.frame import PairFrame
from cai_helpers.measures.intervals import Interval, mean_of, median_of, proportion
from cai_helpers.measures.topic import looked_at, topic_fit
from cai_helpers.schema import SAMPLED, Record, ScoredPair, SideNames, side_names

TIE = 0.001  # |delta| up to which two scores count as equal: fp32 scores of one text differ by less between batches
GROUPS_SHOWN = 50  # principles or categories with figures of their own, most used first
EXAMPLES = 6  # best and worst revisions kept for reading


class Group(Record):
    """The rows that share a principle or a category."""

    name: str
    rows: int
    share: float  # of all rows
    compared: int  # rows with two different texts and two scores
    wins: Interval | None  # share of compared rows whose revision scores higher, a tie as half
    mean_delta: Interval | None


class LengthBias(Record):
    """Does the longer side win? Over pairs with a winner and two different lengths."""

    pairs: int
    longer_wins: Interval | None
    correlation: float | None  # Spearman's, of delta with the length difference in words


class Transitions(Record):
    """What the revision made of the draft, over compared rows."""

    answer_to_answer: int
    answer_to_refusal: int
    refusal_to_answer: int
    refusal_to_refusal: int


class Example(Record):
    id: str
    prompt: str
    base_response: str
    revised_response: str
    base_score: float
    revised_score: float
    delta: float
    category: str
    principle_ids: list[str]
    critic_notes: str
    outcome: str = "unknown"

    @property
    def sides(self) -> SideNames:
        return side_names({self.outcome})


class Statistics(Record):
    """The figures of one file. `None` stands for "nothing to measure it on"."""

    rows: int
    outcomes: dict[str, int]
    usable: Interval | None  # outcome revised, kept or sampled, of the rows that tell their outcome
    attempted: int  # rows where the critic did not keep the draft
    identical_all: Interval | None  # both sides the same text, of all rows
    identical_attempted: Interval | None  # the same, of the attempted
    masquerading: int  # identical rows that pass for a revision: outcome "revised" or not told
    unscored: int  # rows without a score for the revision

    compared: int
    revised_better: int
    base_better: int
    ties: int
    tie_threshold: float
    wins: Interval | None  # the revision's win rate over compared rows, a tie as half
    mean_delta: Interval | None
    median_delta: Interval | None
    chosen: dict[str, int]
    contradictions: int  # compared rows whose `chosen` is not the side with the higher score

    meta_commentary: Interval | None  # of the attempted
    leaks: Interval | None  # revisions holding text of a template, of the compared

    draft_fit: Interval | None  # drafts that speak of their own prompt, see topic.topic_fit; refusals left out
    revision_fit: Interval | None

    principle_rows: int  # rows that name a principle
    principles: list[Group]
    distinct_principles: int
    principle_evenness: float | None  # 1: all equally often, 0: only one
    categories: list[Group]

    base_words: Interval | None  # mean length over compared rows
    revised_words: Interval | None
    length_bias: LengthBias
    length_bias_like_for_like: LengthBias  # pairs where both sides refuse or both answer

    transitions: Transitions
    transitions_by_category: dict[str, Transitions]
    prefers_refusal: int  # decided pairs whose winner refuses and whose loser answers
    prefers_answer: int  # the other way round
    decided: int  # compared pairs with a winner

    multi_turn: int
    context_free: Interval | None
    duplicates: int  # rows whose prompt occurred before

    worst: list[Example]
    best: list[Example]

    def in_words(self, principles: Mapping[str, str]) -> Statistics:
        """The same with the words of each principle in place of its id. principles: text by id, short."""
        named = [group.model_copy(update={"name": principles.get(group.name, group.name)}) for group in self.principles]
        return self.model_copy(update={"principles": named})

    @property
    def sampled(self) -> bool:
        """The sides are samples of the model, the worst and the best: `wins` and the sign of delta are so by construction."""
        return bool(SAMPLED & self.outcomes.keys())

    @property
    def sides(self) -> SideNames:
        return side_names(self.outcomes)


def analyze_frame(pairs: PairFrame, tie: float = TIE) -> Statistics:
    """Every figure. `tie`: the largest |delta| that counts as equal."""
    frame = pairs.rows
    compared = frame[frame["compared"]]
    decided = compared[compared["delta"].abs() > tie]
    attempted = frame.loc[frame["outcome"] != "kept", ["identical", "meta"]]
    told = frame.loc[frame["outcome"] != "unknown", "outcome"]
    higher = np.where(decided["delta"] > 0, "revised", "base")
    winner_refuses, loser_refuses = _refusals_of_sides(decided)
    by_principle = frame[["principle_ids", "compared", "delta"]].explode("principle_ids")
    by_principle = by_principle.dropna(subset=["principle_ids"])
    used = by_principle["principle_ids"].value_counts()
    texts = _Texts(pairs, compared)
    return Statistics(
        rows=len(frame),
        outcomes=_counts(frame["outcome"]),
        usable=_share(told.isin(["revised", "kept", "sampled"])),
        attempted=len(attempted),
        identical_all=_share(frame["identical"]),
        identical_attempted=_share(attempted["identical"]),
        masquerading=int((frame["identical"] & frame["outcome"].isin(["revised", "unknown"])).sum()),
        unscored=int(frame["delta"].isna().sum()),
        compared=len(compared),
        revised_better=int((decided["delta"] > 0).sum()),
        base_better=int((decided["delta"] < 0).sum()),
        ties=len(compared) - len(decided),
        tie_threshold=tie,
        wins=_wins(compared["delta"], tie),
        mean_delta=mean_of(compared["delta"].to_numpy()),
        median_delta=median_of(compared["delta"].to_numpy()),
        chosen=_counts(frame["chosen"].dropna()),
        contradictions=int((decided["chosen"].notna() & (decided["chosen"] != higher)).sum()),
        meta_commentary=_share(attempted["meta"]),
        leaks=_share(compared["leak"]),
        draft_fit=texts.draft_fit(),
        revision_fit=texts.revision_fit(),
        principle_rows=int((frame["principle_ids"].str.len() > 0).sum()),
        principles=_groups(by_principle, "principle_ids", len(frame), tie),
        distinct_principles=len(used),
        principle_evenness=evenness(used.to_numpy()),
        categories=_groups(frame, "category", len(frame), tie),
        base_words=mean_of(compared["base_words"].to_numpy()),
        revised_words=mean_of(compared["revised_words"].to_numpy()),
        length_bias=_length_bias(decided),
        length_bias_like_for_like=_length_bias(decided[decided["base_refuses"] == decided["revised_refuses"]]),
        transitions=_transitions(compared),
        transitions_by_category={str(name): _transitions(rows) for name, rows in compared.groupby("category")},
        prefers_refusal=int((winner_refuses & ~loser_refuses).sum()),
        prefers_answer=int((~winner_refuses & loser_refuses).sum()),
        decided=len(decided),
        multi_turn=int(frame["multi_turn"].sum()),
        context_free=_share(frame["context_free"]),
        duplicates=int(frame["prompt_key"].duplicated().sum()),
        worst=texts.worst(),
        best=texts.best(),
    )


def evenness(counts: np.ndarray) -> float | None:
    """Pielou's evenness (1966, J. Theor. Biol. 13, 131–144): Shannon entropy over its maximum; 0 for one kind."""
    if len(counts) == 0:
        return None
    if len(counts) == 1:
        return 0.0
    return float(stats.entropy(counts) / math.log(len(counts)))


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(name): int(count) for name, count in values.value_counts().items()}


def _share(flags: pd.Series) -> Interval | None:
    return proportion(int(flags.sum()), len(flags))


def _wins(deltas: pd.Series, tie: float) -> Interval | None:
    wins, ties = int((deltas > tie).sum()), int((deltas.abs() <= tie).sum())
    return proportion(wins + ties / 2, len(deltas))


def _groups(frame: pd.DataFrame, column: str, total: int, tie: float) -> list[Group]:
    """Figures of the most frequent values of `column`, most frequent first."""
    shown = frame[column].value_counts().index[:GROUPS_SHOWN]
    rows = frame.loc[frame[column].isin(shown), [column, "compared", "delta"]]
    groups = dict(list(rows.groupby(column)))
    return [_group(str(name), groups[name], total, tie) for name in shown]


def _group(name: str, rows: pd.DataFrame, total: int, tie: float) -> Group:
    deltas = rows.loc[rows["compared"], "delta"]
    return Group(
        name=name,
        rows=len(rows),
        share=len(rows) / total,
        compared=len(deltas),
        wins=_wins(deltas, tie),
        mean_delta=mean_of(deltas.to_numpy()),
    )


def _length_bias(decided: pd.DataFrame) -> LengthBias:
    longer = decided["revised_words"] - decided["base_words"]
    pairs = decided[longer != 0]
    longer = longer[longer != 0]
    return LengthBias(
        pairs=len(pairs),
        longer_wins=_share((longer > 0) == (pairs["delta"] > 0)),
        correlation=_spearman(pairs["delta"], longer),
    )


def _spearman(first: pd.Series, second: pd.Series) -> float | None:
    """None where a side does not vary, or there are too few values for a rank to mean anything."""
    if len(first) < 3 or first.nunique() < 2 or second.nunique() < 2:
        return None
    return float(stats.spearmanr(first, second).statistic)


def _transitions(compared: pd.DataFrame) -> Transitions:
    before, after = compared["base_refuses"], compared["revised_refuses"]
    return Transitions(
        answer_to_answer=int((~before & ~after).sum()),
        answer_to_refusal=int((~before & after).sum()),
        refusal_to_answer=int((before & ~after).sum()),
        refusal_to_refusal=int((before & after).sum()),
    )


def _refusals_of_sides(decided: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Does the winner refuse, does the loser refuse: one flag a row each."""
    revised_wins = decided["delta"] > 0
    winner = decided["revised_refuses"].where(revised_wins, decided["base_refuses"])
    loser = decided["base_refuses"].where(revised_wins, decided["revised_refuses"])
    return winner, loser


class _Texts:
    """What is told from the texts: which rows that takes is known from the frame, and those are read together."""

    def __init__(self, pairs: PairFrame, compared: pd.DataFrame) -> None:
        self._drafts = _sample(pairs.rows["base_refuses"])
        self._revisions = _sample(compared["revised_refuses"])
        deltas = compared["delta"]
        # the extremes, and only those that lost or won
        self._worst = compared.loc[deltas < 0, ["delta"]].nsmallest(EXAMPLES, "delta").index.tolist()
        self._best = compared.loc[deltas > 0, ["delta"]].nlargest(EXAMPLES, "delta").index.tolist()
        self._pairs = pairs.read({*self._drafts, *self._revisions, *self._worst, *self._best})

    def draft_fit(self) -> Interval | None:
        pairs = [self._pairs[place] for place in self._drafts]
        return topic_fit([pair.prompt for pair in pairs], [pair.base_response for pair in pairs])

    def revision_fit(self) -> Interval | None:
        pairs = [self._pairs[place] for place in self._revisions]
        return topic_fit([pair.prompt for pair in pairs], [pair.revised_response for pair in pairs])

    def worst(self) -> list[Example]:
        return [_example(place, self._pairs[place]) for place in self._worst]

    def best(self) -> list[Example]:
        return [_example(place, self._pairs[place]) for place in self._best]


def _sample(refuses: pd.Series) -> list[int]:
    """Places of the rows whose topic is looked at; refusals have none."""
    answers = refuses.index[~refuses]
    return [int(answers[number]) for number in looked_at(len(answers))]


def _example(place: int, pair: ScoredPair) -> Example:
    named = {"id": pair.id or f"row {place + 1}", "delta": pair.delta}
    return Example.model_validate({name: getattr(pair, name) for name in Example.model_fields} | named)
