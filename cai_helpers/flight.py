"""What must hold before the first update. A wrong reference trains without an error, and gets worse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from cai_helpers.dpo import POLICY, REFERENCE, Measured, PolicyTrainer, require_equal
from cai_helpers.errors import CaiError
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
        _check_trained_parameters(trainer.model),
        _check_reference(trainer.model, models),
        _check_start(trainer.measure(_PAIRS)),
        _check_ends(trainer),
    ]


def _check_trained_parameters(model: torch.nn.Module) -> Check:
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


def _check_reference(model: torch.nn.Module, models: Models) -> Check:
    if models.adapter is None:
        return Check("reference", f"the base model {models.base}, with the new LoRA switched off")
    equal = require_equal(model, REFERENCE, models.adapter)
    return Check("reference", f"a frozen copy of {models.adapter}: its {equal} tensors equal the file")


def _check_start(batches: list[Measured]) -> Check:
    """Policy and reference are the same before the first update, so every log-ratio of eq. 7 is 0 and the loss ln 2."""
    loss = sum(batch.loss for batch in batches) / len(batches)
    margin = sum(batch.margin for batch in batches) / len(batches)
    reward = max((side for batch in batches for side in (batch.reward_chosen, batch.reward_rejected)), key=abs)
    error = max(batch.reference_error for batch in batches)
    if max(abs(loss - math.log(2)), abs(margin), abs(reward)) > TOLERANCE:
        raise CaiError(
            f"Before the first update the DPO loss is {loss:.3f} (must be ln 2 = 0.693), the margin {margin:+.3f} and "
            f"the largest reward {reward:+.3f} (must be 0): the reference is not the policy that training starts from.",
            f"Nothing was trained. The stored reference log-probabilities are up to {error:.3f} off the frozen copy's: "
            "if that is much, run `cai train --fresh`; if not, models.adapter and models.base do not match.",
        )
    return Check("start", f"loss {loss:.4f} (ln 2 is 0.6931), margin {margin:+.4f}, largest reward {reward:+.4f}")


def _check_ends(trainer: PolicyTrainer) -> Check:
    """How many answers teach the model to end; a template without an end-of-turn token is said, not refused."""
    ends = trainer.model.generation_config.eos_token_id
    ends = {trainer.processing_class.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    answers = [ids for side in ("chosen_ids", "rejected_ids") for ids in trainer.train_dataset[side]]
    ended = sum(not ends.isdisjoint(ids[-2:]) for ids in answers)  # Gemma's template closes with <end_of_turn> and "\n"
    return Check("end token", f"{ended} of {len(answers)} answers close with one")
