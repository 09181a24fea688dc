"""What training will need of the accelerator's memory, estimated before anything is loaded, against what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, TIGHT, Dtype, Machine, usable_memory
from cai_helpers.machine.processes import base_is_cut_up, launched
from cai_helpers.models.hub import from_hub, locate
from cai_helpers.models.shapes import config_of
from cai_helpers.schema import Record
from cai_helpers.settings import Settings, Train
from cai_helpers.training.arithmetic import arithmetic_of
from cai_helpers.training.cut_up import parameters_held

_WORKING = 4  # values, times the MLP's width, that come on top of what is kept while one layer is worked on
_TILE_TOKENS, _TILE_COLUMNS = 4096, 8192  # of the logits that TRL's chunked head holds at once
_CLEARLY_TOO_MUCH = 1.1  # times the memory there is; the estimate is no better than that


class MemoryPlan(Record):
    """Bytes, at the peak of a training step."""

    weights: int
    adapters: int
    activations: int
    head: int
    limit: int  # what this process may use
    device: str
    tokens: int = 0  # of all sequences that are computed at once
    checkpointing: bool = False  # whether they are computed twice, because they would not fit otherwise

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.activations + self.head

    @property
    def too_much(self) -> bool:
        return self.total > _CLEARLY_TOO_MUCH * self.limit

    @property
    def tight(self) -> bool:
        return self.total > TIGHT * self.limit

    def line(self) -> str:
        parts = {"weights": self.weights, "LoRA": self.adapters, "activations": self.activations, "head": self.head}
        sums = " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        how = f"; at most {self.tokens:,} tokens at once, {'with' if self.checkpointing else 'without'} checkpointing"
        tight = "; TIGHT: it may run out" if self.tight else ""
        return f"about {self.total / GIB:.1f} of {self.limit / GIB:.1f} GiB on {self.device} ({sums}){how}{tight}"


class Room(NamedTuple):
    """How many tokens fit at once, of all sequences together and with their padding."""

    tokens: int  # kept for the backward pass; 0: train.gradient_checkpointing is true
    thrifty: int  # with gradient checkpointing; 0: it is false


class Part(NamedTuple):
    """Rows of a batch that are computed at once."""

    rows: list[int]
    width: int  # tokens of the largest
    checkpointed: bool

    @property
    def tokens(self) -> int:
        return len(self.rows) * self.width


def parts_of(sizes: Sequence[int], room: Room, whole: bool = False) -> list[Part]:
    """A batch cut into as few parts as fit, the largest rows first; the rows that do not fit alone are checkpointed.

    sizes: tokens of each row, all its sequences together. whole: the rows must stay together, so all are checkpointed
    where they do not fit. What does not fit even so stands in a part of its own.
    """
    parts: list[Part] = []
    if whole:
        width = max(sizes)
        return [Part([*range(len(sizes))], width, bool(room.thrifty) and len(sizes) * width > room.tokens)]
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        checkpointed = bool(room.thrifty) and sizes[row] > room.tokens
        fits = room.thrifty if checkpointed else room.tokens
        last = parts[-1] if parts else None
        if last and last.checkpointed == checkpointed and (len(last.rows) + 1) * last.width <= fits:
            last.rows.append(row)
        else:
            parts.append(Part([row], sizes[row], checkpointed))
    return parts


class _Costs(NamedTuple):
    """Bytes of a training step: what is there always, and what each token adds."""

    weights: int
    adapters: int
    kept: int  # a token's activations that wait for the backward pass
    thrifty: int  # the same under gradient checkpointing
    working: int  # a token's, in the layer at work
    tile: int  # of logits, for each token up to _TILE_TOKENS
    hidden: int  # a token's hidden state at the head, and its gradient

    def plan(self, tokens: int, checkpointing: bool, limit: int, device: str) -> MemoryPlan:
        return MemoryPlan(
            weights=self.weights,
            adapters=self.adapters,
            activations=tokens * ((self.thrifty if checkpointing else self.kept) + self.working),
            head=min(tokens, _TILE_TOKENS) * self.tile + tokens * self.hidden,
            limit=limit,
            device=device,
            tokens=tokens,
            checkpointing=checkpointing,
        )

    def room(self, limit: int, checkpointing: bool | None) -> Room:
        free = max(0, int(TIGHT * limit) - self.weights - self.adapters - _TILE_TOKENS * self.tile)
        kept, thrifty = (free // (each + self.working + self.hidden) for each in (self.kept, self.thrifty))
        return Room(0 if checkpointing else kept, 0 if checkpointing is False else max(1, thrifty))


def plan_room(settings: Settings, dtype: Dtype, machine: Machine) -> Room:
    """What fits at once, by the estimate of `plan_memory`, with a tenth of the memory left free.

    On a GPU the memory is rounded down to half a GiB: how a batch is cut must not depend on what else holds a few MB of it.
    """
    limit = usable_memory(machine)
    if machine.device != "cpu":
        limit = limit // (GIB // 2) * (GIB // 2)
    return _costs(settings, dtype).room(limit, settings.train.gradient_checkpointing)


def plan_memory(
    settings: Settings, dtype: Dtype, machine: Machine, longest: int, sides: int, whole: bool = False
) -> MemoryPlan:
    """The peak of a training step with `settings.train.batch_size` rows of `sides` sequences of `longest` tokens.

    sides: 2 of a pair, both in one batch, which is cut into parts that fit (`parts_of`) unless it must stay `whole`; 1 of an
    answer, for KTO and supervised fine-tuning, whose batches are never cut. What KTO computes for its KL keeps nothing for
    a backward pass, and is over before the step's own activations are there. Pairs that share their prompt take less.

    weights       every parameter in the precision of the base
    adapters      LoRA on every linear layer: weight, gradient and Adam's two moments in fp32, and the frozen copy that
                  is the reference of a Stage-2 adapter
    activations   tokens · what a layer keeps (training/kept.py) for each layer; with gradient checkpointing for one layer,
                  and the inputs of all (Chen et al. 2016, arXiv 1604.06174); and tokens · 4 · MLP for the layer at work
    head          TRL's chunked head: one tile of 4096 tokens by 8192 logits, and the hidden states with their gradient
                  in fp32; the full logits, tokens by vocabulary, are never there
    tokens        sides · longest · rows of the largest part

    On a GPU the CUDA context (some 0.4 GiB) and what the allocator cannot fill come on top.
    """
    train, limit = settings.train, usable_memory(machine)
    costs = _costs(settings, dtype)
    room = costs.room(limit, train.gradient_checkpointing)
    parts = parts_of([sides * longest] * train.batch_size, room, whole or sides == 1)
    largest = max(parts, key=lambda part: part.tokens)
    return costs.plan(largest.tokens, largest.checkpointed, limit, machine.name)


def plan_of_sizes(settings: Settings, dtype: Dtype, machine: Machine, sizes: Sequence[int], batch: int) -> MemoryPlan:
    """The peak of DPO on pairs of these tokens, those of like length together, cut to what fits at once."""
    costs, room = _costs(settings, dtype), plan_room(settings, dtype, machine)
    order = sorted(sizes, reverse=True)
    parts = [part for start in range(0, len(order), batch) for part in parts_of(order[start : start + batch], room)]
    limit = usable_memory(machine)
    plans = [costs.plan(part.tokens, part.checkpointed, limit, machine.name) for part in parts]
    return max(plans, key=lambda plan: plan.total)


def settle_checkpointing(settings: Settings, dtype: Dtype, machine: Machine, longest: int) -> Settings:
    """For a method whose batches are never cut: train.gradient_checkpointing true or false, by the longest sequence."""
    plan = plan_memory(settings, dtype, machine, longest, sides=1)
    train = settings.train.model_copy(update={"gradient_checkpointing": plan.checkpointing})
    return settings.model_copy(update={"train": train})


def require_memory(plan: MemoryPlan, settings: Settings) -> MemoryPlan:
    """`plan`, unless it is clearly more than there is.

    Raises:
        CaiError: it is; the message says what to make smaller.
    """
    if not plan.too_much:
        return plan
    train = settings.train
    smaller = []
    if train.gradient_checkpointing is False:
        smaller.append("train.gradient_checkpointing=null")
    if train.method != "dpo":  # whose batches are cut to what fits
        smaller += filter(None, [smaller_batch(train)])
    smaller += ["a smaller train.max_length", "a larger card, or more of them (FSDP, docs/SCALING.md)"]
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


def _costs(settings: Settings, dtype: Dtype) -> _Costs:
    from cai_helpers.training.kept import kept_by_a_layer

    model, parameters, lora = _shape(settings)
    config, size = model.config.get_text_config(), 4 if dtype == "fp32" else 2
    layers, hidden, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    one_layer = int(kept_by_a_layer(model, "dpo" in settings.train.method, settings.train.max_length) * size)
    return _Costs(
        weights=parameters * size,
        adapters=lora * (20 if settings.models.adapter else 16),
        kept=layers * one_layer,
        thrifty=one_layer + layers * hidden * size,
        working=_WORKING * mlp * size,
        tile=_TILE_COLUMNS * size,
        hidden=2 * hidden * 4,
    )


def _shape(settings: Settings) -> tuple[Any, int, int]:
    """(the base without its weights, parameters of it that this process holds, those of a LoRA on all its linear layers)."""
    model = empty_model(settings.models.base)
    whole = sum(weights.numel() for weights in model.parameters())
    parameters = parameters_held(model, launched()) if base_is_cut_up() else whole
    return model, parameters, arithmetic_of(model, lora_rank(settings)).lora


def empty_model(name: str) -> Any:
    """The model of this name on torch's meta device: no weight is loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(name).config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def lora_rank(settings: Settings) -> int:
    """Of the adapter that is trained."""
    from peft import PeftConfig

    name = settings.models.adapter
    if name is None:
        return settings.train.lora_r
    return from_hub(lambda: PeftConfig.from_pretrained(locate(name)), name).r
