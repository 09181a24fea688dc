"""Generation and scoring on the embedded models, killed and resumed as a Colab runtime would be."""

import shutil
import signal
import time
from itertools import islice
from pathlib import Path

import pytest

from cai_helpers.errors import SettingsChanged
from cai_helpers.models.hub import locate
from cai_helpers.settings import load_settings
from cai_helpers.stages.evaluate import evaluate_models
from cai_helpers.stages.generate import generate_pairs
from cai_helpers.stages.score import score_pairs
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace

SMALL = ["prompts.limit=24", "generate.batch_size=4"]


def small(*changes: str):
    return load_settings("smoke", [*SMALL, "threads=1", *changes])


def traces(workspace: Workspace) -> dict[str, dict]:
    rows = list(read_jsonl(workspace.traces))
    assert len({row["id"] for row in rows}) == len(rows), "a prompt appears twice"
    return {row["id"]: row for row in rows}


def whole_rows(workspace: Workspace) -> int:
    return workspace.traces.read_bytes().count(b"\n") if workspace.traces.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Workspace:
    """An uninterrupted run."""
    workspace = Workspace(tmp_path_factory.mktemp("whole"))
    generate_pairs(small(), workspace)
    return workspace


def test_a_killed_run_resumes_and_ends_with_the_very_rows_of_an_uninterrupted_one(warm, whole, tmp_path, capsys):
    workspace = Workspace(tmp_path)
    options = [part for change in (*SMALL, "threads=1") for part in ("--set", change)]
    process = warm.start("generate", "--preset", "smoke", "--workspace", tmp_path, *options)
    deadline = time.monotonic() + 120
    while not whole_rows(workspace) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait().code == -signal.SIGKILL
    made = whole_rows(workspace)  # the kill may have torn another one
    assert 0 < made < 24
    with workspace.traces.open("ab") as file:
        file.write(b'{"id": "torn, as by a kill in the middle of a wr')

    report = generate_pairs(small(), workspace)
    assert report.rows_now == 24 - made
    assert "cut off when the run was killed" in capsys.readouterr().out
    assert traces(workspace) == traces(whole)


def test_the_text_of_a_row_does_not_depend_on_the_batch_or_the_other_rows(whole, tmp_path):
    generate_pairs(small("prompts.limit=10", "generate.batch_size=7"), Workspace(tmp_path))
    part = traces(Workspace(tmp_path))
    assert len(part) == 10
    assert part == {name: row for name, row in traces(whole).items() if name in part}


def test_a_larger_limit_keeps_the_rows_that_are_there(whole, tmp_path):
    workspace = Workspace(tmp_path)
    generate_pairs(small("prompts.limit=4"), workspace)
    report = generate_pairs(small("prompts.limit=8"), workspace)
    assert (report.pairs, report.rows_now) == (8, 4)


def test_other_generation_settings_in_the_same_folder_are_refused_and_fresh_keeps_the_old_rows(tmp_path):
    workspace = Workspace(tmp_path)
    generate_pairs(small("prompts.limit=2"), workspace)
    warmer = small("prompts.limit=2", "generate.temperature=1.0")
    with pytest.raises(SettingsChanged, match=r"generate.temperature was 0.7, now 1.0"):
        generate_pairs(warmer, workspace)
    generate_pairs(warmer, workspace, fresh=True)
    assert len(list(tmp_path.glob("archive/*/pairs/traces.jsonl"))) == 1


def test_scoring_resumes_and_a_changed_scorer_scores_again_without_generating(whole, capsys):
    first = score_pairs(small(), whole)
    assert first.pairs == 24
    assert first.with_revision > 5
    assert first.revised_wins / first.with_revision > 0.5
    assert score_pairs(small(), whole) == first
    lines = whole.scores.read_bytes().splitlines(keepends=True)
    whole.scores.write_bytes(b"".join(lines[:10]))
    whole.pairs.unlink()
    assert score_pairs(small(), whole).scored_now == len(lines) - 10
    other = score_pairs(small("models.reward.max_length=256"), whole)
    assert other.scored_now == len(lines)
    assert other.mean_delta == pytest.approx(first.mean_delta, abs=1e-4)


def test_failed_revisions_have_a_reason_and_no_score(whole):
    score_pairs(small(), whole)
    for row in read_jsonl(whole.pairs):
        assert row["reason"]
        assert (row["revised_score"] is None) == (row["outcome"] not in ("revised", "kept"))
        if row["outcome"] != "revised":
            assert row["revised_response"] == row["base_response"]


def test_another_seed_gives_other_drafts_and_other_answers(tmp_path):
    prompts = list(islice(read_jsonl(Path(locate("embedded:prompts/train.jsonl"))), 6))
    held_out = list(islice(read_jsonl(Path(locate("embedded:prompts/eval.jsonl"))), 4))
    for name, rows in (("prompts", prompts), ("held_out", held_out)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)

    def texts(name: str, seed: int) -> tuple[dict[str, str], dict[str, str]]:
        """What one run drafts, and what its Stage 3 (here: Stage 2 again) answers."""
        files = [f"prompts.source={tmp_path / 'prompts.jsonl'}", f"prompts.eval_source={tmp_path / 'held_out.jsonl'}"]
        settings = small(*files, "prompts.limit=null", f"seed={seed}", "evaluate.temperature=0.7", "evaluate.builtin=0")
        workspace = Workspace(tmp_path / name)
        generate_pairs(settings, workspace)
        shutil.copytree(locate("embedded:stage2"), workspace.adapter)
        evaluate_models(settings, workspace)
        answers = {row["id"]: row["answers"]["stage3"]["text"] for row in read_jsonl(workspace.responses)}
        return {name: row["draft"] for name, row in traces(workspace).items()}, answers

    first, other = texts("first", 0), texts("other", 1)
    assert [len(group) for group in first] == [6, 4]
    for before, after in zip(first, other, strict=True):
        assert before.keys() == after.keys()
        assert sum(before[name] != after[name] for name in before) >= 2
