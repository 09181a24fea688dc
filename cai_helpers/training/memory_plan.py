"""What training will need of the accelerator's memory, estimated before anything is loaded, against what there is."""

from __future__ import annotations

from typing import Any

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, Dtype, Machine, usable_memory
from cai_helpers.models.hub import from_hub, locate
from cai_helpers.schema import Record
from cai_helpers.settings import Settings, Train

# Values a token that a layer keeps for its backward pass: _KEPT_HIDDEN times the hidden size and _KEPT_MLP times the MLP's;
# the LoRA on each linear layer keeps copies of its own. While one layer is worked on, _WORKING times the MLP's come on
# top. Fitted to the peaks of three shapes on a GPU: benchmarks/memory_plan.py, and benchmarks/RESULTS.md has both sides.
_KEPT_HIDDEN, _KEPT_MLP, _WORKING = 16, 4, 3
_TILE_TOKENS, _TILE_COLUMNS = 4096, 8192  # of the logits that TRL's chunked head holds at once
_CLEARLY_TOO_MUCH, _TIGHT = 1.1, 0.9  # times the memory there is; the estimate is no better than that


class MemoryPlan(Record):
    """Bytes, at the peak of a training step."""

    weights: int
    adapters: int
    activations: int
    head: int
    limit: int  # what this process may use
    device: str

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.activations + self.head

    @property
    def too_much(self) -> bool:
        return self.total > _CLEARLY_TOO_MUCH * self.limit

    @property
    def tight(self) -> bool:
        return self.total > _TIGHT * self.limit

    def line(self) -> str:
        parts = {"weights": self.weights, "LoRA": self.adapters, "activations": self.activations, "head": self.head}
        sums = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        tight = "; TIGHT: it may run out" if self.tight else ""
        return f"about {self.total / GIB:.1f} of {self.limit / GIB:.1f} GiB on {self.device} ({sums}){tight}"


def plan_memory(settings: Settings, dtype: Dtype, machine: Machine, longest: int, sides: int) -> MemoryPlan:
    """The peak of a training step with `settings.train.batch_size` rows of `sides` sequences of `longest` tokens.

    sides: 2 of a pair, both in one batch; 1 of an answer, for KTO and supervised fine-tuning. What KTO computes for its
    KL keeps nothing for a backward pass, and is over before the step's own activations are there.

    weights       every parameter in the precision of the base
    adapters      LoRA on every linear layer: weight, gradient and Adam's two moments in fp32, and the frozen copy that
                  is the reference of a Stage-2 adapter
    activations   tokens · (16 · hidden + 4 · MLP) values for each layer; with gradient checkpointing for one layer, and the
                  inputs of all (Chen et al. 2016, arXiv 1604.06174); and tokens · 3 · MLP for the layer at work
    head          TRL's chunked head: one tile of 4096 tokens by 8192 logits, and the hidden states with their gradient
                  in fp32; the full logits, tokens by vocabulary, are never there
    tokens        sides · batch · longest

    On a GPU the CUDA context (some 0.4 GiB) and what the allocator cannot fill come on top.
    """
    config, parameters, lora = _shape(settings)
    size = 4 if dtype == "fp32" else 2
    tokens = sides * settings.train.batch_size * longest
    layers, hidden = config.num_hidden_layers, config.hidden_size
    mlp = config.intermediate_size
    kept = tokens * (_KEPT_HIDDEN * hidden + _KEPT_MLP * mlp) * size
    if settings.train.gradient_checkpointing:
        kept += layers * tokens * hidden * size
    else:
        kept *= layers
    return MemoryPlan(
        weights=parameters * size,
        adapters=lora * (20 if settings.models.adapter else 16),
        activations=kept + tokens * _WORKING * mlp * size,
        head=min(tokens, _TILE_TOKENS) * _TILE_COLUMNS * size + 2 * tokens * hidden * 4,
        limit=usable_memory(machine),
        device=machine.name,
    )


def require_memory(plan: MemoryPlan, settings: Settings) -> MemoryPlan:
    """`plan`, unless it is clearly more than there is.

    Raises:
        CaiError: it is; the message says what to make smaller.
    """
    if not plan.too_much:
        return plan
    train = settings.train
    smaller = []
    if not train.gradient_checkpointing:
        smaller.append("train.gradient_checkpointing=true")
    smaller += [*filter(None, [smaller_batch(train)]), "a smaller train.max_length", "a larger card"]
    raise CaiError(
        f"Training does not fit: it takes {plan.line().replace('; TIGHT: it may run out', '')}.",
        f"Nothing was trained. Set {', or '.join(smaller)}; restart the runtime if something else holds memory.",
    )


def smaller_batch(train: Train) -> str:
    """Half the batch with the same effective one, as settings; "" where it cannot be halved: KTO needs two answers."""
    half = train.batch_size // 2
    if half < (2 if train.method == "kto" else 1):
        return ""
    return f"train.batch_size={half} with train.accumulation={train.accumulation * 2}"


def _shape(settings: Settings) -> tuple[Any, int, int]:
    """(configuration, parameters of the base, parameters of a LoRA on all its linear layers); no weight is loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name = settings.models.base
    config = from_hub(lambda: AutoConfig.from_pretrained(locate(name), trust_remote_code=False), name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    rank = _rank(settings)
    lora = sum(rank * (part.in_features + part.out_features) for part in linear)
    return config.get_text_config(), sum(weights.numel() for weights in model.parameters()), lora


def _rank(settings: Settings) -> int:
    from peft import PeftConfig

    name = settings.models.adapter
    if name is None:
        return settings.train.lora_r
    return from_hub(lambda: PeftConfig.from_pretrained(locate(name)), name).r
