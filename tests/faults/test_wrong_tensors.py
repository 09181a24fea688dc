"""Weights that did not load never count as loaded: every stage that would use them refuses, whatever tensor is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from oracles import ends_in_words
from safetensors.torch import load_file, save_file

from cai_helpers.models.hub import locate

pytestmark = pytest.mark.faults
FILES = {"base": "model.safetensors", "adapter": "adapter_model.safetensors", "reward": "model.safetensors"}
FOLDERS = {"base": "embedded:chat", "adapter": "embedded:stage2", "reward": "embedded:reward"}
SETTINGS = {"base": "models.base", "adapter": "models.adapter", "reward": "models.reward.model"}
USERS = {  # role → commands that load it
    "base": ("generate", "bakeoff", "train", "evaluate"),
    "adapter": ("generate", "bakeoff", "train", "evaluate"),
    "reward": ("score", "bakeoff", "calibrate", "evaluate"),
}


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def rename(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[f"{name}_of_another"] = tensors.pop(name)


def halve(tensors: dict[str, torch.Tensor], name: str) -> None:
    rows, columns = tensors[name].shape
    tensors[name] = (tensors[name][: rows // 2] if rows > 1 else tensors[name][:, : columns // 2]).clone()


def not_a_number(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name][..., :1] = torch.nan


def spoil(role: str, damage, folder: Path) -> Path:
    shutil.copytree(locate(FOLDERS[role]), folder)
    tensors = load_file(folder / FILES[role])
    matrices = sorted(name for name, tensor in tensors.items() if tensor.ndim == 2)
    heads = [name for name in matrices if "classifier" in name or "score" in name]
    damage(tensors, (heads or matrices)[len(heads or matrices) // 2])
    save_file(tensors, folder / FILES[role], metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("damage", [drop, rename, halve, not_a_number], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(("role", "command"), [(role, command) for role, users in USERS.items() for command in users])
def test_one_wrong_tensor_is_refused_by_every_stage_that_loads_it(
    role, command, damage, warm, run_copy, tmp_path, ledger
):
    model = spoil(role, damage, tmp_path / "spoilt")
    manifest = run_copy / "manifests" / f"{command}.json"
    written = manifest.read_bytes() if manifest.exists() else None
    options = ["--fresh"] if command in ("generate", "train") else ["--n", "2"] if command == "bakeoff" else []
    ended = warm.cai(command, *options, "--workspace", run_copy, "--set", f"{SETTINGS[role]}={model}")
    ledger.injected += 1
    ends_in_words(ended)
    ledger.false_successes += ended.code == 0
    assert ended.code == 1, ended.out
    assert manifest.read_bytes() == written if manifest.exists() else True
    ledger.survived += 1
