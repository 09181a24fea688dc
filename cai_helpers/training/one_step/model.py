"""Of a whole model, all that can be computed in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cai_helpers.training.one_step.gated_mlp import mlp_in_one_step
from cai_helpers.training.one_step.lora_linear import LoraLayers, lora_in_one_step
from cai_helpers.training.one_step.rms_norm import norm_in_one_step

if TYPE_CHECKING:
    import torch


def in_one_step(model: torch.nn.Module) -> LoraLayers:
    """`model`, in place: its plain LoRA layers, its gated MLPs and its frozen norms. Values stay what they were, to rounding."""
    layers = lora_in_one_step(model)
    mlp_in_one_step(model)
    norm_in_one_step(model)
    return layers
