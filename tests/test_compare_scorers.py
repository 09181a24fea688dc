"""Several scorers on the same gold pairs; and the judge of the evaluation among them."""

import pytest
from typer.testing import CliRunner

from cai_helpers.calibration.accuracy import load_calibration, trust_line
from cai_helpers.cli import app
from cai_helpers.errors import CaiError
from cai_helpers.scoring.judge import scored_by, scorer_identity
from cai_helpers.sections import RewardSource
from cai_helpers.settings import load_settings
from cai_helpers.stages.calibrate import calibrate_scorer
from cai_helpers.stages.compare_scorers import compare_scorers, named_source
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

USUAL, SHORT, SHORTEST = "embedded:reward", "embedded:reward:chat:64", "embedded:reward:chat:32"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a/b", RewardSource(model="a/b")),
        ("a/b:chat", RewardSource(model="a/b", input="chat")),
        ("a/b:pair:1024", RewardSource(model="a/b", max_length=1024)),
        ("embedded:other:chat:64", RewardSource(model="embedded:other", input="chat", max_length=64)),
        ("embedded:reward", RewardSource(model="embedded:reward", input="chat")),  # as the settings read it
        ("the/judge", RewardSource(model="the/judge", input="chat", max_length=2048)),
        ("embedded:reward:pair", RewardSource(model="embedded:reward")),
    ],
)
def test_a_scorer_is_named_as_in_the_settings_and_how_it_is_read_stands_behind_it(name, source):
    judge = "evaluate.scorer={model: the/judge, input: chat, max_length: 2048}"
    assert named_source(name, load_settings("smoke", [judge])) == source


def test_a_scorer_named_twice_nobody_or_an_impossible_length_is_refused(smoke, workspace):
    with pytest.raises(CaiError, match="names a scorer twice"):
        compare_scorers(smoke, workspace, [USUAL, "embedded:reward:chat:512"])
    with pytest.raises(CaiError, match="names nobody"):
        compare_scorers(smoke, workspace, [])
    with pytest.raises(CaiError, match="greater than or equal to 32"):
        compare_scorers(smoke, workspace, ["a/b:chat:8"])


@pytest.fixture(scope="module")
def compared(tmp_path_factory, smoke):
    workspace = Workspace(tmp_path_factory.mktemp("compared"))
    return workspace, compare_scorers(smoke, workspace, [USUAL, SHORTEST])


@pytest.mark.slow
def test_scorers_are_compared_on_the_same_pairs_in_one_table(compared):
    _, report = compared
    usual, _ = report.rows()
    assert list(usual) == ["scorer", "right", "harmless", "helpful", "min_delta", "verdict", "s/100 texts"]
    assert (usual["scorer"], usual["min_delta"], usual["verdict"]) == (USUAL, "0.00", "trusted")
    assert usual["harmless"].endswith("of 60")
    assert float(usual["s/100 texts"]) > 0
    right = [trial.calibration.accuracy.value for trial in report.trials]
    assert right[1] < right[0]  # at 32 tokens the question is lost
    assert [trial.scored_now for trial in report.trials] == [240, 240]
    assert report.lines()[0][0] == "scorer"
    assert report.lines()[2][0] == SHORTEST


@pytest.mark.slow
def test_a_comparison_is_kept_by_scorer_and_goes_on_with_a_new_name(compared, smoke, monkeypatch):
    workspace, report = compared
    monkeypatch.setattr("cai_helpers.scoring.judge.load_scorer", lambda settings: pytest.fail("nothing is to score"))
    again = compare_scorers(smoke, workspace, [SHORTEST, USUAL])
    assert again.trials == report.trials[::-1]
    assert calibrate_scorer(smoke, workspace).scored_now == 0  # the texts are known


@pytest.mark.slow
def test_each_compared_scorer_can_speak_as_the_judge_of_an_evaluation(compared, smoke):
    workspace, report = compared
    judge = scored_by(smoke, named_source(SHORTEST, smoke))
    calibration = load_calibration(workspace, scorer_identity(judge))
    assert calibration == report.trials[1].calibration
    assert trust_line(calibration) != trust_line(report.trials[0].calibration)


@pytest.mark.slow
def test_calibrating_tries_the_judge_as_well_where_it_is_another_one(compared):
    workspace, report = compared
    settings = load_settings(
        "smoke", ["evaluate.scorer=embedded:reward", "evaluate.scorer.input=chat", "evaluate.scorer.max_length=32"]
    )
    calibrated = calibrate_scorer(settings, workspace)
    assert calibrated.judge.endswith(f"chat input, 32 tokens: {trust_line(report.trials[1].calibration)}")
    assert ("judge on gold pairs", calibrated.judge) in calibrated.summary()
    same = load_settings("smoke", ["evaluate.scorer={model: embedded:reward, input: chat}"])
    assert calibrate_scorer(same, workspace).judge is None


@pytest.mark.slow
def test_the_command_prints_the_table(tmp_path):
    command = ["calibrate", "--preset", "smoke", "--workspace", str(tmp_path), "--limit", "32"]
    done = CliRunner().invoke(app, [*command, "--scorers", f"{USUAL}, {SHORT}"])
    assert done.exit_code == 0, done.output
    assert "Scorers on the same 32 gold pairs" in done.output
    assert [line.split()[0] for line in done.output.splitlines() if line.startswith("  embedded")][:2] == [USUAL, SHORT]
    assert len({row["id"] for row in read_jsonl(tmp_path / "calibration" / "scores.jsonl")}) == 128
