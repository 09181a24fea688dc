"""The stage on the embedded reward model, and where its sentence is shown."""

import pytest
from html_reader import text_of
from typer.testing import CliRunner

from cai_helpers.calibration.accuracy import NOT_CALIBRATED, load_calibration, trust_line
from cai_helpers.cli import app
from cai_helpers.errors import CaiError
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.pipeline import _calibrated
from cai_helpers.scoring.judge import scorer_identity
from cai_helpers.settings import load_settings
from cai_helpers.stages.calibrate import calibrate_scorer
from cai_helpers.stages.score import ScoreReport
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, smoke):
    """The embedded reward model on its own gold pairs."""
    workspace = Workspace(tmp_path_factory.mktemp("calibrated"))
    return workspace, calibrate_scorer(smoke, workspace)


def test_the_embedded_reward_model_is_trusted_on_its_own_gold_pairs(calibrated):
    workspace, report = calibrated
    assert (report.calibration.pairs, report.scored_now, report.left_out) == (120, 240, {})
    assert report.calibration.accuracy.value > 0.9
    assert report.calibration.verdict == "trusted"
    assert (workspace.reports / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_complete_calibration_does_nothing_and_a_killed_one_scores_only_the_rest(calibrated, smoke, tmp_path):
    workspace, report = calibrated
    assert calibrate_scorer(smoke, workspace) == report
    killed = Workspace(tmp_path)
    write_jsonl(killed.calibration_scores, list(read_jsonl(workspace.calibration_scores))[:200])
    again = calibrate_scorer(smoke, killed)
    assert again.scored_now == 40
    assert again.calibration.accuracy == report.calibration.accuracy


def test_a_calibration_speaks_for_its_own_scorer_alone(calibrated, smoke):
    workspace, report = calibrated
    assert load_calibration(workspace, scorer_identity(smoke)) == report.calibration
    other = load_settings("smoke", ["models.reward.max_length=256"])
    assert load_calibration(workspace, scorer_identity(other)) is None


def test_the_report_page_shows_the_sentence_and_the_picture_of_this_scorer_only(calibrated, smoke):
    workspace, report = calibrated
    page = write_run_report(smoke, workspace).read_text(encoding="utf-8")
    assert trust_line(report.calibration) in text_of(page)
    assert "data:image/png;base64" in page
    other = write_run_report(load_settings("smoke", ["models.reward.max_length=256"]), workspace)
    assert NOT_CALIBRATED in other.read_text(encoding="utf-8")
    assert "data:image/png;base64" not in other.read_text(encoding="utf-8")


def test_a_score_report_without_a_calibration_says_so():
    figures = {"pairs": 1, "with_revision": 1, "revised_wins": 1, "draft_wins": 0, "ties": 0, "mean_delta": 1.0}
    report = ScoreReport(scorer="s", scored_now=2, notes=[], seconds=1.0, **figures)
    assert ("gold pairs", NOT_CALIBRATED) in report.lines()


def test_an_unreachable_hub_leaves_the_run_uncalibrated_loudly_and_a_wrong_path_stops_it(tmp_path, capsys):
    workspace = Workspace(tmp_path)
    report, reason = _calibrated(load_settings("smoke", ["calibrate.gold=cai-helpers/is-not-there"]), workspace)
    assert report is None
    assert "cai-helpers/is-not-there" in reason
    assert "calibrate: NOT DONE" in capsys.readouterr().out
    assert "calibrate: NOT DONE" in (workspace.logs / "run.log").read_text(encoding="utf-8")
    with pytest.raises(CaiError, match="There is no file"):
        _calibrated(load_settings("smoke", ["calibrate.gold=nowhere.jsonl"]), workspace)


def test_the_command_takes_its_own_gold_file_and_limit_and_the_workspace_remembers_them(tmp_path):
    gold = tmp_path / "mine.jsonl"
    rows = read_jsonl_of_the_package()
    write_jsonl(gold, rows[:40])
    command = ["calibrate", "--preset", "smoke", "--workspace", str(tmp_path / "run"), "--gold", str(gold)]
    done = CliRunner().invoke(app, [*command, "--limit", "32"])
    assert done.exit_code == 0, done.output
    assert "32 of the 40 rows" in done.output
    saved = load_settings(str(tmp_path / "run" / "settings.json"))
    assert (saved.calibrate.gold, saved.calibrate.limit, saved.prompts.limit) == (str(gold), 32, None)


def read_jsonl_of_the_package() -> list[dict]:
    from pathlib import Path

    from cai_helpers.models.hub import locate

    return list(read_jsonl(Path(locate("embedded:prompts/gold.jsonl"))))


def test_calibrating_is_not_begun_on_a_cpu_with_a_preset_for_a_gpu(workspace):
    settings = load_settings("t4", ["calibrate.gold=embedded:prompts/gold.jsonl"])
    with pytest.raises(CaiError, match="the preset t4 is sized for one: it would take days here"):
        calibrate_scorer(settings, workspace)
