"""The reference's log-probabilities: whatever happens to the stored ones, the adapter is that of an undisturbed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_kto import kto_settings, kto_workspace
from tiny_run import adapter_tensors, make_settings, make_workspace, same_tensors

from cai_helpers.errors import CaiError
from cai_helpers.stages.train import train_policy
from cai_helpers.training.policy.reference_store import fault, record_of, reference_of
from cai_helpers.training.trainer import PolicyTraining
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_training_picture")

SAID = "WARNING: the reference's log-probabilities are computed again: "


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Workspace:
    """An uninterrupted run of 12 steps."""
    workspace = make_workspace(tmp_path_factory.mktemp("whole"))
    train_policy(make_settings(tiny), workspace)
    return workspace


def stop(patch: pytest.MonkeyPatch, step: int) -> None:
    training_step = PolicyTraining.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    patch.setattr(PolicyTraining, "training_step", interrupted)


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory) -> Workspace:
    """A run that was stopped after 8 steps, its copies beside it in drive/; to be copied, not changed."""
    root = tmp_path_factory.mktemp("stopped")
    workspace = make_workspace(root / "run")
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 8)
        with pytest.raises(CaiError, match="Stopped by hand at step 8"):
            train_policy(make_settings(tiny, copy_to=str(root / "drive")), workspace)
    return workspace


def alter(path: Path) -> None:
    """Swap the sides from the twentieth row on: the first batches, which are looked at before training, stay right."""
    values = json.loads(path.read_text())
    first, second = [name for name in values if name != "key"]
    values[first][20:], values[second][20:] = values[second][20:], values[first][20:]
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def no_numbers(path: Path) -> None:
    path.write_bytes(b"\xff\x00")


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (alter, "checkpoints/reference/train.json", "train.json is not what was written"),
        (truncate, "checkpoints/reference/train.json", "train.json is not what was written"),
        (no_numbers, "checkpoints/reference/eval.json", "eval.json is not what was written"),
        (Path.unlink, "checkpoints/reference/train.json", "train.json is missing"),
        (truncate, "manifests/reference.json", "train.json is in no record of this run"),
    ],
)
def test_a_resumed_run_computes_damaged_values_again_and_ends_with_the_same_adapter(
    tiny, whole, stopped, tmp_path, capsys, damage, file, reason
):
    workspace = Workspace(shutil.copytree(stopped.root, tmp_path / "copy"))
    damage(workspace.root / file)
    assert train_policy(make_settings(tiny), workspace).resumed_from == 6
    assert f"{SAID}{reason}" in capsys.readouterr().out
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))
    assert (workspace.checkpoints / "reference" / "train.json").read_bytes() == (
        whole.checkpoints / "reference" / "train.json"
    ).read_bytes()


def test_the_first_start_does_not_believe_values_that_lie_there(tiny, whole, tmp_path, capsys):
    workspace = make_workspace(tmp_path)
    shutil.copytree(whole.checkpoints / "reference", workspace.checkpoints / "reference")
    alter(workspace.checkpoints / "reference" / "train.json")
    train_policy(make_settings(tiny), workspace)
    assert f"{SAID}train.json is in no record of this run" in capsys.readouterr().out
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))


def test_an_altered_copy_is_not_used_and_an_empty_machine_ends_with_the_same_adapter(
    tiny, whole, stopped, tmp_path, capsys
):
    shutil.copytree(stopped.root.parent / "drive", tmp_path / "drive")
    alter(next((tmp_path / "drive").glob("*/reference/train.json")))
    workspace = make_workspace(tmp_path / "new")
    assert train_policy(make_settings(tiny, copy_to=str(tmp_path / "drive")), workspace).resumed_from == 6
    assert "is not used: train.json is not what was written" in capsys.readouterr().out
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))


def test_an_empty_machine_takes_the_values_of_the_copy_and_computes_none(tiny, whole, stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped.root.parent / "drive", tmp_path / "drive")
    workspace = make_workspace(tmp_path / "new")

    def refuse(self, dataset, name, batch_size):
        raise AssertionError("computed again")

    monkeypatch.setattr("trl.DPOTrainer._precompute_ref_logps", refuse)
    assert train_policy(make_settings(tiny, copy_to=str(tmp_path / "drive")), workspace).resumed_from == 6
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))


def test_kto_computes_altered_values_again_too(tiny, tmp_path, capsys):
    settings = kto_settings(tiny, epochs=1)
    whole, workspace = kto_workspace(tmp_path / "whole"), kto_workspace(tmp_path / "altered")
    train_policy(settings, whole)
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 7)
        with pytest.raises(CaiError, match="Stopped by hand at step 7"):
            train_policy(settings, workspace)
    alter(workspace.checkpoints / "reference" / "train.json")
    train_policy(settings, workspace)
    assert f"{SAID}train.json is not what was written" in capsys.readouterr().out
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))


def test_values_under_another_key_are_neither_used_nor_suspected(workspace):
    reference_of(workspace, "one", pytest.fail).write("train", {"ref_logps": [-1.0]})
    assert reference_of(workspace, "two", pytest.fail).read("train") is None
    reference_of(workspace, "two", pytest.fail).write("train", {"ref_logps": [-2.0]})
    assert reference_of(workspace, "two", pytest.fail).read("train") == {"ref_logps": [-2.0]}
    assert fault(workspace.checkpoints / "reference", record_of(workspace), "train") is None


def test_values_that_come_out_otherwise_the_second_time_are_named(workspace):
    said: list[str] = []
    reference_of(workspace, "one", pytest.fail).write("train", {"ref_logps": [-1.0]})
    reference_of(workspace, "one", said.append).write("train", {"ref_logps": [-1.0000001]})
    assert said[0].startswith("WARNING: computed again, the reference's log-probabilities in train.json are not those")
