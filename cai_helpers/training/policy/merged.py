"""A new LoRA on the merged Stage 2, and both as one adapter afterwards: exact, by stacking their ranks.

W + s2·B2·A2 is what the new LoRA trains on; the adapter that is exported is [s2·B2, s·B]·[A2; A] on the original W.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict

from cai_helpers.errors import CaiError
from cai_helpers.models.language import attach_adapter
from cai_helpers.training.policy.lora import POLICY

_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # PEFT's names in a file
_REWRITES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that move W as well


class Factor(NamedTuple):
    """One module's low-rank update up @ down, in fp32 on the CPU."""

    down: torch.Tensor  # A: (rank, inputs)
    up: torch.Tensor  # B times its scaling: (outputs, rank)


Factors = dict[str, Factor]  # by the module's name in the base model


class Merged(NamedTuple):
    factors: Factors
    moved: float  # largest difference of a logit, merged against unmerged; rounding to the base's precision


def merge_stage2(model: Any, name: str, probe: list[int]) -> tuple[Any, Merged]:
    """`model` with the LoRA at `name` added to its weights, in fp32 and rounded once to the model's precision.

    probe: token ids of one sequence, on which the effect of the rounding is measured.

    Raises:
        CaiError: the adapter is more than plain LoRA matrices, or was made for a model of another shape.
    """
    tokens = torch.tensor([probe], device=model.device)
    with_adapter = attach_adapter(model, name, POLICY).eval()
    _require_plain(with_adapter, name)
    factors = factors_of(with_adapter)
    with torch.no_grad():
        before = with_adapter(input_ids=tokens).logits.float()
        for _, layer in _lora_layers(with_adapter):
            weight = layer.get_base_layer().weight
            # PEFT's own merge rounds the update to fp16 first and the sum again
            weight.data.copy_(weight.float() + layer.get_delta_weight(POLICY).float())
        model = with_adapter.unload()
        moved = (model(input_ids=tokens).logits.float() - before).abs().max().item()
    return model, Merged(factors, moved)


def factors_of(model: Any) -> Factors:
    """The policy's LoRA as plain factors, their scaling (alpha / r, rsLoRA's and patterns included) folded in."""
    return {
        name: Factor(
            layer.lora_A[POLICY].weight.detach().float().cpu().clone(),
            layer.lora_B[POLICY].weight.detach().float().cpu() * layer.scaling[POLICY],
        )
        for name, layer in _lora_layers(model)
    }


def combined(stage2: Factors, model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Stage 2 and the model's trained LoRA as one: (what to write into adapter_config.json, tensors by PEFT's names).

    All modules get the rank of the largest sum, the rest zeros: a zero row of A with a zero column of B adds nothing,
    and other software reads one rank more reliably than a pattern of ranks.
    """
    trained = factors_of(model)
    pairs = {name: [part[name] for part in (stage2, trained) if name in part] for name in {*stage2, *trained}}
    rank = max(sum(len(factor.down) for factor in parts) for parts in pairs.values())
    tensors = {}
    for name, parts in sorted(pairs.items()):
        down, up = torch.cat([factor.down for factor in parts]), torch.cat([factor.up for factor in parts], dim=1)
        missing = rank - len(down)
        tensors[f"{_PREFIX}{name}{_DOWN}"] = torch.nn.functional.pad(down, (0, 0, 0, missing)).contiguous()
        tensors[f"{_PREFIX}{name}{_UP}"] = torch.nn.functional.pad(up, (0, missing)).contiguous()
    changes = {
        "r": rank,
        "lora_alpha": rank,  # scaling 1: the scalings are in the tensors
        "lora_dropout": 0.0,  # of two LoRAs with two dropouts
        "target_modules": _targets(model, set(pairs)),
    }
    plain = LoraConfig()
    kept_plain = ("use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern")
    return changes | {field: getattr(plain, field) for field in (*kept_plain, "exclude_modules")}, tensors


def _targets(model: Any, names: set[str]) -> list[str]:
    """The shortest names that mean exactly these modules: PEFT matches the end of a module's name."""
    last = {name.rpartition(".")[2] for name in names}
    matching = {name for name, _ in model.get_base_model().named_modules() if name.rpartition(".")[2] in last}
    return sorted(last if matching == names else names)


def _lora_layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and POLICY in module.lora_A:
            yield name, module


def _require_plain(model: Any, name: str) -> None:
    """Only what W + s·B·A describes can be merged and stacked."""
    config = model.peft_config[POLICY]
    tensors = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
    known = {f"{_PREFIX}{layer}{end}" for layer, _ in _lora_layers(model) for end in (_DOWN, _UP)}
    odd = sorted(tensors.keys() - known)
    kinds = {
        "DoRA": config.use_dora,
        "modules_to_save": config.modules_to_save,
        "a trained bias": config.bias != "none",
        "a variant of LoRA": any(POLICY in getattr(layer, "lora_variant", {}) for _, layer in _lora_layers(model)),
        "an initialisation that changes the base": str(config.init_lora_weights).startswith(_REWRITES_THE_BASE),
        f"{', '.join(odd[:2])}": odd,
    }
    found = [kind for kind, present in kinds.items() if present]
    tied = getattr(model.config, "tie_word_embeddings", False)
    if not found and tied and isinstance(model.get_output_embeddings(), LoraLayer):
        found = ["a LoRA on the output layer, which shares its weights with the embeddings"]
    if found:
        raise CaiError(
            f"The adapter {name} cannot be merged and combined with a new one: it has {'; '.join(found)}.",
            "Set train.fresh_adapter=false to continue it, or take a Stage-2 adapter that is a plain LoRA.",
        )
