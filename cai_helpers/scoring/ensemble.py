"""One reward model or several: the mean of their z-scores, standardised once and for all stages alike."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.schema import Messages
from cai_helpers.scoring.reward_model import RewardModel, TextScorer, load_reward_model, source_identity
from cai_helpers.scoring.sanity import norming_texts
from cai_helpers.settings import Models

_ENSEMBLE = "mean of z-scores: "  # before the identities of its members
_CHUNK = 256  # texts that all members score before their means are given out


def reward_identity(models: Models) -> str:
    """What scores depend on, known without loading anything."""
    names = [source_identity(source) for source in models.rewards]
    return names[0] if len(names) == 1 else ensemble_identity(names)


def ensemble_identity(names: list[str]) -> str:
    return f"{_ENSEMBLE}{'; '.join(names)}"


def members_of(scorer: str) -> list[str]:
    """The identities of the members of an ensemble; of another scorer its own."""
    return scorer.removeprefix(_ENSEMBLE).split("; ") if scorer.startswith(_ENSEMBLE) else [scorer]


def load_reward(models: Models, batch_size: int) -> TextScorer:
    """The reward model of the settings, or the ensemble, loaded and tried.

    Raises:
        CaiError: a member cannot be loaded, has not one logit, lacks a label, or ranks an answer below unrelated words.
    """
    members = [load_reward_model(source, batch_size) for source in models.rewards]
    return members[0] if len(members) == 1 else Ensemble(members)


class Ensemble:
    """The mean of the members' z-scores. All members stay in memory.

    Each member is standardised by its mean and standard deviation over the norming texts of this package: the same for
    every stage and every batch, so that a stored score stays valid.
    """

    def __init__(self, members: list[RewardModel]) -> None:
        self._members = members
        self._norms = [_norm(member) for member in members]
        self.identity = ensemble_identity([member.identity for member in members])

    def __call__(self, pairs: list[tuple[Messages, str]]) -> list[float]:
        scores = dict(self.iterate(pairs))
        return [scores[index] for index in range(len(pairs))]

    def iterate(self, pairs: list[tuple[Messages, str]]) -> Iterator[tuple[int, float]]:
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            columns = [
                [(score - norm.mean) / norm.spread for score in member(chunk)]
                for member, norm in zip(self._members, self._norms, strict=True)
            ]
            for offset, scores in enumerate(zip(*columns, strict=True)):
                yield start + offset, statistics.fmean(scores)

    def notes(self) -> list[tuple[str, str]]:
        return [
            (f"{name}: {what}", figure)
            for member, norm in zip(self._members, self._norms, strict=True)
            for name in [member.identity]
            for what, figure in [*member.notes(), ("norm", f"mean {norm.mean:+.2f}, spread {norm.spread:.2f}")]
        ]


class _Norm(NamedTuple):
    mean: float
    spread: float  # standard deviation


def _norm(member: RewardModel) -> _Norm:
    scores = member(norming_texts())
    member.scored = member.truncated = 0
    spread = statistics.stdev(scores)
    if spread == 0:
        raise CaiError(
            f"The reward model {member.identity} gives one score to every text, so it has no z-scores.",
            "Take it out of models.reward_ensemble.",
        )
    return _Norm(statistics.fmean(scores), spread)
