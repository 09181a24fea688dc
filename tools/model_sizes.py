"""What well-known models need of a T4, modelled from their published shapes by training/memory_plan.py's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from cai_helpers.machine.hardware import GIB, Machine
from cai_helpers.models.shapes import KNOWN
from cai_helpers.settings import Settings, change_settings, load_settings
from cai_helpers.training.memory_plan import MemoryPlan, plan_memory

# What a T4 of 16 GB leaves to a process. The device is "cpu" so that no card is asked for what it has free.
T4 = Machine("cpu", "T4", None, int(14.5 * GIB), 1)
SLOTS = 64
_INSTRUCTIONS = 256  # tokens of a critique prompt besides conversation and draft


class Size(NamedTuple):
    family: str
    name: str
    gated: bool
    fp32: bool = False  # fp16 overflows

    @property
    def config(self) -> dict[str, Any]:
        return KNOWN[self.name]


class Need(NamedTuple):
    size: Size
    parameters: int
    weights: int  # bytes
    cache: int  # bytes of keys and values, SLOTS answers at once
    slots: int  # of them that fit beside the weights
    plan: MemoryPlan  # the preset t4
    smallest: MemoryPlan  # the same with one pair at a time


SIZES = [
    Size("Gemma 1", "google/gemma-2b-it", True),
    Size("Gemma 2", "google/gemma-2-2b-it", True),
    Size("Gemma 3", "google/gemma-3-270m-it", True, fp32=True),
    Size("Gemma 3", "google/gemma-3-1b-it", True, fp32=True),
    Size("Llama 2", "meta-llama/Llama-2-7b-chat-hf", True),
    Size("Llama 3", "meta-llama/Llama-3.2-1B-Instruct", True),
    Size("Llama 3", "meta-llama/Llama-3.2-3B-Instruct", True),
    Size("Mistral", "mistralai/Mistral-7B-Instruct-v0.3", True),
    Size("Qwen2.5", "Qwen/Qwen2.5-0.5B-Instruct", False),
    Size("Qwen2.5", "Qwen/Qwen2.5-1.5B-Instruct", False),
    Size("Qwen2.5", "Qwen/Qwen2.5-3B-Instruct", False),
    Size("Qwen3", "Qwen/Qwen3-0.6B", False),
    Size("Qwen3", "Qwen/Qwen3-1.7B", False),
    Size("Qwen3 Instruct 2507", "Qwen/Qwen3-4B-Instruct-2507", False),
    Size("SmolLM2", "HuggingFaceTB/SmolLM2-135M-Instruct", False),
    Size("SmolLM2", "HuggingFaceTB/SmolLM2-1.7B-Instruct", False),
    Size("SmolLM3", "HuggingFaceTB/SmolLM3-3B", False),
    Size("Phi-3", "microsoft/Phi-3-mini-4k-instruct", False),
    Size("Phi-4-mini", "microsoft/Phi-4-mini-instruct", False),
]


def answer_length(settings: Settings) -> int:
    """Tokens of the longest thing that is generated: a conversation, its draft, the instructions, and a critique."""
    generate = settings.generate
    return settings.prompts.max_tokens + generate.draft_tokens + _INSTRUCTIONS + generate.critic_tokens


def need_of(size: Size) -> Need:
    """The weights as they are counted on torch's meta device; every layer's keys and values held for the whole length.

    Layers with a sliding window hold less of a long text than that.
    """
    config, dtype = size.config, "fp32" if size.fp32 else "fp16"
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        settings = load_settings("t4", [f"models.base={folder}"])
        plan = plan_memory(settings, dtype, T4, settings.train.max_length, sides=2)
        single = change_settings(settings, ["train.batch_size=1"])
        smallest = plan_memory(single, dtype, T4, settings.train.max_length, sides=2)
    bytes_each = 4 if size.fp32 else 2
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head  # keys and values, a token
    one_slot = values * bytes_each * answer_length(settings)
    room = max(0, int(0.9 * T4.memory) - plan.weights)
    return Need(
        size, plan.weights // bytes_each, plan.weights, one_slot * SLOTS, min(SLOTS, room // one_slot), plan, smallest
    )


def verdict(need: Need) -> str:
    """In one word or two, by the limits of memory_plan: tight above 90 % of the memory, too much above 110 %."""
    if need.slots == 0 or need.smallest.too_much:
        return "does not fit"
    if need.plan.tight:
        return "tight" if need.smallest.tight else "fits with `train.batch_size=1`"
    return "fits"
