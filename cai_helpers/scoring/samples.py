"""The best and the worst of several answers to one conversation: what the scorer is asked, and what its answers come to.

A reward model is asked once a sample. A language model's feedback compares two at a time, so every sample is put against
every other: k (k − 1) / 2 comparisons. Against the first alone it would be k − 1, but the best and the worst would then
be compared by way of a third text, with twice the variance of the direct comparisons that `cai calibrate` has measured,
and its figures would promise too much. By all pairs the variance is 2 / k of a direct comparison's: never more.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from cai_helpers.critique.samples import usable_samples
from cai_helpers.schema import Trace
from cai_helpers.scoring.judge import PairScores, ResponsePair
from cai_helpers.settings import Settings


class Rated(NamedTuple):
    """A sample and what it is worth."""

    text: str
    place: int  # among all samples of the prompt, from 0
    rating: float


class Extremes(NamedTuple):
    best: Rated
    worst: Rated


def asked_about(trace: Trace) -> list[ResponsePair]:
    """The pairs of responses that are put to the scorer for one trace.

    Draft and revision, or every two of the usable samples; where there is no usable revision, the draft with itself.
    """
    if trace.outcome == "sampled":
        texts = [trace.drafts[place].text for place in usable_samples(trace.drafts)]
        return [ResponsePair(trace.prompt.messages, first, second) for first, second in combinations(texts, 2)]
    revision = trace.revision if trace.outcome == "revised" else trace.draft
    return [ResponsePair(trace.prompt.messages, trace.draft, revision)]


def extremes(trace: Trace, scores: list[PairScores], settings: Settings) -> Extremes:
    """Best and worst sample of a trace; scores: of `asked_about(trace)`, in its order.

    Of equal ratings the earlier sample counts as the better one, so that the two are never the same.
    """
    places = usable_samples(trace.drafts)
    rate = _ratings_by_comparison if settings.score.by == "ai_feedback" else _own_rewards
    rated = [
        Rated(trace.drafts[place].text, place, rating)
        for place, rating in zip(places, rate(len(places), scores), strict=True)
    ]
    order = sorted(rated, key=lambda sample: (-sample.rating, sample.place))
    return Extremes(order[0], order[-1])


def _own_rewards(count: int, scores: list[PairScores]) -> list[float]:
    """A reward model gives a text the same reward in whatever pair it stands."""
    rewards = [0.0] * count
    for (first, second), score in zip(combinations(range(count), 2), scores, strict=True):
        rewards[first], rewards[second] = score
    return rewards


def _ratings_by_comparison(count: int, scores: list[PairScores]) -> list[float]:
    """Log-odds against the average sample: the least-squares fit of one number a sample to all differences.

    With every pair compared once that is a sample's mean difference to all samples, itself included (David 1988, The
    Method of Paired Comparisons, section 4.3). Of two samples the difference is the one that was measured.
    """
    ratings = [0.0] * count
    for (first, second), score in zip(combinations(range(count), 2), scores, strict=True):
        difference = score.first - score.second
        ratings[first] += difference / count
        ratings[second] -= difference / count
    return ratings
