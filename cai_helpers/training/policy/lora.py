"""The policy's LoRA: loaded, restored from a checkpoint, and saved so that it stands for itself on the original base.

Importing this imports torch and PEFT.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save as to_bytes

from cai_helpers.errors import CaiError
from cai_helpers.ground import make_folder
from cai_helpers.manifest import SETTINGS_HASH
from cai_helpers.models.hub import hub_name, locate
from cai_helpers.settings import Train
from cai_helpers.store import write_atomically, write_json

if TYPE_CHECKING:
    from cai_helpers.training.policy.merged import Factors

POLICY, REFERENCE = "default", "ref"  # adapter names; TRL knows the policy under no other
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
GENERATION_FILE = "generation_config.json"


def fresh_lora(train: Train) -> LoraConfig:
    return LoraConfig(
        r=train.lora_r,
        lora_alpha=train.lora_alpha,
        lora_dropout=train.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def restore_policy(model: Any, folder: Path) -> None:
    """Load the adapter at the root of `folder` into the policy, and compare what is there now with the file."""
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=POLICY)
    require_equal(model, POLICY, str(folder))


def save_policy(model: Any, folder: Path, base: str, stage2: Factors | None = None) -> None:
    """Write the policy as a PEFT adapter that stands for itself on `base`, and compare the files with the model.

    Beside it goes generation_config.json, which says where an answer ends: PEFT itself reads the base's.

    stage2: what was merged into the model's own weights; it is written into the adapter, in front of the trained LoRA.
    """
    draft = folder.with_name(folder.name + ".tmp")
    make_folder(folder.parent)
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(str(draft), selected_adapters=[POLICY], save_embedding_layers=False)
    config = json.loads((draft / CONFIG_FILE).read_text(encoding="utf-8"))
    # PEFT writes where it was loaded from, a folder of this machine
    config["base_model_name_or_path"], config["revision"] = hub_name(base) or (base, None)
    weights, tensors = (draft / WEIGHTS_FILE).read_bytes(), adapter_tensors(model, POLICY)
    if stage2 is not None:
        from cai_helpers.training.policy.merged import combined

        changes, tensors = combined(stage2, model)
        config, weights = config | changes, to_bytes(tensors, metadata={"format": "pt"})
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])  # written from a set, in no order
    make_folder(folder)
    write_atomically(folder / WEIGHTS_FILE, weights)
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / GENERATION_FILE, _generation(model))
    shutil.rmtree(draft)
    require_same(tensors, str(folder), "trained policy")


def stamp_settings(folder: Path, digest: str) -> None:
    """Write the hash of the settings that an adapter was trained with into the metadata of its weights."""
    file = folder / WEIGHTS_FILE
    write_atomically(file, _with_metadata(file.read_bytes(), {SETTINGS_HASH: digest}))


def _with_metadata(weights: bytes, entries: dict[str, str]) -> bytes:
    """A safetensors file with more metadata, in alphabetical order; the library writes them in a random one, and the
    same weights would be other bytes each time. The form: 8 bytes of length, JSON padded with spaces, tensors
    (https://huggingface.co/docs/safetensors/index#format)."""
    (length,) = struct.unpack("<Q", weights[:8])
    head = json.loads(weights[8 : 8 + length])
    head["__metadata__"] = dict(sorted({**head.get("__metadata__", {}), **entries}.items()))
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text + weights[8 + length :]


def _generation(model: Any) -> dict[str, Any]:
    """The base's generation defaults with all the tokens at which it stops: the base's own file may name too few."""
    written = json.loads(model.generation_config.to_json_string(use_diff=True))
    written.pop("_from_model_config", None)
    return written


def require_equal(model: Any, adapter_name: str, source: str) -> int:
    """How many tensors of the adapter equal those of the file at `source`: all of them.

    Raises:
        CaiError: a tensor is missing, or differs (after the cast to the model's precision).
    """
    return require_same(adapter_tensors(model, adapter_name), source, f"adapter {adapter_name!r} in memory")


def require_same(actual: dict[str, torch.Tensor], source: str, what: str) -> int:
    """As `require_equal`, of tensors under the names of the file."""
    expected = load_peft_weights(locate(source), device="cpu")
    differing = expected.keys() ^ actual.keys()
    differing |= {name for name in expected.keys() & actual.keys() if not _same(actual[name], expected[name])}
    if differing:
        raise CaiError(
            f"The {what} is not the one in {source}: {len(differing)} of {len(expected)} "
            f"tensors differ, such as {min(differing)}.",
            "Run it again; if it stays, the file or the installed peft is broken: `cai doctor` shows the versions.",
        )
    return len(expected)


def adapter_tensors(model: Any, adapter_name: str) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)


def _same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and torch.equal(actual.cpu(), expected.to(actual.dtype))
