"""curate.min_delta=auto, and whether labels are right at the differences that pairs have."""

import random

import pytest

from cai_helpers.calibration.accuracy import JudgedGold, calibrate
from cai_helpers.calibration.differences import labels_at
from cai_helpers.calibration.threshold import threshold_of
from cai_helpers.curation.overrides import append_override, pair_key
from cai_helpers.errors import CaiError, NotEnoughPairs
from cai_helpers.manifest import Manifest
from cai_helpers.settings import Settings, load_settings
from cai_helpers.stages.analyze import analyze_pairs
from cai_helpers.stages.curate import curate_pairs
from cai_helpers.stages.train import train_policy
from cai_helpers.store import write_json, write_jsonl
from cai_helpers.workspace import Workspace

SCORER = "the scorer"
AUTO = ["curate.min_delta=auto", "curate.near_duplicates=null", "threads=1"]


def auto(*changes: str) -> Settings:
    return load_settings("smoke", [*AUTO, *changes])


def scored(workspace: Workspace) -> Workspace:
    """40 pairs that differ by 0.1, 0.2, … 4.0, labelled by SCORER."""
    rows = [
        {
            "prompt": f"What is the use of tool number {number}?",
            "base_response": f"It closes box {number} for you.",
            "revised_response": f"It opens box {number} for you.",
            "base_score": 0.0,
            "revised_score": number / 10,
            "chosen": "revised",
            "outcome": "sampled",
            "id": f"id{number}",
        }
        for number in range(1, 41)
    ]
    write_jsonl(workspace.pairs, rows)
    manifest = Manifest(
        stage="score",
        fingerprint={},
        outputs={},
        report={"scorer": SCORER},
        title="",
        lines=[],
        finished="",
        versions={},
    )
    write_json(workspace.manifest_of("score"), manifest.model_dump(mode="json"))
    return workspace


def calibrated(workspace: Workspace, right_at, scorer: str = SCORER):
    """A calibration on 400 gold pairs that differ by 0 to 4, of which a share `right_at(size)` is right."""
    dice = random.Random(0)
    sizes = [4 * (number + 1) / 400 for number in range(400)]
    gold = [JudgedGold(size if dice.random() < right_at(size) else -size, 0.0, 9, 9, "helpful") for size in sizes]
    found = calibrate(gold, 0.7, "gold")
    write_json(workspace.calibration, {"scorer": scorer, "calibration": found.model_dump(mode="json")})
    return found


def test_auto_takes_the_recommended_difference_and_the_report_says_it(workspace):
    found = calibrated(scored(workspace), lambda size: 0.5 if size < 2.4 else 0.95)
    assert found.min_delta > 0.4
    report = curate_pairs(auto(), workspace)
    fewer = sum(number / 10 < found.min_delta for number in range(1, 41))
    assert report.dropped == {"tie": fewer}
    assert 0 < fewer < 40
    figure = f"{found.min_delta:.2f}: auto: from there on labels are believed, right on {found.above.percent()}"
    assert dict(report.lines())["least score difference"].startswith(figure)
    assert dict(report.summary())["least score difference"].startswith(figure)
    assert report.advice is None
    assert analyze_pairs(auto(), workspace).statistics.ties == fewer


def test_auto_where_the_calibration_trusts_no_difference_keeps_no_label_and_training_refuses(workspace, capsys):
    calibrated(scored(workspace), lambda size: 0.5)
    report = curate_pairs(auto(), workspace)
    assert (report.kept, report.dropped) == (0, {"untrusted": 40})
    assert dict(report.lines())["least score difference"].startswith("none: auto, but of 400 gold pairs")
    assert "WARNING: curate.min_delta: none" in capsys.readouterr().out
    with pytest.raises(NotEnoughPairs, match="no label counts that the calibration does not trust") as refusal:
        train_policy(auto(), workspace)
    assert "Take another scorer" in refusal.value.todo
    analyze_pairs(auto(), workspace)  # the pairs can be looked at all the same


def test_what_a_person_decided_is_kept_where_the_scorer_is_not_trusted(workspace):
    calibrated(scored(workspace), lambda size: 0.5)
    key = pair_key("What is the use of tool number 7?", "It closes box 7 for you.", "It opens box 7 for you.")
    append_override(workspace.overrides, key, "id7", "draft")
    report = curate_pairs(auto(), workspace)
    assert (report.kept, report.dropped) == (1, {"untrusted": 39})


def test_auto_without_a_calibration_of_this_scorer_takes_0_and_says_so_aloud(workspace, capsys):
    calibrated(scored(workspace), lambda size: 0.5, scorer="another scorer")
    report = curate_pairs(auto(), workspace)
    assert (report.kept, report.dropped) == (40, {})
    assert "WARNING: curate.min_delta=auto, but the scorer was not calibrated" in capsys.readouterr().out
    assert dict(report.lines())["least score difference"].startswith("0.00: auto, but the scorer was not calibrated")


def test_a_calibration_that_comes_later_curates_again(workspace, capsys):
    scored(workspace)
    assert curate_pairs(auto(), workspace).kept == 40
    calibrated(workspace, lambda size: 0.5 if size < 2.4 else 0.95)
    capsys.readouterr()
    assert curate_pairs(auto(), workspace).kept < 40
    assert "curate: runs again: calibrated min_delta was" in capsys.readouterr().out


def test_of_a_file_from_elsewhere_nobody_knows_the_scorer(workspace, capsys):
    calibrated(scored(workspace), lambda size: 0.5)
    report = curate_pairs(auto(), workspace, workspace.pairs)
    assert report.kept == 40
    assert "the scorer of a file from elsewhere is unknown" in capsys.readouterr().out


def test_a_number_is_taken_as_it_is_and_sampled_pairs_with_none_are_advised(workspace):
    calibrated(scored(workspace), lambda size: 0.5)
    assert threshold_of(auto("curate.min_delta=0.5"), workspace).value == 0.5
    assert curate_pairs(auto("curate.min_delta=0.5"), workspace).dropped == {"tie": 4}
    unset = curate_pairs(auto("curate.min_delta=0"), workspace)
    assert unset.least_delta == ""
    assert "set curate.min_delta=auto" in unset.advice


@pytest.mark.parametrize("value", ["-1", "automatic"])
def test_another_min_delta_is_refused(value):
    with pytest.raises(CaiError, match=r"setting curate\.min_delta"):
        auto(f"curate.min_delta={value}")


def test_labels_count_by_where_the_pairs_lie_not_by_where_gold_pairs_do(workspace):
    found = calibrated(workspace, lambda size: 0.7 if size < 2 else 1.0)
    assert found.above.value > 0.8
    near = [max(found.min_delta, 0.3), 0.6, 1.0, 1.4] * 10  # where the scorer is right in 7 of 10
    labels = labels_at(found, near)
    assert labels.above == 40
    assert 0.6 < labels.right.value < 0.8
    clear = labels_at(found, [3.0, 3.9, 9.0])
    assert clear.right.value == 1.0
    assert clear.right.low < 1.0


def test_pairs_in_one_bin_have_its_very_interval(workspace):
    found = calibrated(workspace, lambda size: 0.9)
    middle = found.bins[3]
    right = labels_at(found, [(middle.low + middle.high) / 2] * 5).right
    assert (right.value, right.n) == (pytest.approx(middle.accuracy.value), middle.accuracy.n)
    assert (right.low, right.high) == (pytest.approx(middle.accuracy.low), pytest.approx(middle.accuracy.high))


def test_pairs_below_the_trusted_difference_do_not_count_and_without_one_none_do(workspace):
    found = calibrated(workspace, lambda size: 0.5 if size < 2.4 else 0.95)
    labels = labels_at(found, [found.min_delta / 2, found.min_delta, 3.0])
    assert (labels.min_delta, labels.above) == (found.min_delta, 2)
    assert labels_at(found, [found.min_delta / 2]).right is None
    coin = calibrated(workspace, lambda size: 0.5)
    assert labels_at(coin, [3.0]).model_dump() == {"min_delta": None, "above": 0, "right": None}
