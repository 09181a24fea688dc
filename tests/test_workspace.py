import json
from pathlib import Path

import pytest

import cai_helpers
from cai_helpers.calibration.accuracy import load_calibration
from cai_helpers.calibration.differences import read_choice
from cai_helpers.errors import CaiError, SettingsChanged
from cai_helpers.manifest import difference
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.schema import StageReport
from cai_helpers.workspace import Workspace


class Report(StageReport):
    rows: int

    def title(self):
        return "Report"

    def lines(self):
        return [("rows", str(self.rows))]


def seal(workspace, fingerprint):
    workspace.pairs_dir.mkdir(parents=True, exist_ok=True)
    workspace.pairs.write_text("x\n")
    workspace.seal("score", fingerprint, [workspace.pairs], Report(rows=3))


def test_a_complete_unchanged_stage_gives_its_report_and_says_so(workspace, capsys):
    seal(workspace, {"a": (1, 2)})
    assert workspace.finished("score", {"a": (1, 2)}, Report) == Report(rows=3)
    assert "nothing to do" in capsys.readouterr().out


def test_a_stage_without_a_manifest_is_not_finished(workspace):
    assert workspace.finished("score", {}, Report) is None


@pytest.mark.parametrize(
    ("fingerprint", "content", "message"),
    [({"a": 2}, "x\n", "a was 1, now 2"), ({"a": 1}, "y\n", "pairs/pairs.jsonl changed or disappeared")],
)
def test_a_changed_setting_or_output_runs_the_stage_again_and_says_why(
    workspace, capsys, fingerprint, content, message
):
    seal(workspace, {"a": 1})
    workspace.pairs.write_text(content)
    assert workspace.finished("score", fingerprint, Report) is None
    assert message in capsys.readouterr().out


def test_a_stage_runs_again_whichever_of_its_outputs_was_changed(workspace, capsys):
    files = [workspace.train_rows, workspace.eval_rows, workspace.dropped_rows]
    for touched in files:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("x\n")
        workspace.seal("curate", {}, files, Report(rows=3))
        assert workspace.finished("curate", {}, Report) == Report(rows=3)
        touched.write_text("y\n")
        assert workspace.finished("curate", {}, Report) is None
        assert f"runs again: dpo_dataset/{touched.name} changed" in capsys.readouterr().out


def test_going_on_with_other_settings_is_refused_with_the_difference(workspace):
    workspace.begin("generate", {"generate.temperature": 0.7, "seed": 0})
    workspace.begin("generate", {"generate.temperature": 0.7, "seed": 0})
    with pytest.raises(SettingsChanged, match=r"generate.temperature was 0.7, now 1.0") as error:
        workspace.begin("generate", {"generate.temperature": 1.0, "seed": 0})
    assert "--fresh" in error.value.todo


def test_starting_over_moves_the_old_results_and_deletes_nothing(workspace):
    workspace.begin("generate", {"seed": 0})
    seal(workspace, {})
    workspace.archive("generate", [workspace.pairs_dir])
    workspace.begin("generate", {"seed": 1})
    assert not workspace.pairs.exists()
    assert [path.read_text() for path in workspace.root.glob("archive/*/pairs/pairs.jsonl")] == ["x\n"]


def test_a_missing_input_names_the_notebook_that_makes_it(workspace):
    with pytest.raises(CaiError) as error:
        workspace.require(workspace.pairs, made_by="score")
    assert "02_generate_pairs" in error.value.todo


def test_a_difference_names_what_is_new_and_what_is_gone():
    assert difference({"a": 1, "b": 2}, {"a": 1, "c": 3}) == ["b was 2, now None", "c was None, now 3"]


# --- what is damaged, and what another version wrote ---


def test_a_manifest_of_another_version_makes_the_stage_run_again_and_says_whose_it_is(workspace, capsys):
    seal(workspace, {"a": 1})
    file = workspace.manifest_of("score")
    manifest = json.loads(file.read_text())
    assert manifest["versions"]["cai_helpers"] == cai_helpers.__version__
    manifest["versions"]["cai_helpers"] = "0.0.9"
    file.write_text(json.dumps({**manifest, "mood": "good"}))
    assert workspace.finished("score", {"a": 1}, Report) is None
    assert "score: runs again: written by another version (0.0.9; this is" in capsys.readouterr().out
    assert workspace.manifest("score") is None
    assert "score: counts as not complete: its manifest is written by another" in capsys.readouterr().out
    seal(workspace, {"a": 1})
    assert workspace.finished("score", {"a": 1}, Report) == Report(rows=3)


def test_a_report_of_another_version_makes_the_stage_run_again(workspace, capsys):
    seal(workspace, {})
    file = workspace.manifest_of("score")
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "report": {"lines": 3}, "versions": {"torch": "2"}}))
    assert workspace.finished("score", {}, Report) is None
    assert "runs again: written by another version" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b'{"stage": "sco', b"\xff\xfe"])
@pytest.mark.parametrize(
    "name", ["manifests/score.json", "manifests/score.begun.json", "metrics.json", "settings.json"]
)
def test_a_damaged_file_of_the_workspace_is_named_with_what_to_do(workspace, smoke, name, content):
    file = workspace.root / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    uses = {
        "manifests/score.json": lambda: workspace.finished("score", {}, Report),
        "manifests/score.begun.json": lambda: workspace.begin("score", {}),
        "metrics.json": lambda: workspace.note_metrics("score", Report(rows=1)),
        "settings.json": lambda: workspace.save_settings(smoke, section="train"),
    }
    with pytest.raises(CaiError, match="is empty|is damaged") as error:
        uses[name]()
    assert str(file) in error.value.what
    assert "Delete that file" in error.value.todo or "--fresh" in error.value.todo
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), ('{"scorer": "s", "calib', "damaged"), ('{"scorer": "s"}', "form")]
)
def test_a_damaged_or_foreign_result_is_named_with_the_command_that_makes_it_anew(workspace, content, message):
    readers = {
        workspace.calibration: ("cai calibrate", lambda: load_calibration(workspace, "s")),
        workspace.bakeoff: ("cai bakeoff", lambda: read_choice(workspace)),
    }
    for path, (command, read) in readers.items():
        path.parent.mkdir(parents=True)
        path.write_text(content)
        with pytest.raises(CaiError, match=message) as error:
            read()
        assert str(path) in error.value.what
        assert command in error.value.todo


def test_a_report_that_another_version_wrote_is_no_traceback_on_the_page(workspace, smoke):
    workspace.pairs_dir.mkdir(parents=True)
    workspace.pairs.write_text("")
    workspace.seal("analyze", {}, [workspace.pairs], Report(rows=3))
    file = workspace.manifest_of("analyze")
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "report": {"statistics": {"mood": 1}, "gate": [], "findings": []}}))
    with pytest.raises(CaiError, match="another version of cai-helpers wrote") as error:
        write_run_report(smoke, workspace)
    assert "cai run" in error.value.todo


@pytest.mark.parametrize("altered", ["metrics.json", "manifests/evaluate.json"])
def test_figures_that_differ_between_manifest_and_metrics_are_made_anew(altered, tmp_path):
    class Figures(StageReport):
        wins: int

        def title(self) -> str:
            return "figures"

        def lines(self) -> list[tuple[str, str]]:
            return []

    workspace = Workspace(tmp_path)
    workspace.note_metrics("evaluate", Figures(wins=31))
    workspace.seal("evaluate", {}, [], Figures(wins=31))
    assert workspace.finished("evaluate", {}, Figures) == Figures(wins=31)
    file = tmp_path / altered
    file.write_text(file.read_text().replace("31", "61"))
    assert workspace.finished("evaluate", {}, Figures) is None


@pytest.mark.parametrize("name", [".hid.jsonl", "..jsonl", ".jsonl", "mine.jsonl.gz"])
def test_the_page_of_a_file_from_elsewhere_never_takes_the_place_of_the_runs_own(name, tmp_path):
    workspace = Workspace(tmp_path)
    folder = workspace.reports_of(Path(name))
    assert folder.parent == workspace.reports
    assert folder.name.strip(".")
