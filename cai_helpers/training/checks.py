"""What must hold before the first update, whatever the method. A wrong reference trains without an error, and gets worse."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NamedTuple

import torch
from peft import get_peft_model_state_dict

from cai_helpers.errors import CaiError
from cai_helpers.settings import Models
from cai_helpers.training.policy.lora import POLICY, REFERENCE, require_equal
from cai_helpers.training.policy.reference import Measured, StoredReference
from cai_helpers.training.trainer import Start

TOLERANCE = 0.02


class Check(NamedTuple):
    what: str
    found: str


def check_trained_parameters(model: torch.nn.Module) -> Check:
    """Only the policy's LoRA, and in fp32: the gradient scaler cannot unscale fp16 gradients."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    foreign = [name for name in trained if "lora_" not in name or f".{POLICY}." not in name]
    if foreign or not trained:
        raise CaiError(
            f"Something else than the policy's LoRA would train: {', '.join(foreign[:3]) or 'nothing at all'}.",
            "Take a Stage-2 adapter that is a plain LoRA (no modules_to_save).",
        )
    if wrong := {str(parameter.dtype) for parameter in trained.values()} - {"torch.float32"}:
        raise CaiError(f"The LoRA is in {', '.join(wrong)}; it must train in fp32.", "Update peft to 0.20 or newer.")
    count = sum(parameter.numel() for parameter in trained.values())
    return Check("trained", f"{count:,} parameters in {len(trained)} LoRA matrices, fp32; nothing else")


def check_reference(model: Any, start: Start, models: Models) -> Check:
    if start.adapter is None:
        # TRL copies a LoRA that it is handed; where the base is cut up, it is handed the new one
        how = "a copy of the new LoRA, at zero" if REFERENCE in model.peft_config else "the new LoRA switched off"
        return Check("reference", f"the base model {models.base}{merged_in(start)}, with {how}")
    equal = require_equal(model, REFERENCE, start.adapter)
    name = "the supervised result" if start.adapter != models.adapter else start.adapter
    frozen = get_peft_model_state_dict(model, adapter_name=REFERENCE, save_embedding_layers=False)
    digest = hashlib.sha256()
    for tensor in sorted(frozen):
        digest.update(tensor.encode() + frozen[tensor].float().cpu().contiguous().numpy().tobytes())
    found = f"its {equal} tensors equal the file{merged_in(start)}, sha256 {digest.hexdigest()[:12]}"
    return Check("reference", f"a frozen copy of {name}: {found}")


def check_stored_reference(trainer: StoredReference) -> Check:
    """Two log-probabilities for each row; their hash says whether two runs had the same reference."""
    values = [
        list(dataset[side])
        for dataset in (trainer.train_dataset, trainer.eval_dataset)
        for side in trainer.reference_columns
    ]
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
    return Check("reference log-probabilities", f"{sum(map(len, values))}, computed once, sha256 {digest}")


def merged_in(start: Start) -> str:
    if start.merged is None:
        return ""
    return f" with Stage 2 merged in (rounding moved logits by up to {start.merged.moved:.1g})"


def check_start(batches: list[Measured], losses: str) -> Check:
    """Policy and reference are the same before the first update: every log-ratio is 0, and the loss its value there."""
    loss = sum(batch.loss for batch in batches) / len(batches)
    known = [batch.start for batch in batches if batch.start is not None]
    right = sum(known) / len(known) if known else None  # None: margin and rewards alone are checked
    margin = sum(batch.margin for batch in batches) / len(batches)
    reward = max((side for batch in batches for side in (batch.reward_chosen, batch.reward_rejected)), key=abs)
    error = max(batch.reference_error for batch in batches)
    wrong_loss = right is not None and abs(loss - right) > TOLERANCE * max(1, abs(right))
    if wrong_loss or not max(abs(margin), abs(reward)) <= TOLERANCE:
        raise CaiError(
            f"Before the first update the loss {losses} is {loss:.3f} ({_value(right)}), the margin "
            f"{margin:+.3f} and the largest reward {reward:+.3f} (both must be 0): the reference is not the policy that "
            "training starts from.",
            f"Nothing was trained. The stored reference log-probabilities are up to {error:.3f} off the frozen copy's: "
            "if that is much, run `cai train --fresh`; if not, models.adapter and models.base do not match.",
        )
    start = f"loss {loss:.4f} ({_value(right)}), margin {margin:+.4f}, largest reward {reward:+.4f}"
    return Check("start", start)


def _value(right: float | None) -> str:
    if right is None:
        return "unknown for sft with ld_alpha"
    return f"ln 2 is {right:.4f}" if abs(right - math.log(2)) < 1e-9 else f"its start value is {right:.4f}"
