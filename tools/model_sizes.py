"""What well-known models need of a T4, modelled from their published shapes by training/memory_plan.py's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from cai_helpers.machine.hardware import GIB, Machine
from cai_helpers.settings import Settings, change_settings, load_settings
from cai_helpers.training.memory_plan import MemoryPlan, plan_memory

# What a T4 of 16 GB leaves to a process. The device is "cpu" so that no card is asked for what it has free.
T4 = Machine("cpu", "T4", None, int(14.5 * GIB), 1)
SLOTS = 64
_INSTRUCTIONS = 256  # tokens of a critique prompt besides conversation and draft


class Size(NamedTuple):
    family: str
    name: str
    config: dict[str, Any]  # as in its published config.json
    gated: bool
    fp32: bool = False  # fp16 overflows


class Need(NamedTuple):
    size: Size
    parameters: int
    weights: int  # bytes
    cache: int  # bytes of keys and values, SLOTS answers at once
    slots: int  # of them that fit beside the weights
    plan: MemoryPlan  # the preset t4
    smallest: MemoryPlan  # the same with one pair at a time


def _shape(
    model_type: str, vocabulary: int, hidden: int, mlp: int, layers: int, heads: int, kv: int, tied: bool, **others: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type, "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": tied,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **others,
    }  # fmt: skip


def _gemma(model_type: str, vocabulary: int, hidden: int, mlp: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    return _shape(model_type, vocabulary, hidden, mlp, layers, heads, kv, True, head_dim=256)


SIZES = [
    Size("Gemma 1", "google/gemma-2b-it", _gemma("gemma", 256000, 2048, 16384, 18, 8, 1), True),
    Size("Gemma 2", "google/gemma-2-2b-it", _gemma("gemma2", 256000, 2304, 9216, 26, 8, 4), True),
    Size("Gemma 3", "google/gemma-3-270m-it", _gemma("gemma3_text", 262144, 640, 2048, 18, 4, 1), True, fp32=True),
    Size("Gemma 3", "google/gemma-3-1b-it", _gemma("gemma3_text", 262144, 1152, 6912, 26, 4, 1), True, fp32=True),
    Size("Llama 2", "meta-llama/Llama-2-7b-chat-hf", _shape("llama", 32000, 4096, 11008, 32, 32, 32, False), True),
    Size("Llama 3", "meta-llama/Llama-3.2-1B-Instruct", _shape("llama", 128256, 2048, 8192, 16, 32, 8, True, head_dim=64), True),
    Size("Llama 3", "meta-llama/Llama-3.2-3B-Instruct", _shape("llama", 128256, 3072, 8192, 28, 24, 8, True, head_dim=128), True),
    Size("Mistral", "mistralai/Mistral-7B-Instruct-v0.3", _shape("mistral", 32768, 4096, 14336, 32, 32, 8, False), True),
    Size("Qwen2.5", "Qwen/Qwen2.5-0.5B-Instruct", _shape("qwen2", 151936, 896, 4864, 24, 14, 2, True), False),
    Size("Qwen2.5", "Qwen/Qwen2.5-1.5B-Instruct", _shape("qwen2", 151936, 1536, 8960, 28, 12, 2, True), False),
    Size("Qwen2.5", "Qwen/Qwen2.5-3B-Instruct", _shape("qwen2", 151936, 2048, 11008, 36, 16, 2, True), False),
    Size("Qwen3", "Qwen/Qwen3-0.6B", _shape("qwen3", 151936, 1024, 3072, 28, 16, 8, True, head_dim=128), False),
    Size("Qwen3", "Qwen/Qwen3-1.7B", _shape("qwen3", 151936, 2048, 6144, 28, 16, 8, True, head_dim=128), False),
    Size("Qwen3 Instruct 2507", "Qwen/Qwen3-4B-Instruct-2507", _shape("qwen3", 151936, 2560, 9728, 36, 32, 8, True, head_dim=128), False),
    Size("SmolLM2", "HuggingFaceTB/SmolLM2-135M-Instruct", _shape("llama", 49152, 576, 1536, 30, 9, 3, True), False),
    Size("SmolLM2", "HuggingFaceTB/SmolLM2-1.7B-Instruct", _shape("llama", 49152, 2048, 8192, 24, 32, 32, True), False),
    Size("SmolLM3", "HuggingFaceTB/SmolLM3-3B", _shape("smollm3", 128256, 2048, 11008, 36, 16, 4, True), False),
    Size("Phi-3", "microsoft/Phi-3-mini-4k-instruct", _shape("phi3", 32064, 3072, 8192, 32, 32, 32, False), False),
    Size("Phi-4-mini", "microsoft/Phi-4-mini-instruct", _shape("phi3", 200064, 3072, 8192, 32, 24, 8, True), False),
]  # fmt: skip


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
