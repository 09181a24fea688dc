"""You are here: what is done, what is half-way, what is next."""

from __future__ import annotations

from cai_helpers.doctor import examine
from cai_helpers.readiness.standing import here
from cai_helpers.store import write_json

MINUTES = {"generate": 22.0, "score": 1.0, "train": 28.0, "evaluate": 3.0, "curate, analyze, export": 1.0}


def done(workspace, *stages: str) -> None:
    for stage in stages:
        write_json(workspace.manifest_of(stage), {})


def test_a_new_run_begins_with_generating(workspace):
    assert here(workspace) == "nothing is done yet; next: generate (notebook 02_generate_pairs)"
    assert here(workspace, MINUTES).endswith("about 22 minutes; about 54 minutes to the end, modelled")


def test_half_done_work_is_counted(workspace):
    workspace.pairs_dir.mkdir(parents=True)
    workspace.prompts.write_text("{}\n" * 9)
    workspace.traces.write_text("{}\n" * 4)
    assert "generate half-way: 4 of 9 pairs; next: generate" in here(workspace)
    done(workspace, "generate", "score", "curate", "analyze")
    for step in (5, 40, 30):
        (workspace.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    line = here(workspace, MINUTES)
    assert line.startswith(
        "generate, score, curate, analyze done; train half-way: step 40; next: train (notebook 04_train_dpo)"
    )
    assert line.endswith("about 28 minutes; about 31 minutes to the end, modelled")


def test_a_finished_run_says_where_the_zip_is(workspace):
    done(workspace, "generate", "score", "curate", "analyze", "train", "evaluate", "export")
    assert here(workspace).endswith("all of the run; notebook 06_export_artifacts has the zip")


def test_the_doctor_says_where_the_workspace_is_and_what_is_next(smoke, workspace):
    found = {check.name: check.found for check in examine(smoke, workspace)}
    assert found["workspace"] == str(workspace.root)
    assert found["you are here"].startswith("nothing is done yet; next: generate")
    assert found["trl"].startswith("1.16")
