"""Checkpoints: only a whole one is resumed from, and the best is never rotated away."""

import json

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.settings import load_settings
from cai_helpers.store import write_jsonl
from cai_helpers.training.run import _best_good
from cai_helpers.training.watch import checkpoints
from cai_helpers.training.watch.history import TrainingHistory


def write(root, step, sealed=True):
    folder = root / f"checkpoint-{step}"
    (folder / "ref").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights of step %d" % step)
    (folder / "ref" / "adapter_model.safetensors").write_bytes(b"reference")
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 20}))
    if sealed:
        checkpoints.seal(folder)
    return folder


def flip_bit(folder):
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "never sealed": (lambda folder: (folder / "complete.json").unlink(), "it was never completed"),
    "torn seal": (lambda folder: (folder / "complete.json").write_text('{"files": {"opt'), "it was never completed"),
    "no optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "a flipped bit": (flip_bit, "adapter_model.safetensors is not what was written"),
    "a zeroed tail": (
        lambda folder: (folder / "optimizer.pt").write_bytes(b"mome\0\0\0"),
        "optimizer.pt is not what was written",
    ),
    "a cut file": (
        lambda folder: (folder / "ref" / "adapter_model.safetensors").write_bytes(b"refer"),
        "ref/adapter_model.safetensors is not what was written",
    ),
    "another step": (
        lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 99, "max_steps": 20}'),
        "trainer_state.json is not what was written",
    ),
    "a stray file": (lambda folder: (folder / "scaler.pt").write_bytes(b"1"), "scaler.pt was added"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason_and_its_place_is_freed(tmp_path, damage, reason):
    good = write(tmp_path, 10)
    damage(write(tmp_path, 20))
    said = []
    assert checkpoints.newest_good(tmp_path, said.append) == good
    assert said == [f"checkpoint-20 is not used: {reason} (moved to damaged-checkpoint-20)"]
    assert [path.name for path in checkpoints.in_order(tmp_path)] == ["checkpoint-10"]


def test_the_newest_is_found_by_step_and_not_by_file_time(tmp_path):
    for step in (9, 100, 20):
        write(tmp_path, step)
    assert checkpoints.newest_good(tmp_path, pytest.fail).name == "checkpoint-100"


def test_without_a_good_one_training_starts_at_the_beginning(tmp_path):
    write(tmp_path, 10, sealed=False)
    assert checkpoints.newest_good(tmp_path, lambda message: None) is None
    assert checkpoints.newest_good(tmp_path / "missing", pytest.fail) is None


def test_a_second_damaged_checkpoint_of_the_same_step_takes_the_place_of_the_first(tmp_path):
    for _ in range(2):
        write(tmp_path, 10, sealed=False)
        checkpoints.newest_good(tmp_path, lambda message: None)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged-checkpoint-10"]


@pytest.mark.parametrize(("best", "left"), [(10, [10, 40, 50]), (40, [40, 50]), (50, [40, 50])])
def test_rotation_keeps_the_newest_two_and_the_best(tmp_path, best, left):
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step)
    checkpoints.rotate(tmp_path, best)
    assert [checkpoints.step_of(path) for path in checkpoints.in_order(tmp_path)] == left


def test_a_checkpoint_knows_whether_it_is_the_last(tmp_path):
    assert not checkpoints.is_last(write(tmp_path, 19))
    assert checkpoints.is_last(write(tmp_path, 20))


@pytest.fixture
def evaluated(tmp_path):
    """The history of a run with a whole checkpoint at each of its evaluations: of steps 20 and 30 the loss is lowest."""
    losses = {10: 0.5, 20: 0.4, 30: 0.4, 40: 0.6}
    for step in losses:
        write(tmp_path, step)
    write_jsonl(tmp_path / "history.jsonl", ({"step": step, "eval_loss": loss} for step, loss in losses.items()))
    return TrainingHistory(tmp_path / "history.jsonl", tmp_path, False, pytest.fail, load_settings("smoke"))


def test_of_equally_good_checkpoints_the_earlier_one_is_the_best(evaluated):
    assert [evaluation.step for evaluation in evaluated.best_first()] == [20, 30, 10, 40]


def test_a_best_checkpoint_that_is_damaged_is_not_taken_home_and_the_next_best_is(tmp_path, evaluated):
    assert _best_good(evaluated, tmp_path, pytest.fail) == 20
    flip_bit(tmp_path / "checkpoint-20")
    said = []
    assert _best_good(evaluated, tmp_path, said.append) == 30
    assert said == [
        "checkpoint-20 is the best but cannot be used: adapter_model.safetensors is not what was written",
    ]
    for step in (10, 30, 40):
        flip_bit(tmp_path / f"checkpoint-{step}")
    with pytest.raises(CaiError, match="No evaluated checkpoint is whole"):
        _best_good(evaluated, tmp_path, said.append)
