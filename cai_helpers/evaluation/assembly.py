"""Answers, scores and log-probabilities → responses: one row a prompt, all that is known of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cai_helpers.evaluation.answers import Answers
from cai_helpers.evaluation.figures import BASE, MAIN, PAIRINGS, STAGE2, STAGE3, Answer, Response
from cai_helpers.evaluation.likelihood import Likelihood, Text
from cai_helpers.evaluation.prompt_sets import Asked
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.measures.refusals import classify
from cai_helpers.measures.topic import answer_fits
from cai_helpers.scoring.judge import PairScores, ResponsePair, judge_pairs
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore


class Judgements(NamedTuple):
    scores: dict[tuple[str, str, str], PairScores]  # (set, prompt id, pairing) → both scores
    notes: list[tuple[str, str]]  # what the scorer says of this call


def likelihoods_wanted(asked: Sequence[Asked], answers: Answers, policies: Sequence[str]) -> dict[str, list[Text]]:
    """Policy → texts: the base (Stage 2 where that is the base) finds every answer likely or not; 2 and 3 those of Stage 3."""
    base = base_of(policies)
    every: list[Text] = [
        (one.prompt.messages, answers[one.prompt.id, policy].text)
        for policy in (*({BASE} & set(policies)), STAGE2, STAGE3)
        for one in asked
    ]
    own: list[Text] = [(one.prompt.messages, answers[one.prompt.id, STAGE3].text) for one in asked]
    wanted = {STAGE2: own, STAGE3: own}
    wanted[base] = [*wanted.get(base, []), *every]
    return wanted


def base_of(policies: Sequence[str]) -> str:
    """Who plays the base model: without a Stage-2 adapter, Stage 2 is the base."""
    return BASE if BASE in policies else STAGE2


def judged(settings: Settings, asked: Sequence[Asked], answers: Answers, store: JsonlStore) -> Judgements:
    """Every pairing whose two policies answered, scored; an answer that stands in several pairings is scored once."""
    rows = [
        (one, pairing)
        for pairing, (first, second) in PAIRINGS.items()
        for one in asked
        if (one.prompt.id, first) in answers and (one.prompt.id, second) in answers
    ]
    pairs = [
        ResponsePair(
            one.prompt.messages, *(answers[one.prompt.id, policy].text for policy in reversed(PAIRINGS[pairing]))
        )
        for one, pairing in rows
    ]
    found = judge_pairs(settings, pairs, store)
    return Judgements(
        {
            (one.prompt_set, one.prompt.id, pairing): scores
            for (one, pairing), scores in zip(rows, found.scores, strict=True)
        },
        found.notes,
    )


def responses_of(
    asked: Sequence[Asked],
    answers: Answers,
    judgements: Judgements,
    likelihood: Likelihood,
    policies: Sequence[str],
) -> list[Response]:
    """A response for each prompt, in the order of `asked`; topic fit is measured within each set."""
    fits = _fits(asked, answers, policies)
    return [_response(one, answers, judgements, likelihood, policies, fits) for one in asked]


def _response(
    one: Asked,
    answers: Answers,
    judgements: Judgements,
    likelihood: Likelihood,
    policies: Sequence[str],
    fits: dict[tuple[str, str, str], float],
) -> Response:
    name, place = one.prompt.id, one.prompt_set
    texts = {policy: answers[name, policy].text for policy in policies if (name, policy) in answers}
    scores: dict[str, float] = {}
    deltas: dict[str, float] = {}
    for pairing, (first, second) in PAIRINGS.items():
        if (found := judgements.scores.get((place, name, pairing))) is None:
            continue
        deltas[pairing] = 0.0 if texts[first] == texts[second] else found.second - found.first
        # of AI feedback a score belongs to its pair: that with Stage 2 goes first
        scores = {second: found.first, first: found.second} | scores
    assert MAIN in deltas
    return Response(
        id=name,
        category=one.prompt.category,
        prompt=one.prompt.text,
        prompt_set=place,
        conversation=one.conversation,
        deltas=deltas,
        answers={
            policy: Answer(
                text=text,
                finish=answers[name, policy].finish,
                refusal=classify(text),
                score=scores[policy],
                degenerate=is_degenerate(text),
                fit=fits[place, name, policy],
                **_likelihoods(one, text, policy, likelihood, policies),
            )
            for policy, text in texts.items()
        },
    )


def _likelihoods(
    one: Asked, text: str, policy: str, likelihood: Likelihood, policies: Sequence[str]
) -> dict[str, float | None]:
    if policy not in (BASE, STAGE2, STAGE3):
        return {}
    asked = (one.prompt.messages, text)
    logp = likelihood.of(base_of(policies), asked).per_token
    if policy != STAGE3:
        return {"logp": logp}
    return {"logp": logp, "log_ratio": likelihood.of(STAGE3, asked).total - likelihood.of(STAGE2, asked).total}


def _fits(asked: Sequence[Asked], answers: Answers, policies: Sequence[str]) -> dict[tuple[str, str, str], float]:
    fits: dict[tuple[str, str, str], float] = {}
    for place in dict.fromkeys(one.prompt_set for one in asked):
        for policy in policies:
            rows = [one for one in asked if one.prompt_set == place and (one.prompt.id, policy) in answers]
            found = answer_fits(
                [one.prompt.text for one in rows], [answers[one.prompt.id, policy].text for one in rows]
            )
            fits |= {(place, one.prompt.id, policy): fit for one, fit in zip(rows, found, strict=True)}
    return fits
