"""Pairs of like length, cut to what fits, their prompt once: another order of the same work, with the same losses."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_run import make_settings, make_trainer, make_workspace
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from trl.trainer.utils import add_fused_lm_head

from cai_helpers.training.arithmetic import arithmetic_of
from cai_helpers.training.cut_batches import _with_layout
from cai_helpers.training.memory_plan import Part, Room, parts_of
from cai_helpers.training.policy.shared_prompt import attending_in_pairs, why_not_shared
from cai_helpers.training.rows.batches import InParts, LikeLengths, PairCollator, lay_out, lengths_of

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
MODELS = {
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "granite": GraniteConfig(**SMALL, attention_multiplier=0.3, logits_scaling=2.0),
    "olmo2": Olmo2Config(**SMALL),
    "phi3": Phi3Config(**SMALL, sliding_window=None),
    "smollm3": SmolLM3Config(**SMALL),
}
ROWS = [
    {"prompt_ids": [2, 7, 9, 11], "chosen_ids": [12, 13, 5], "rejected_ids": [14, 5]},
    {"prompt_ids": [2, 8], "chosen_ids": [15], "rejected_ids": [16, 17, 18, 19, 20, 21, 5]},
    {"prompt_ids": [2, 9, 10, 11, 12, 13, 14], "chosen_ids": [22, 5], "rejected_ids": [23, 24, 25, 26]},
]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_and_gradients_are_those_of_each_side_alone(name, checkpointing):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name])
    assert why_not_shared(model) is None
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    batch = PairCollator(pad_token_id=0, shared=True)(ROWS)
    answers = batch["completion_mask"][:, 1:].bool()

    def run(callee, inputs) -> tuple[dict, list[torch.Tensor]]:
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        found = callee(**kept, labels=labels, fused_lm_head=True, use_cache=False)
        model.zero_grad()
        assert model.config._attn_implementation == "sdpa" or checkpointing
        (found.log_probs * torch.linspace(1, 2, answers.numel()).view(answers.shape)).sum().backward()
        values = {each: getattr(found, each)[answers] for each in ("log_probs", "entropy", "mean_logits", "is_top1")}
        return values, [parameter.grad.clone() for parameter in model.parameters()]

    apart, gradients_apart = run(model, {key: value for key, value in batch.items() if key != "layout"})
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with attending_in_pairs(model) if checkpointing else nullcontext():
        shared, gradients_shared = run(*_with_layout(model, batch))
    for each in apart:
        assert torch.allclose(shared[each].float(), apart[each].float(), atol=1e-5), each
    for one, two in zip(gradients_shared, gradients_apart, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_a_layout_has_the_prompt_once_and_both_answers_behind_it():
    layout = lay_out(ROWS[:1], pad=0)
    assert layout.tokens.tolist() == [[2, 7, 9, 11, 12, 13, 5, 14, 5, 0, 0, 0, 0, 0, 0, 0]]
    assert layout.positions[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5]
    assert layout.of_sides.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8, 0]]
    assert layout.of_rows[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 11, 12]
    assert layout.sources.tolist() == [3, 4, 5, 3, 7]
    assert layout.targets.tolist() == [12, 13, 5, 14, 5]
    second = lay_out(ROWS, pad=0)
    flat = second.tokens.flatten()
    for side, name in enumerate(("chosen_ids", "rejected_ids")):
        for number, row in enumerate(ROWS):
            whole = row["prompt_ids"] + row[name]
            assert flat[second.of_sides[len(ROWS) * side + number, : len(whole)]].tolist() == whole
    found = flat[second.of_sides].flatten()[second.of_rows]
    assert torch.equal(found[second.tokens != 0], second.tokens[second.tokens != 0])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(**SMALL, sliding_window=16), "does not attend to all earlier tokens"),
        (GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2), "is of the type gpt2"),
        (LlamaConfig(**SMALL, attn_implementation="eager"), "attends by eager"),
    ],
    ids=["window", "untested", "eager"],
)
def test_where_a_prompt_cannot_be_shared_the_reason_is_known(config, reason):
    assert reason in why_not_shared(AutoModelForCausalLM.from_config(config))


def test_a_batch_is_cut_into_parts_that_fit_and_only_what_fits_no_other_way_is_checkpointed():
    sizes = [30, 100, 10, 40, 30]
    assert parts_of(sizes, Room(tokens=80, thrifty=500)) == [
        Part([1], 100, True),
        Part([3, 0], 40, False),
        Part([4, 2], 30, False),
    ]
    assert parts_of(sizes, Room(tokens=1000, thrifty=5000)) == [Part([1, 3, 0, 4, 2], 100, False)]
    assert parts_of(sizes, Room(tokens=0, thrifty=5000)) == [Part([1, 3, 0, 4, 2], 100, True)]
    assert parts_of(sizes, Room(tokens=20, thrifty=0)) == [Part([row], sizes[row], False) for row in (1, 3, 0, 4, 2)]
    assert parts_of(sizes, Room(tokens=80, thrifty=500), whole=True) == [Part([0, 1, 2, 3, 4], 100, True)]


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch_and_has_every_row_once():
    sizes = [(row * 7919) % 500 for row in range(203)]

    def order(seed: int, epoch: int) -> list[int]:
        return list(LikeLengths(sizes, 8, seed, lambda: epoch))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) != order(2, 3)
    assert sorted(order(1, 2)) == list(range(203))
    batches = [order(1, 2)[start : start + 8] for start in range(0, 200, 8)]
    spread = [max(sizes[row] for row in batch) - min(sizes[row] for row in batch) for batch in batches]
    assert sum(spread) / len(spread) < 50  # of 500; batches of any rows: about 390
    longest = [max(sizes[row] for row in batch) for batch in batches]
    assert any(one < two for one, two in pairwise(longest))
    assert any(one > two for one, two in pairwise(longest))


def test_a_cut_batch_has_the_loss_the_gradient_and_the_metrics_of_the_whole_one(tiny, tmp_path):
    found = []
    for number, room in enumerate((Room(10_000, 10_000), Room(80, 10_000), Room(1, 10_000))):
        settings = make_settings(tiny, batch_size=5, accumulation=1)
        trainer = make_trainer(settings, make_workspace(tmp_path / str(number)))
        trainer._room = room
        nudge(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.training_step(trainer.model, batch)
        gradients = [each.grad for each in trainer.model.parameters() if each.requires_grad]
        metrics = {name: values for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
        found.append((loss, gradients, metrics, len(batch["batches"]), batch["checkpointed"]))
    whole, cut, thrifty = found
    assert (whole[3], cut[3] > 1, thrifty[4]) == (1, True, [True])
    for other in (cut, thrifty):
        assert torch.allclose(other[0], whole[0], atol=1e-5)
        for one, two in zip(other[1], whole[1], strict=True):
            assert torch.allclose(one, two, atol=1e-5)
        for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
            assert other[2][name] == pytest.approx(whole[2][name], abs=1e-4)


@pytest.mark.parametrize("loss", ["sft", "aot"])
def test_a_loss_of_the_whole_batch_is_not_cut(tiny, tmp_path, loss):
    losses = {"sft": ["sigmoid", "sft"], "aot": ["aot"]}[loss]
    trainer = make_trainer(make_settings(tiny, loss_type=losses, batch_size=6), make_workspace(tmp_path))
    trainer._room = Room(80, 10_000)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["checkpointed"] == [True]
    assert len(batch["batches"][0]["input_ids"]) == 12


def test_with_prompts_apart_the_trainer_computes_the_same_loss(tiny, tmp_path):
    measured = []
    for number in range(2):
        trainer = make_trainer(make_settings(tiny), make_workspace(tmp_path / str(number)))
        if number:
            trainer.data_collator.shared = False
        nudge(trainer)
        measured.append(trainer.measure(6))
    for shared, apart in zip(*measured, strict=True):
        assert shared.loss == pytest.approx(apart.loss, abs=1e-5)
        assert shared.margin == pytest.approx(apart.margin, abs=1e-5)
        assert max(shared.reference_error, apart.reference_error) < 1e-4


def test_little_of_the_batches_is_padding(tiny, tmp_path):
    rows = [
        {"prompt_ids": [2] * 90, "chosen_ids": [3] * (40 + row % 211), "rejected_ids": [4] * (30 + row % 97)}
        for row in range(512)
    ]
    sizes = [lengths_of(row).width(shared=True) for row in rows]
    order = list(LikeLengths(sizes, 8, 0, lambda: 0))
    real = held = 0
    for start in range(0, len(order), 8):
        layout = lay_out([rows[row] for row in order[start : start + 8]], pad=0)
        real += int((layout.tokens != 0).sum())
        held += layout.tokens.numel()
    assert real / held > 0.95


def nudge(trainer) -> None:
    """Away from the reference, or every log-ratio is 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def test_counted_operations_are_those_of_torch_but_for_what_the_first_layer_need_not_compute(tiny, tmp_path):
    trainer = make_trainer(make_settings(tiny, adapter=False, lora_r=4), make_workspace(tmp_path))
    model = trainer.model
    rows = list(trainer.train_dataset.select(range(4)))
    pairs = [lengths_of(row) for row in rows]
    arithmetic = arithmetic_of(AutoModelForCausalLM.from_pretrained(tiny / "base"), rank=4)
    model.train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.compute_loss(model, trainer.data_collator(rows)).backward()
    counted, expected = counter.get_total_flops(), arithmetic.step(pairs, shared=True)
    tokens = 4 * max(pair.width(shared=True) for pair in pairs)
    first = (
        2 * tokens * (32 * (32 + 16 + 16)) + 2 * tokens * 3 * 32 * 4
    )  # gradients of what goes into query, key, value
    assert counted == pytest.approx(expected - first, rel=0.01)


def test_what_brings_a_batch_to_the_device_meets_no_token_ids():
    collate = InParts(PairCollator(pad_token_id=0, max_length=2000, shared=True), Room(100, 0), whole=False)

    def leaves(longer: int) -> int:
        rows = [{name: ids * longer for name, ids in row.items()} for row in ROWS]
        return len(tree_leaves(collate._replace(room=Room(100 * longer, 0))(rows)))

    assert leaves(1) == leaves(50) < 100
