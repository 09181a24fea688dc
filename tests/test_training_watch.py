"""Training that is watched, stopped, killed and copied: what is seen is true, and what comes out is the same."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from tiny_run import adapter_tensors, check, make_settings, make_trainer, make_workspace, same_tensors

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import this_machine
from cai_helpers.models.hub import locate
from cai_helpers.settings import load_settings
from cai_helpers.stages.preflight import check_path
from cai_helpers.stages.train import train_policy
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.training.dpo import PolicyTrainer, _check_ends, training_arguments
from cai_helpers.training.watch import checkpoints
from cai_helpers.workspace import Workspace


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr("cai_helpers.pages.training_picture.save_training_plot", lambda workspace: None)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Workspace:
    """An uninterrupted run of 12 steps, saved and evaluated every 3."""
    workspace = make_workspace(tmp_path_factory.mktemp("whole"))
    train_policy(make_settings(tiny), workspace)
    return workspace


def stop_at(monkeypatch, step: int) -> None:
    training_step = PolicyTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PolicyTrainer, "training_step", interrupted)


# Trains once a moment, each time in a process of its own, which kills itself at that file operation of its second save.
KILLED_SAVES = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_run
from cai_helpers.training.watch.history import TrainingHistory
from cai_helpers.training.dpo import PolicyTrainer
from cai_helpers.stages.train import train_policy
from cai_helpers.workspace import Workspace

saves = operations = 0
inside = False
def begin(self, *args, save=PolicyTrainer._save_checkpoint, **kwargs):
    global saves, inside
    saves, inside = saves + 1, True
    return save(self, *args, **kwargs)
def end(self, *args, on_save=TrainingHistory.on_save, **kwargs):
    global inside
    on_save(self, *args, **kwargs)
    inside = False
    if saves == 1:
        (Path({root!r}) / "operations").write_text(str(operations))
    if saves == 2:
        os._exit(7)
def count(event, arguments):
    global operations
    if inside and event in ("open", "os.mkdir", "os.rename", "os.remove"):
        operations += saves == 1
        if saves == 2:
            moment[0] -= 1
            if moment[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
PolicyTrainer._save_checkpoint, TrainingHistory.on_save = begin, end
sys.addaudithook(count)
import random
shares = random.Random(0)
for number in range(4):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        known = Path({root!r}) / "operations"
        total = int(known.read_text()) if known.exists() else 20
        moment = [max(1, round(total * (number + shares.random()) / 4))]
        train_policy(tiny_run.make_settings(Path({tiny!r})), Workspace(Path({root!r}) / str(number)))
    shares.random()
    _, status = os.waitpid(child, 0)
    print("signal" if os.WIFSIGNALED(status) else "exit", os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
"""


@pytest.mark.slow
def test_killed_at_any_moment_of_a_save_a_run_ends_with_the_same_weights_bit_for_bit(warm, tiny, whole, tmp_path):
    for number in range(4):
        make_workspace(tmp_path / str(number))
    script = KILLED_SAVES.format(tests=str(Path(__file__).parent), tiny=str(tiny), root=str(tmp_path))
    process = warm.python(script)
    killed = [line for line in process.out.splitlines() if line.startswith(("signal", "exit"))]
    assert killed == ["signal 9"] * 4, process.err[-2000:]
    torn = 0
    for number in range(4):
        workspace = Workspace(tmp_path / str(number))
        assert checkpoints.fault(workspace.checkpoints / "checkpoint-3") is None
        left = workspace.checkpoints / "checkpoint-6"
        half = left.exists() and checkpoints.fault(left) is not None
        torn += half
        expected = 6 if left.exists() and not half else 3
        assert train_policy(make_settings(tiny), workspace).resumed_from == expected
        assert (workspace.checkpoints / "damaged-checkpoint-6").exists() == half
        assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))
    assert torn >= 2


@pytest.mark.parametrize("step", [2, 4, 10])
def test_stopped_at_any_step_a_run_ends_with_the_same_weights(tiny, whole, tmp_path, monkeypatch, step):
    workspace = make_workspace(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(CaiError, match=f"Stopped by hand at step {step} of 12"):
            train_policy(make_settings(tiny), workspace)
    assert train_policy(make_settings(tiny), workspace).resumed_from == {2: None, 4: 3, 10: 9}[step]
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))


def test_saving_by_the_clock_changes_nothing_but_where_a_run_goes_on(tiny, whole, tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path)
    settings = make_settings(tiny, every_minutes=1e-9)  # so after each step
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(CaiError, match="Stopped by hand at step 5"):
            train_policy(settings, workspace)
    assert [folder.name for folder in checkpoints.in_order(workspace.checkpoints)] == [
        "checkpoint-3", "checkpoint-4", "checkpoint-5",
    ]  # fmt: skip
    report = train_policy(settings, workspace)
    assert (report.resumed_from, report.best_step) == (5, 12)
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))
    rows = list(read_jsonl(workspace.history))
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))


def plant_evaluations(monkeypatch, losses: list[float]) -> None:
    planted, log = iter(losses), PolicyTrainer.log

    def replaced(self, logs, *args):
        if "eval_loss" in logs:
            logs["eval_loss"] = next(planted)
        return log(self, logs, *args)

    monkeypatch.setattr(PolicyTrainer, "log", replaced)


def test_a_run_that_overfits_stops_early_when_asked_to_and_keeps_the_best(tiny, tmp_path, monkeypatch, capsys):
    settings = make_settings(tiny, every_steps=2, stop_early=True)
    workspace = make_workspace(tmp_path)
    plant_evaluations(monkeypatch, [0.6, 0.4, 0.5, 0.55])
    report = train_policy(settings, workspace)
    assert (report.steps, report.best_step) == (8, 4)
    assert "overfitting" in [alarm.name for alarm in report.alarms]
    said = capsys.readouterr().out
    assert said.count("ALARM overfitting at step 8") == 1
    assert "stopping early" in said
    assert ("target: epochs", "FALLS SHORT: 1.3333 (aim 3 done).") in report.lines()

    shutil.rmtree(workspace.adapter)  # as if the process had died before the end: no step more is made
    assert train_policy(settings, workspace).steps == 8


def test_without_being_asked_to_a_run_that_overfits_goes_on(tiny, tmp_path, monkeypatch):
    plant_evaluations(monkeypatch, [0.6, 0.4, 0.5, 0.55, 0.6, 0.6])
    report = train_policy(make_settings(tiny, every_steps=2), make_workspace(tmp_path))
    assert (report.steps, report.best_step) == (12, 4)


@pytest.mark.slow
def test_a_learning_rate_far_too_high_is_seen_as_a_displacement_while_accuracy_looks_perfect(tmp_path, capsys):
    workspace = Workspace(tmp_path)
    rows = [
        {
            "prompt": row["messages"], "chosen": [{"role": "assistant", "content": row["better"]}],
            "rejected": [{"role": "assistant", "content": row["worse"]}], "id": f"{number:016x}",
            "category": row["category"], "delta": 1.0, "chosen_side": "revised",
        }
        for number, row in enumerate(read_jsonl(Path(locate("embedded:prompts")) / "gold.jsonl"))
    ]  # fmt: skip
    write_jsonl(workspace.train_rows, rows[:80])
    write_jsonl(workspace.eval_rows, rows[104:110])
    changes = ["threads=1", "train.learning_rate=0.02", "train.log_steps=1", "train.epochs=1"]
    report = train_policy(load_settings("smoke", changes), workspace)
    raised = {alarm.name: alarm for alarm in report.alarms}
    assert "likelihood displacement" in raised
    assert "ALARM likelihood displacement at step" in capsys.readouterr().out
    assert json.loads(workspace.metrics.read_text())["train"]["alarms"][0]["name"] in raised
    assert any(name == "ALARM likelihood displacement" for name, _ in report.lines())


def test_a_watcher_gets_every_row_and_the_terminal_none_of_the_steps(tiny, tmp_path, capsys):
    seen = []
    workspace = make_workspace(tmp_path)
    train_policy(make_settings(tiny, epochs=0.5), workspace, watch=seen.append)
    assert [(progress.step, progress.steps, len(progress.rows)) for progress in seen] == [
        (1, 3, 1), (2, 3, 2), (3, 3, 3), (3, 3, 4),
    ]  # fmt: skip
    assert "loss 0.6931" not in capsys.readouterr().out.split("check: start")[1].partition("\n")[2]
    assert "step 1/3  loss 0.6931" in (workspace.logs / "run.log").read_text()


def test_an_empty_machine_goes_on_from_the_copies_of_the_same_run(tiny, whole, tmp_path, monkeypatch, capsys):
    settings = make_settings(tiny, copy_to=str(tmp_path / "drive"))
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(CaiError, match="Stopped by hand"):
            train_policy(settings, make_workspace(tmp_path / "lost"))
    workspace = make_workspace(tmp_path / "new")
    report = train_policy(settings, workspace)
    assert (report.resumed_from, report.copies.split(" to ")[0]) == (6, "2 checkpoints copied")
    assert "fetched checkpoint-3, checkpoint-6 from" in capsys.readouterr().out
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))
    assert report.loss_first == pytest.approx(0.6931, abs=1e-4)  # the history came along


def test_rows_that_the_trainer_drops_or_tokenises_otherwise_are_caught(tiny, tmp_path):
    trainer = make_trainer(make_settings(tiny), make_workspace(tmp_path))
    rows = trainer.train_dataset
    trainer.train_dataset = rows.select(range(23))
    with pytest.raises(CaiError, match="Of 30 pairs the trainer kept 29"):
        check(trainer, make_settings(tiny))
    trainer.train_dataset = rows.map(lambda row: {"prompt_ids": row["prompt_ids"][1:]})
    with pytest.raises(CaiError, match="Row row0: the trainer's tokens are not those of the chat template"):
        check(trainer, make_settings(tiny))


def test_answers_that_never_end_and_padding_that_counts_are_caught(tiny, tmp_path):
    trainer = make_trainer(make_settings(tiny), make_workspace(tmp_path))
    whole = trainer.train_dataset
    open_ended = whole.map(lambda row: {side: row[side][:-2] for side in ("chosen_ids", "rejected_ids")})
    trainer.train_dataset = open_ended
    with pytest.raises(CaiError, match="None of 48 answers closes with an end token .<eos>, <end_of_turn>."):
        _check_ends(trainer)
    trainer.train_dataset = whole
    trainer.model.generation_config.eos_token_id = 1  # as Gemma 1 lists it; the template closes with <end_of_turn>
    assert _check_ends(trainer).found == "48 of 48 answers close with one of <eos>, <end_of_turn>"
    collate = trainer.data_collator

    def blind(rows):
        batch = collate(rows)
        batch["completion_mask"][:] = 1
        return batch

    trainer.data_collator = blind
    with pytest.raises(CaiError, match="In a padded batch the loss sees"):
        check(trainer, make_settings(tiny))


def test_reporting_passes_through_and_a_missing_package_is_named(tiny, tmp_path, monkeypatch):
    def arguments(report_to: str):
        return training_arguments(make_settings(tiny, report_to=report_to), tmp_path, "fp32", this_machine(), True)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CaiError, match="package trackio is not installed(?s:.*)pip install trackio"):
        arguments("trackio")
    assert arguments("none").report_to == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert arguments("tensorboard").report_to == ["tensorboard"]


def test_a_run_does_not_read_again_what_it_has_written_into_its_history(tiny, tmp_path, monkeypatch):
    reads = []

    def counted(path):
        reads.append(path)
        return read_jsonl(path)

    monkeypatch.setattr("cai_helpers.training.watch.history.read_jsonl", counted)
    workspace = make_workspace(tmp_path)
    report = train_policy(make_settings(tiny, log_steps=1, epochs=1), workspace)
    assert reads == []
    assert report.steps == 6
    assert len(list(read_jsonl(workspace.history))) == 8


@pytest.mark.slow
def test_a_preflight_goes_the_whole_path_and_leaves_nothing_in_the_results(tmp_path, capsys):
    changes = ["threads=1", "generate.batch_size=4", "train.batch_size=2", "train.max_length=128", "prompts.limit=12"]
    workspace = Workspace(tmp_path)
    report = check_path(load_settings("smoke", changes), workspace)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"run.log", "preflight.json"}
    [dpo] = report.training
    assert (report.generated, report.prompts, dpo.phase, dpo.rows_per_step) == (4, 12, "dpo", 2)
    assert 120 < dpo.tokens <= 128
    assert report.rows.startswith("made-up rows of")
    assert set(report.minutes) == {"generate", "score", "train", "evaluate"}
    assert min(report.minutes.values()) > 0
    assert report.verdict().startswith("ready: everything ran")
    assert "checks before the first update hold" in capsys.readouterr().out
    tight = report.model_copy(update={"peaks": {"training": 14.2}, "usable": 14.5})
    assert tight.verdict().startswith("TIGHT: 14.2 of 14.5 GiB")
    assert check_path(load_settings("smoke", changes), workspace) == report  # nothing is tried a second time
    assert "preflight: complete since" in capsys.readouterr().out
