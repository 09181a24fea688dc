"""What training will need of the memory: counted layer by layer, held against peaks on a GPU, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_in_one_step import with_lora
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, LlamaConfig, Phi3Config, Qwen3Config

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, Machine
from cai_helpers.settings import load_settings
from cai_helpers.training import kept
from cai_helpers.training.memory_plan import plan_memory, require_memory, smaller_batch
from cai_helpers.training.one_step.model import in_one_step
from cai_helpers.training.policy.shared_prompt import attending_in_pairs
from cai_helpers.training.rows.batches import lay_out


@pytest.fixture(scope="module")
def gemma_shape(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    GemmaConfig(
        vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("batch", "tokens", "sides", "thrifty", "measured"),  # GiB on a GPU, benchmarks/RESULTS.md
    [
        (2, 508, 2, True, 5.9),
        (8, 514, 2, True, 7.84),
        (2, 1024, 2, True, 6.39),
        (1, 2691, 1, False, 11.18),  # pairs that share their prompts: tokens of all that were computed at once
        (1, 3015, 1, False, 12.05),
    ],
)
def test_the_memory_plan_is_what_was_measured_or_a_little_more(gemma_shape, batch, tokens, sides, thrifty, measured):
    changes = [f"models.base={gemma_shape}", f"train.batch_size={batch}", f"train.gradient_checkpointing={thrifty}"]
    plan = plan_memory(load_settings("t4", changes), "fp16", Machine("cpu", "a card", None, 15 * GIB, 1), tokens, sides)
    # those with checkpointing where each side had its own prompt; where pairs share it more is kept a token
    assert plan.checkpointing == thrifty
    assert 0.95 * measured < plan.total / GIB < 1.12 * measured


def test_a_plan_that_is_clearly_too_much_stops_and_one_that_is_tight_says_so(gemma_shape):
    changes = [f"models.base={gemma_shape}", "train.gradient_checkpointing=false", "train.batch_size=2"]
    settings = load_settings("t4", changes)

    def plan(gib: float):
        return plan_memory(settings, "fp16", Machine("cpu", "a card", None, int(gib * GIB), 1), 514, sides=2)

    with pytest.raises(
        CaiError, match=r"about 7.4 of 6.5 GiB(?s:.*)gradient_checkpointing=null, or a smaller train.max_length"
    ):
        require_memory(plan(6.5), settings)
    assert "TIGHT" in require_memory(plan(8), settings).line()
    assert "TIGHT" not in require_memory(plan(14.5), settings).line()
    assert (plan(9).tokens, plan(14.5).tokens) == (1028, 2056)  # a batch that does not fit whole is cut


def test_checkpointing_is_for_what_fits_no_other_way(gemma_shape):
    settings = load_settings("t4", [f"models.base={gemma_shape}"])

    def plan(gib: float, longest: int):
        return plan_memory(settings, "fp16", Machine("cpu", "a card", None, int(gib * GIB), 1), longest, sides=2)

    assert (plan(14.5, 508).tokens, plan(14.5, 508).checkpointing) == (3048, False)
    assert (plan(14.5, 1024).tokens, plan(14.5, 1024).checkpointing) == (2048, False)
    assert (plan(9, 1024).tokens > 2048, plan(9, 1024).checkpointing) == (True, True)


def test_half_a_batch_is_only_advised_where_the_method_can_have_it():
    def advice(method: str, batch: int) -> str:
        return smaller_batch(load_settings("smoke", [f"train.method={method}", f"train.batch_size={batch}"]).train)

    assert [advice("dpo", 1), advice("kto", 2)] == ["", ""]
    assert advice("dpo", 2).startswith("train.batch_size=1 with")
    assert advice("kto", 4).startswith("train.batch_size=2 with")


# ---- what a layer keeps of a token


def kept_by_a_layer(config, one_step: bool, shared: bool, monkeypatch) -> float:
    """Bytes a token that one layer more keeps in half precision. Dropout as on a GPU, which keeps a mask of a byte."""

    def dropout(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p else x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    layout = lay_out([{"prompt_ids": [2] * 24, "chosen_ids": [3] * 36, "rejected_ids": [4] * 36}] * 2, pad=0)
    batch = {"input_ids": layout.tokens, "use_cache": False}
    if shared:
        batch |= {"position_ids": layout.positions, "of_sides": layout.of_sides, "of_rows": layout.of_rows}
    sizes = []
    for layers in (1, 2):
        config.num_hidden_layers = layers
        model = with_lora(config, dtype=torch.bfloat16)
        model.enable_input_require_grads()
        if one_step:
            in_one_step(model)
        own = model.base_model.model
        if shared:
            with attending_in_pairs(own):
                sizes.append(_kept(own.model, batch))
        else:
            sizes.append(_kept(own.model, batch))
    return (sizes[1] - sizes[0]) / layout.tokens.numel()


def _kept(model, batch) -> int:
    """Bytes of all storages that wait for the backward pass, but for those of weights and of casts of them."""
    tokens = {*batch["input_ids"].shape, batch["input_ids"].numel()}
    tokens |= set(batch["of_sides"].shape) if "of_sides" in batch else set()
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    storages: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights and not tokens.isdisjoint(tensor.shape):
            storages[place] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(**batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


WIDE = {"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
PROPORTIONS = {
    "gemma-2b": GemmaConfig(
        **WIDE,
        hidden_size=512,
        intermediate_size=4096,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=64,
    ),
    "llama-8b": LlamaConfig(
        **WIDE, hidden_size=512, intermediate_size=1792, num_attention_heads=32, num_key_value_heads=8
    ),
    "qwen3-0.6b": Qwen3Config(
        **WIDE, hidden_size=512, intermediate_size=1536, num_attention_heads=8, num_key_value_heads=4, head_dim=64
    ),
    "phi-3": Phi3Config(
        **WIDE, hidden_size=512, intermediate_size=1365, num_attention_heads=16, num_key_value_heads=16
    ),
    "gemma-2-2b": Gemma2Config(
        **WIDE, hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=4, head_dim=64
    ),
}


@pytest.mark.parametrize(
    ("name", "shared"),
    [(name, shared) for name in PROPORTIONS for shared in (False, True) if (name, shared) != ("gemma-2-2b", True)],
)
def test_the_memory_plan_counts_what_a_layer_keeps(name, shared, monkeypatch):
    config = PROPORTIONS[name]
    by_peft, by_us = (kept_by_a_layer(config, one_step, shared, monkeypatch) for one_step in (False, True))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    planned = 2 * kept.kept_by_a_layer(model, shared, longest=96)
    assert by_us < by_peft - 2 * config.intermediate_size
    assert 0.98 * by_us <= planned <= 1.1 * by_us


def test_the_memory_plan_counts_more_where_torch_computes_mlp_and_norms(monkeypatch):
    config = PROPORTIONS["llama-8b"]
    by_peft = kept_by_a_layer(config, False, False, monkeypatch)
    monkeypatch.setattr(kept, "gated_mlps", lambda layer: [])
    monkeypatch.setattr(kept, "known_norms", lambda layer: [])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert 0.7 * by_peft < 2 * kept.kept_by_a_layer(model, False, longest=96) <= by_peft  # whose LoRA layers keep more
