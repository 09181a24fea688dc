"""What must hold before the first update. A wrong reference trains without an error, and gets worse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cai_helpers.adapters import POLICY, REFERENCE, require_equal
from cai_helpers.dpo import Measured, PolicyTrainer
from cai_helpers.errors import CaiError
from cai_helpers.losses import readable
from cai_helpers.policy_trainer import Start
from cai_helpers.settings import Models

TOLERANCE = 0.02
_PAIRS = 16  # measured for the loss


class Check(NamedTuple):
    what: str
    found: str


def check_flight(trainer: PolicyTrainer, models: Models) -> list[Check]:
    """One line for each thing that was checked.

    Raises:
        CaiError: one of them does not hold; it says which, and what to do.
    """
    return [
        check_trained_parameters(trainer.model),
        _check_reference(trainer.model, trainer.start, models),
        _check_start(trainer.measure(_PAIRS), readable(trainer.loss_types, trainer.loss_weights)),
        _check_ends(trainer),
    ]


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


def _check_reference(model: torch.nn.Module, start: Start, models: Models) -> Check:
    if start.adapter is not None:
        equal = require_equal(model, REFERENCE, start.adapter)
        name = "the supervised result" if start.adapter != models.adapter else start.adapter
        return Check("reference", f"a frozen copy of {name}: its {equal} tensors equal the file{merged_in(start)}")
    return Check("reference", f"the base model {models.base}{merged_in(start)}, with the new LoRA switched off")


def merged_in(start: Start) -> str:
    if start.merged is None:
        return ""
    return f" with Stage 2 merged in (rounding moved logits by up to {start.merged.moved:.1g})"


def _check_start(batches: list[Measured], losses: str) -> Check:
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


def _check_ends(trainer: PolicyTrainer) -> Check:
    """How many answers teach the model to end; a template without an end-of-turn token is said, not refused."""
    ends = trainer.model.generation_config.eos_token_id
    ends = {trainer.processing_class.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    answers = [ids for side in ("chosen_ids", "rejected_ids") for ids in trainer.train_dataset[side]]
    ended = sum(not ends.isdisjoint(ids[-2:]) for ids in answers)  # Gemma's template closes with <end_of_turn> and "\n"
    return Check("end token", f"{ended} of {len(answers)} answers close with one")
