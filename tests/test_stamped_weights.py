"""The settings' hash in an adapter's weights: read by safetensors, and the same bytes each time."""

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cai_helpers.manifest import SETTINGS_HASH
from cai_helpers.training.policy.lora import WEIGHTS_FILE, stamp_settings


def test_the_same_weights_with_the_same_stamp_are_the_same_bytes_each_time(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.float16)}
    written = set()
    for _ in range(20):  # safetensors writes two entries in a random order
        save_file(tensors, tmp_path / WEIGHTS_FILE, metadata={"format": "pt", "a": "1", "z": "2"})
        stamp_settings(tmp_path, "abc")
        written.add((tmp_path / WEIGHTS_FILE).read_bytes())
    assert len(written) == 1


def test_stamped_weights_are_read_as_they_were_and_a_new_stamp_takes_the_place_of_the_old(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.float16)}
    save_file(tensors, tmp_path / WEIGHTS_FILE, metadata={"format": "pt"})
    for digest in ("0" * 64, "1"):
        stamp_settings(tmp_path, digest)
    with safe_open(tmp_path / WEIGHTS_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt", SETTINGS_HASH: "1"}
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118 - no dictionary
            name: tensor.tolist() for name, tensor in tensors.items()
        }
