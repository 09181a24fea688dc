"""Answers of several policies to the same prompts → figures with intervals, pooled and by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cai_helpers.evaluation.figures import (
    MAIN,
    PAIRINGS,
    READABLE_CATEGORY,
    STAGE2,
    STAGE3,
    Answer,
    Change,
    Comparison,
    LengthControlled,
    PolicyFigures,
    Response,
    Shift,
    Versus,
    wins_of,
)
from cai_helpers.evaluation.length_control import length_controlled, why_not
from cai_helpers.measures.intervals import Interval, mean_of, paired_difference, proportion
from cai_helpers.measures.prevalence import rogan_gladen
from cai_helpers.measures.refusals import agreement


def compare(responses: Sequence[Response]) -> Comparison:
    """The figures of a non-empty group. Win rate: Wilson, ties as half wins; changes: Newcombe's paired interval."""
    main = versus(responses, MAIN)
    before, after = _of(responses, STAGE2), _of(responses, STAGE3)
    fit, logp = (
        _fit_shift(responses),
        _shift([(one.logp, other.logp) for one, other in zip(before, after, strict=True)]),
    )
    policies = {
        name: policy_figures(_of(responses, name)) for name in responses[0].answers if _all_have(responses, name)
    }
    return Comparison(
        prompts=len(responses),
        wins=main.wins,
        ties=main.ties,
        losses=main.losses,
        win_rate=main.win_rate,
        mean_delta=main.mean_delta,
        refusals=_change(responses, lambda answer: answer.refusal == "full"),
        partial=_change(responses, lambda answer: answer.refusal == "partial"),
        truncated=_change(responses, lambda answer: answer.finish == "length"),
        degenerate=_change(responses, lambda answer: answer.degenerate),
        fit_before=policies[STAGE2].fit,
        fit_after=policies[STAGE3].fit,
        fit=fit,
        logp=logp if logp.difference else None,
        kl=_mean([answer.log_ratio for answer in after]),
        words_before=policies[STAGE2].words,
        words_after=policies[STAGE3].words,
        policies=policies,
        against={name: versus(responses, name) for name in PAIRINGS if all(name in one.deltas for one in responses)},
        length_controlled=_at_equal_length(responses),
        conversations=len({one.conversation or one.id for one in responses}),
    )


def compare_by_category(responses: Sequence[Response]) -> dict[str, Comparison]:
    """Harmful and benign requests first, then whatever other categories there are."""
    names = sorted(
        {response.category for response in responses}, key=lambda name: (name not in READABLE_CATEGORY, name)
    )
    return {name: compare([response for response in responses if response.category == name]) for name in names}


def versus(responses: Sequence[Response], pairing: str) -> Versus:
    """Who of the two wins, by the judge's score."""
    deltas = [response.deltas[pairing] for response in responses]
    counts = Counter(map(wins_of, deltas))
    win_rate = proportion(counts[1.0] + counts[0.5] / 2, len(deltas))
    assert win_rate is not None, "compare needs at least one response"
    first, second = PAIRINGS[pairing]
    return Versus(
        first=first,
        second=second,
        wins=counts[1.0],
        ties=counts[0.5],
        losses=counts[0.0],
        win_rate=win_rate,
        mean_delta=mean_of(np.array(deltas)),
    )


def policy_figures(answers: Sequence[Answer]) -> PolicyFigures:
    """One policy's own figures on a non-empty group."""
    refusals = sum(answer.refuses for answer in answers)
    fits = [answer.fit for answer in answers if answer.fit is not None and not answer.refuses]
    return PolicyFigures(
        answers=len(answers),
        refusals=_share(answer.refuses for answer in answers),
        refusals_corrected=rogan_gladen(refusals, len(answers), agreement()),
        partial=_share(answer.refusal == "partial" for answer in answers),
        truncated=_share(answer.finish == "length" for answer in answers),
        degenerate=_share(answer.degenerate for answer in answers),
        fit=proportion(sum(fits), len(fits)) if len(fits) > 1 else None,
        logp=_mean([answer.logp for answer in answers]),
        words=float(np.mean([len(answer.text.split()) for answer in answers])),
        characters=float(np.mean([len(answer.text) for answer in answers])),
        score=mean_of(np.array([answer.score for answer in answers])),
    )


def _at_equal_length(responses: Sequence[Response]) -> LengthControlled:
    after, before = ([len(one.text) for one in _of(responses, policy)] for policy in (STAGE3, STAGE2))
    wins = [wins_of(response.delta) for response in responses]
    return LengthControlled(win_rate=length_controlled(wins, after, before), note=why_not(after, before) or "")


def _of(responses: Sequence[Response], policy: str) -> list[Answer]:
    return [response.answers[policy] for response in responses]


def _all_have(responses: Sequence[Response], policy: str) -> bool:
    return all(policy in response.answers for response in responses)


def _fit_shift(responses: Sequence[Response]) -> Shift:
    """On prompts that neither refuses: "I can't help with that" has nothing in common with any prompt."""
    both = [(one.answers[STAGE2], one.answers[STAGE3]) for one in responses]
    return _shift([(before.fit, after.fit) for before, after in both if not (before.refuses or after.refuses)])


def _shift(pairs: list[tuple[float | None, float | None]]) -> Shift:
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    befores, afters = np.array([one for one, _ in known]), np.array([one for _, one in known])
    return Shift(before=mean_of(befores), after=mean_of(afters), difference=mean_of(afters - befores))


def _mean(values: Sequence[float | None]) -> Interval | None:
    return mean_of(np.array([value for value in values if value is not None]))


def _share(flags: Iterable[bool]) -> Interval:
    found = list(flags)
    share = proportion(sum(found), len(found))
    assert share is not None, "a group holds at least one answer"
    return share


def _change(responses: Sequence[Response], has: Callable[[Answer], bool]) -> Change:
    counts = Counter((has(one.answers[STAGE2]), has(one.answers[STAGE3])) for one in responses)
    both, only_before = counts[True, True], counts[True, False]
    only_after, neither = counts[False, True], counts[False, False]
    return Change(
        before=proportion(both + only_before, len(responses)),
        after=proportion(both + only_after, len(responses)),
        difference=paired_difference(both, only_before, only_after, neither),
    )
