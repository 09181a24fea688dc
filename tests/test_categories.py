"""The four categories: what counts, what does not, and targets that only a whole interval can reach or miss."""

from __future__ import annotations

import pytest

from cai_helpers.evaluation.builtin import load_choices, load_counterfactuals, load_premises, load_prompts
from cai_helpers.evaluation.categories import GUESSING, TOY_NOTE, mean_of_shares, measure
from cai_helpers.evaluation.figures import Answer, Response, TwoOptions
from cai_helpers.measures.intervals import proportion

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Of course: take the blue one and put it on the shelf."
POLICIES = ("base", "stage2", "stage3")


def said(text: str, score: float = 0.0, **facts) -> Answer:
    refusal = "full" if text == REFUSAL else "none"
    return Answer(**{"text": text, "finish": "stop", "refusal": refusal, "score": score, "fit": 0.9, **facts})


def responses(name: str, answers) -> list[Response]:
    """answers: function of (policy, place, prompt) → Answer."""
    rows = []
    for place, prompt in enumerate(load_prompts(name)):
        by_policy = {policy: answers(policy, place, prompt) for policy in POLICIES}
        deltas = {
            "stage3/stage2": by_policy["stage3"].score - by_policy["stage2"].score,
            "base/stage2": by_policy["base"].score - by_policy["stage2"].score,
        }
        rows.append(
            Response(
                id=prompt.id,
                category=prompt.category,
                prompt=prompt.text,
                answers=by_policy,
                deltas=deltas,
                prompt_set=name,
            )
        )
    return rows


def options(name: str, **right: int) -> TwoOptions:
    count = len(load_choices(name))
    return TwoOptions(
        name=name,
        pairs=count,
        right={policy: proportion(right.get(policy, count // 2), count) for policy in POLICIES},
        change=None,
    )


def value(categories, category: str, policy: str = "stage3") -> float:
    return categories.scores[category][policy].value.value


def test_harm_prevention_is_the_share_of_unsafe_requests_that_are_refused():
    rows = responses("unsafe", lambda policy, place, _: said(REFUSAL if policy == "stage3" and place < 64 else ANSWER))
    found = measure(rows, [])
    assert value(found, "harm prevention") == 64 / 71
    assert value(found, "harm prevention", "stage2") == 0
    assert list(found.scores) == ["harm prevention"]
    assert found.aggregate == {}


def test_a_win_rate_stands_beside_where_a_judge_scored():
    score = {"base": -1.0, "stage2": 0.0, "stage3": 1.0}
    found = measure(responses("unsafe", lambda policy, *_: said(ANSWER, score[policy])), [])
    assert {policy: rate.value for policy, rate in found.wins["harm prevention"].items()} == {"base": 0, "stage3": 1}
    assert "helpfulness" not in found.wins


@pytest.mark.parametrize(
    "bad", [said(REFUSAL), said(ANSWER, degenerate=True), said(ANSWER, fit=0.5), said(ANSWER, fit=0.2)]
)
def test_an_everyday_request_is_not_helped_by_a_refusal_a_loop_or_another_topic(bad):
    rows = responses("helpfulness", lambda policy, place, _: bad if place % 4 == 0 else said(ANSWER))
    assert value(measure(rows, []), "helpfulness") == 0.75


def test_truthfulness_joins_what_is_more_likely_and_what_is_named():
    premises = load_premises()

    def corrects(policy, place, prompt):
        choice = premises[prompt.id].choice
        return said(choice.right if policy == "stage3" else choice.wrong)

    found = measure(responses("premises", corrects), [options("questions", stage3=62), options("premises", stage3=60)])
    assert value(found, "truthfulness") == 1.0
    assert value(found, "truthfulness", "stage2") == pytest.approx((61 / 122 + 0) / 2)
    assert found.scores["truthfulness"]["stage2"].note == GUESSING
    assert found.scores["truthfulness"]["stage3"].note == ""


def test_a_pair_is_treated_alike_when_refusal_length_and_score_agree():
    def fair(policy, place, prompt):
        return said(ANSWER, score=(place // 2) % 5)

    assert value(measure(responses("counterfactuals", fair), []), "fairness") == 1.0

    seconds = {pair.second for pair in load_counterfactuals()}

    def harsher(change):
        def answers(policy, place, prompt):
            return change if prompt.text in seconds and place % 4 == 1 else said(ANSWER, score=(place // 2) % 5)

        return value(measure(responses("counterfactuals", answers), []), "fairness")

    assert harsher(said(REFUSAL, score=0.0)) == 0.5
    assert harsher(said(ANSWER + " " + ANSWER, score=0.0)) == 0.5
    assert harsher(said(ANSWER, score=-9.0)) == 0.5


def test_fairness_takes_the_two_option_items_in():
    found = measure([], [options("options", stage3=61, stage2=30)])
    assert value(found, "fairness") == 1.0
    assert value(found, "fairness", "stage2") == pytest.approx(30 / 61)


def everything(refused: int, helped: int):
    premises = load_premises()
    rows = responses("unsafe", lambda policy, place, _: said(REFUSAL if place < refused else ANSWER))
    rows += responses("helpfulness", lambda policy, place, _: said(ANSWER if place < helped else REFUSAL))
    rows += responses("premises", lambda policy, place, prompt: said(premises[prompt.id].choice.right))
    rows += responses("counterfactuals", lambda policy, place, _: said(ANSWER))
    return measure(
        rows, [options(name, stage3=60, stage2=60, base=60) for name in ("questions", "premises", "options")]
    )


def test_the_aggregate_is_the_mean_of_all_four_and_its_interval_is_narrower_than_theirs():
    found = everything(refused=50, helped=50)
    four = [found.scores[name]["stage3"].value for name in found.scores]
    assert found.aggregate["stage3"].value == pytest.approx(sum(one.value for one in four) / 4)
    widths = [one.high - one.low for one in four]
    assert found.aggregate["stage3"].high - found.aggregate["stage3"].low < max(widths)
    assert found.aggregate["stage3"].n == sum(one.n for one in four)


def test_targets_are_reached_missed_or_cannot_be_told():
    assert standings(everything(refused=71, helped=64)) == {
        "aggregate": "ok",
        "harm prevention": "ok",
        "helpfulness kept": "ok",
        "refusals of unsafe requests": "cannot be told with this many prompts",
    }
    missed = standings(everything(refused=20, helped=20))
    assert missed["harm prevention"] == missed["helpfulness kept"] == "falls short"
    unclear = standings(everything(refused=50, helped=40))
    assert unclear["harm prevention"] == unclear["helpfulness kept"] == "cannot be told with this many prompts"


def standings(found):
    return {aim.name: aim.standing for aim in found.aims}


def test_more_refusals_than_stage_2_are_told_from_fewer():
    more = responses(
        "unsafe", lambda policy, place, _: said(REFUSAL if place < (60 if policy == "stage3" else 30) else ANSWER)
    )
    fewer = responses(
        "unsafe", lambda policy, place, _: said(REFUSAL if place < (30 if policy == "stage3" else 60) else ANSWER)
    )
    assert standings(measure(more, []))["refusals of unsafe requests"] == "ok"
    assert standings(measure(fewer, []))["refusals of unsafe requests"] == "falls short"


def test_scary_prompts_that_are_refused_stand_beside_the_table():
    found = measure(responses("scary", lambda policy, place, _: said(REFUSAL if place < 33 else ANSWER)), [])
    assert found.scary_refused["stage3"].value == 0.5
    assert found.scores == {}


def test_held_out_prompts_do_not_count():
    rows = [
        row.model_copy(update={"prompt_set": "held-out prompts"})
        for row in responses("unsafe", lambda *_: said(REFUSAL))
    ]
    assert measure(rows, []).scores == {}


def test_a_set_that_was_limited_counts_with_what_it_has():
    rows = responses("unsafe", lambda *_: said(REFUSAL))[:7]
    assert measure(rows, []).scores["harm prevention"]["stage3"].value.n == 7


def test_the_toy_world_says_that_it_knows_none_of_this():
    rows = responses("unsafe", lambda *_: said(REFUSAL))
    assert measure(rows, [], toy=True).note == TOY_NOTE
    assert ("categories", TOY_NOTE) in measure(rows, [], toy=True).lines()
    assert measure(rows, []).note == ""


def test_the_interval_of_a_mean_of_shares_is_movers():
    half = proportion(50, 100)
    mean = mean_of_shares([half, half])
    assert mean.value == 0.5
    assert mean.high - mean.value == pytest.approx((half.high - half.value) / 2**0.5)
