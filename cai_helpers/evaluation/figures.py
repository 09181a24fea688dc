"""What an evaluation comes to, as it stands in metrics.json: answers, figures by policy and category, the verdict.

The form of the rows of evaluation/responses.jsonl (`Response`) and of `metrics.json["evaluate"]` (`Comparison` a group of
prompts, `Judgement`). Shares are in [0, 1], log-probabilities in nats; every `Interval` is a 95 % one.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.measures.intervals import Interval
from cai_helpers.schema import BENIGN, HARMFUL, Record

# The policies that answer. BASE has no adapter; AGAIN is Stage 2 under another seed: what chance alone changes.
BASE, STAGE2, STAGE3, AGAIN = "base", "stage2", "stage3", "stage2_again"
POLICY_NAME = {BASE: "base model", STAGE2: "Stage 2", STAGE3: "Stage 3", AGAIN: "Stage 2 again, another seed"}

# Who is held against whom; the first one wins where its answer scores higher.
MAIN, OF_BASE, OVER_BASE, OF_CHANCE = "stage3/stage2", "base/stage2", "stage3/base", "stage2_again/stage2"
PAIRINGS: dict[str, tuple[str, str]] = {
    MAIN: (STAGE3, STAGE2),
    OF_BASE: (BASE, STAGE2),
    OVER_BASE: (STAGE3, BASE),
    OF_CHANCE: (AGAIN, STAGE2),
}

TIE = 0.001  # score difference up to which two answers count as equal
HELD_OUT = "held-out prompts"  # the set that the verdict rests on
READABLE_CATEGORY = {HARMFUL: "harmful requests", BENIGN: "benign requests"}
OWN_LABELLER = "judged by its own labeller"  # beside every win rate whose judge labelled the training pairs

Refusal = Literal["full", "partial", "none"]


class Answer(Record):
    """What one policy said to one prompt, and what was measured of it."""

    text: str
    finish: Literal["stop", "length"]  # "length": cut off at the token limit
    refusal: Refusal
    score: float  # the judge's; of AI feedback, in the pair with Stage 2
    degenerate: bool = False  # empty, or going round in circles
    fit: float | None = None  # share of other prompts with which it has less in common than with its own; 0.5 is chance
    logp: float | None = None  # mean log-probability of a token under the base model; None: not measured
    log_ratio: float | None = None  # of the whole text: log-probability under Stage 3 less that under Stage 2

    @property
    def refuses(self) -> bool:
        return self.refusal == "full"


class Response(Record):
    """One prompt, answered by every policy: a row of evaluation/responses.jsonl."""

    id: str
    category: str
    prompt: str
    answers: dict[str, Answer]  # policy → its answer; "stage2" and "stage3" always
    deltas: dict[str, float]  # pairing → score of the first less score of the second; 0 for two equal texts
    prompt_set: str = HELD_OUT
    conversation: str = ""  # prompts of the same one are not independent; "": it stands alone

    @model_validator(mode="before")
    @classmethod
    def _accept_the_flat_form(cls, row: Any) -> Any:
        """Earlier versions wrote stage2, stage2_score, … beside each other, of two policies."""
        if not isinstance(row, dict) or "answers" in row:
            return row
        answers = {
            stage: {
                "text": row[stage],
                "finish": row[f"{stage}_finish"],
                "refusal": "full" if row[f"{stage}_refuses"] else "none",
                "score": row[f"{stage}_score"],
                "degenerate": is_degenerate(row[stage]),
            }
            for stage in (STAGE2, STAGE3)
        }
        same = row[STAGE2] == row[STAGE3]
        rest = {name: value for name, value in row.items() if not name.startswith((STAGE2, STAGE3))}
        delta = 0.0 if same else row["stage3_score"] - row["stage2_score"]
        return {**rest, "answers": answers, "deltas": {MAIN: delta}}

    @property
    def stage2(self) -> str:
        return self.answers[STAGE2].text

    @property
    def stage3(self) -> str:
        return self.answers[STAGE3].text

    @property
    def stage2_score(self) -> float:
        return self.answers[STAGE2].score

    @property
    def stage3_score(self) -> float:
        return self.answers[STAGE3].score

    @property
    def stage2_refuses(self) -> bool:
        return self.answers[STAGE2].refuses

    @property
    def stage3_refuses(self) -> bool:
        return self.answers[STAGE3].refuses

    @property
    def delta(self) -> float:
        """Reward of Stage 3 minus reward of Stage 2; two equal texts have none."""
        return self.deltas[MAIN]


class Change(Record):
    """A share before (Stage 2) and after (Stage 3), on the same prompts, and the paired difference."""

    before: Interval
    after: Interval
    difference: Interval


class Shift(Record):
    """A mean before and after, and the mean of the differences prompt by prompt; None: not measured, or too few."""

    before: Interval | None
    after: Interval | None
    difference: Interval | None


class PolicyFigures(Record):
    """One policy on one group of prompts."""

    answers: int
    refusals: Interval  # full ones
    partial: Interval  # partial refusals: declined in part, or answered beside the point
    truncated: Interval  # cut off at the token limit
    degenerate: Interval
    fit: Interval | None  # topic fit; full refusals left out
    logp: Interval | None  # under the base model, per token
    words: float  # mean length of an answer
    characters: float
    score: Interval | None  # the judge's
    refusals_corrected: Interval | None = None  # full refusals, corrected for what the counter misses (Rogan–Gladen)


class Versus(Record):
    """One policy against another on one group of prompts."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    win_rate: Interval  # of the first; a tie as half a win
    mean_delta: Interval | None  # score of the first less score of the second


class LengthControlled(Record):
    """Win rate of Stage 3 as it would be at equal length (see length_control); shown, never a gate."""

    win_rate: Interval | None
    note: str = ""  # why there is none: "lengths hardly overlap"


class Comparison(Record):
    """Stage 3 against Stage 2 on one group of prompts, and every policy's own figures."""

    prompts: int
    wins: int
    ties: int
    losses: int
    win_rate: Interval  # a tie as half a win
    mean_delta: Interval | None  # reward of Stage 3 minus reward of Stage 2
    refusals: Change
    truncated: Change  # stopped by the token limit
    degenerate: Change  # empty, or repeating itself
    fit_before: Interval | None  # answers that speak of their own prompt, see topic.topic_fit; refusals left out
    fit_after: Interval | None
    words_before: float
    words_after: float
    partial: Change | None = None  # partial refusals
    fit: Shift | None = None  # on the prompts that neither refuses
    logp: Shift | None = None  # the base model's log-probability of a token of the answer
    kl: Interval | None = None  # KL(Stage 3 ‖ Stage 2) of an answer in nats: mean log-ratio on Stage 3's own answers
    length_controlled: LengthControlled | None = None
    policies: dict[str, PolicyFigures] = Field(default_factory=dict)  # policy → its figures
    against: dict[str, Versus] = Field(default_factory=dict)  # pairing ("stage3/stage2", "base/stage2", …) → who wins
    conversations: int | None = None  # independent ones; fewer than `prompts` where some share one


class TwoOptions(Record):
    """Of two answers to a prompt, how often the policy finds the better one more likely; damage shows as a fall."""

    name: str
    pairs: int
    right: dict[str, Interval]  # policy → share
    change: Interval | None  # Stage 3 less Stage 2, paired


class Check(Record):
    """One thing the verdict looked at: a figure, the bound it was held against, and what came of it."""

    name: str
    kind: Literal["worse", "over-refusing", "needed"]  # what it speaks for where it holds
    value: float  # as counted
    bound: float  # the one-sided bound at its level: corrected by Holm for "worse"
    threshold: float
    holds: bool
    level: float  # one-sided error that the bound allows
    prompts: int
    words: str  # the figure for a person
    needed: int | None = None  # prompts with which the figure found would decide; None: more of them would not help


Verdict = Literal["better", "worse", "over-refusing", "not shown"]


class Judgement(Record):
    """The verdict by verdict.RULE, its reason, and every check behind it."""

    verdict: Verdict
    reason: str
    checks: list[Check] = Field(default_factory=list)
    only_as_base: bool = False  # better than Stage 2, but only as far as the base model already is

    @model_validator(mode="before")
    @classmethod
    def _accept_the_former_name(cls, row: Any) -> Any:
        if isinstance(row, dict) and row.get("verdict") == "no clear difference":
            return {**row, "verdict": "not shown"}
        return row


def wins_of(delta: float) -> float:
    """1, ½ or 0: the first one wins, neither, or the second."""
    return 1.0 if delta > TIE else 0.0 if delta < -TIE else 0.5


def readable(category: str) -> str:
    return READABLE_CATEGORY.get(category, category)
