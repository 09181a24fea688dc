"""Alarms: each is raised by the history that it is meant for, and by none of the others; a healthy run raises none."""

from __future__ import annotations

import math

import pytest

from cai_helpers.settings import Alarms
from cai_helpers.training.watch.alarms import first_raised, length_learned
from cai_helpers.training.watch.held_out import HeldOutPair, split_by_length

BETA = 0.1


def training_row(step: int, **changes) -> dict:
    """A row of a healthy run of 100 steps and 3 epochs: the margin grows, two thirds of it from the chosen side."""
    margin = 0.6 * (1 - math.exp(-step / 30))
    row = {
        "step": step, "epoch": step / 33, "seconds": step * 0.3, "loss": 0.693 - 0.4 * margin, "accuracy": 0.95,
        "margin": margin, "rewards_chosen": margin * 2 / 3, "rewards_rejected": -margin / 3,
        "logps_chosen": -60 + margin * 2 / 3 / BETA, "logps_rejected": -50 - margin / 3 / BETA,
        "lr": 1e-5, "grad_norm": 0.5 + 0.1 * math.sin(step), "tokens": step * 900.0,
    }  # fmt: skip
    return row | changes


def evaluation_row(step: int, loss: float) -> dict:
    return {"step": step, "epoch": step / 33, "seconds": step * 0.3, "eval_loss": loss, "eval_accuracy": 0.9}


def healthy(change=lambda step: {}) -> list[dict]:
    rows = []
    for step in range(5, 101, 5):
        rows.append(training_row(step, **change(step)))
        if step % 25 == 0:
            rows.append(evaluation_row(step, 0.70 - step / 500))
    return rows


def names(rows: list[dict], **thresholds) -> list[str]:
    return [alarm.name for alarm in first_raised(rows, Alarms(**thresholds), BETA)]


def test_a_healthy_history_raises_nothing():
    assert names(healthy()) == []


def test_chosen_answers_that_lose_a_quarter_of_their_log_probability_are_a_displacement():
    def fall(step):
        lost = 0.4 * step  # nats; the reference has -60
        return {
            "rewards_chosen": -lost * BETA, "logps_chosen": -60 - lost, "rewards_rejected": -lost * BETA - 0.5, "margin": 0.5
        }  # fmt: skip

    raised = {alarm.name: alarm for alarm in first_raised(healthy(fall), Alarms(), BETA)}
    alarm = raised["likelihood displacement"]
    assert alarm.step == 50  # the mean of steps 35 to 50 is 17 nats, that of 30 to 45 is 15: a quarter
    assert alarm.evidence == "the chosen answers fell from -60.0 to -77.0 nats, rewards/chosen is -1.700"
    assert "halve train.learning_rate" in alarm.advice
    assert "likelihood displacement" not in names(healthy(fall), displacement=0.7)


def test_an_accuracy_that_stays_at_a_coin_s_after_the_first_epoch_is_stuck():
    coin = healthy(lambda step: {"accuracy": 0.5 + 0.05 * (-1) ** step, "margin": 0.0, "rewards_chosen": 0.0})
    [alarm] = first_raised(coin, Alarms(), BETA)
    assert (alarm.name, alarm.step) == ("stuck at chance", 50)  # the first window that lies behind epoch 1 alone
    assert names(healthy(lambda step: {"accuracy": 0.5 if step < 40 else 0.9})) == []


def test_a_margin_that_comes_from_the_rejected_side_alone_is_named():
    def one_sided(step):
        margin = 0.01 * step
        return {"margin": margin, "rewards_chosen": -0.001 * step, "rewards_rejected": -0.011 * step}

    [alarm] = first_raised(healthy(one_sided), Alarms(), BETA)
    assert alarm.name == "margin from rejected only"
    assert alarm.evidence == "margin +0.125, of it chosen -0.013"
    assert names(healthy(one_sided), least_margin=2) == []


def evaluated(held_out: dict[int, float]) -> list[dict]:
    """A healthy run with these held-out losses, by step."""
    rows = []
    for row in (row for row in healthy() if "loss" in row):
        rows.append(row)
        if row["step"] in held_out:
            rows.append(evaluation_row(row["step"], held_out[row["step"]]))
    return rows


def test_a_held_out_loss_that_rises_while_the_training_loss_falls_is_overfitting():
    rows = evaluated({20: 0.60, 40: 0.55, 60: 0.58, 80: 0.62, 100: 0.66})
    [alarm] = first_raised(rows, Alarms(), BETA)
    assert (alarm.name, alarm.step) == ("overfitting", 80)
    assert alarm.evidence.startswith("held-out loss 0.5500 at step 40, 0.6200 now; training loss")
    assert names(rows, patience=4) == []
    worse = [row | {"loss": 0.5 + row["step"] / 500} if "loss" in row else row for row in rows]
    assert "overfitting" not in names(worse)  # both rise: that is no overfitting


def test_a_held_out_loss_that_comes_back_in_between_is_no_overfitting():
    assert names(evaluated({20: 0.60, 40: 0.55, 60: 0.58, 80: 0.56, 100: 0.66})) == []


def test_a_policy_fifty_nats_away_is_too_far():
    far = healthy(lambda step: {"rewards_rejected": -0.08 * step})
    [alarm] = first_raised(far, Alarms(), BETA)
    assert (alarm.name, alarm.step) == ("KL too large", 75)  # the mean of steps 60 to 75 is 54 nats
    assert names(far, kl=90) == []


def test_one_gradient_norm_far_above_the_others_is_a_spike_and_a_skipped_step_is_none():
    [alarm] = first_raised(healthy(lambda step: {"grad_norm": 9.0} if step == 60 else {}), Alarms(), BETA)
    assert (alarm.name, alarm.step) == ("gradient spike", 60)
    assert names(healthy(lambda step: {"grad_norm": None} if step == 60 else {})) == []
    assert names(healthy(lambda step: {"grad_norm": 9.0} if step == 5 else {})) == []  # nothing to compare with yet


def test_a_gradient_norm_is_measured_against_those_before_it_and_not_against_itself():
    norms = dict(zip(range(5, 35, 5), [1.0, 1.0, 1.0, 9.0, 9.0, 12.0], strict=True))
    rows = [training_row(step, grad_norm=norm) for step, norm in norms.items()]
    [alarm] = first_raised(rows, Alarms(), BETA)
    assert (alarm.name, alarm.step, alarm.evidence) == ("gradient spike", 30, "norm 12.00, median 1.00")


def pair(chosen: int, rejected: int, margin: float) -> HeldOutPair:
    return HeldOutPair(
        id="a", chosen_side="revised", chosen_tokens=chosen, rejected_tokens=rejected, reward_chosen=margin / 2,
        reward_rejected=-margin / 2,
    )  # fmt: skip


def test_pairs_ranked_by_length_alone_are_found_out():
    by_length = [pair(30, 20, 1.0)] * 20 + [pair(20, 30, -1.0)] * 10
    split = split_by_length(by_length)
    assert (split.direction, split.usual.value, split.other.value) == ("longer", 1.0, 0.0)
    alarm = length_learned(split, Alarms(), step=93)
    assert (alarm.name, alarm.step) == ("length instead of content", 93)
    assert "100 % (84–100 %) where the chosen side is the longer one" in alarm.evidence


@pytest.mark.parametrize(
    "pairs",
    [
        [pair(30, 20, 1.0)] * 20 + [pair(20, 30, 1.0)] * 10,  # by content
        [pair(30, 20, 1.0)] * 20 + [pair(20, 30, -1.0)] * 4,  # too few to say
        [pair(20, 30, 1.0)] * 10 + [pair(30, 20, 1.0)] * 4 + [pair(30, 20, -1.0)] * 4,  # intervals overlap
    ],
)
def test_pairs_ranked_by_content_or_too_few_of_them_raise_nothing(pairs):
    assert length_learned(split_by_length(pairs), Alarms(), step=1) is None


def test_where_all_pairs_point_one_way_length_and_content_cannot_be_told_apart():
    assert split_by_length([pair(30, 20, 1.0)] * 20) is None
