"""Checkpoints: only a whole one is resumed from, and the best is never rotated away."""

import json

import pytest

from cai_helpers.training.watch import checkpoints


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
