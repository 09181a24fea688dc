"""A new LoRA on the merged Stage 2: the exported adapter, on the original base, is the policy that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_run import adapter_tensors, make_settings, make_workspace, same_tensors
from transformers import AutoModelForCausalLM

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import locate
from cai_helpers.models.language import load_tokenizer
from cai_helpers.settings import Settings, Train
from cai_helpers.stages.train import train_policy
from cai_helpers.training.dpo import PolicyTrainer
from cai_helpers.training.policy.lora import fresh_lora, restore_policy, save_policy
from cai_helpers.training.policy.merged import merge_stage2
from cai_helpers.training.rows.pairs import encode, read_rows
from cai_helpers.training.trainer import load_start

TOKENS = torch.tensor([[2, 4, 7, 6, 9, 10, 11, 5, 6, 4, 8, 6]])


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr("cai_helpers.pages.training_picture.save_training_plot", lambda workspace: None)


def load_tiny(tiny: Path, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=dtype)


def shake(model) -> None:
    """Move the LoRA away from zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)


def make_stage2(tiny: Path, folder: Path, **config) -> Path:
    torch.manual_seed(3)
    stage2 = get_peft_model(load_tiny(tiny), LoraConfig(**{"task_type": "CAUSAL_LM", "lora_alpha": 8} | config))
    shake(stage2)
    stage2.save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits.float()


PLAIN = {
    "another rank, two modules": {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    "rsLoRA": {"r": 5, "target_modules": ["up_proj"], "use_rslora": True},
    "ranks and alphas by pattern": {
        "r": 2, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 3},
    },
    "one layer of two": {"r": 4, "target_modules": ["o_proj"], "layers_to_transform": [1]},
}  # fmt: skip


@pytest.mark.parametrize("narrow", [False, True], ids=["new LoRA everywhere", "new LoRA on k_proj"])
@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_both_as_one_adapter_are_the_trained_model_whatever_their_ranks_and_modules(tiny, tmp_path, config, narrow):
    stage2 = make_stage2(tiny, tmp_path / "stage2", **config)
    unmerged = logits(PeftModel.from_pretrained(load_tiny(tiny), stage2))
    model, merged = merge_stage2(load_tiny(tiny), str(stage2), TOKENS[0].tolist())
    assert torch.allclose(logits(model), unmerged, atol=1e-5)
    assert merged.moved < 1e-5

    lora = fresh_lora(Train(lora_r=7, lora_alpha=5))
    if narrow:
        lora.target_modules = ["k_proj"]
    policy = get_peft_model(model, lora)
    shake(policy)
    trained = logits(policy)
    save_policy(policy, tmp_path / "both", "the/base@v1", merged.factors)
    both = PeftModel.from_pretrained(load_tiny(tiny), tmp_path / "both")
    assert torch.allclose(logits(both), trained, atol=2e-5)
    assert not torch.allclose(trained, unmerged, atol=1e-3)
    named = both.peft_config["default"]
    assert (named.base_model_name_or_path, named.revision) == ("the/base", "v1")  # as PEFT loads a pinned base
    with both.disable_adapter():
        assert torch.equal(logits(both), logits(load_tiny(tiny)))


def test_modules_are_named_in_short_where_that_means_the_same_ones(tiny, tmp_path):
    everywhere = make_stage2(tiny, tmp_path / "all", r=2, target_modules=["q_proj"])
    partly = make_stage2(tiny, tmp_path / "part", r=2, target_modules=["q_proj"], layers_to_transform=[0])
    names = {}
    for source in (everywhere, partly):
        model, merged = merge_stage2(load_tiny(tiny), str(source), [2, 4, 7])
        policy = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
        save_policy(policy, tmp_path / "both", "base", merged.factors)
        names[source] = PeftModel.from_pretrained(load_tiny(tiny), tmp_path / "both").peft_config["default"]
    assert names[everywhere].target_modules == {"q_proj", "v_proj"}
    assert names[partly].target_modules == {
        "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj",
    }  # fmt: skip
    assert (names[partly].r, names[partly].lora_alpha) == (2, 2)  # no module has both


def test_a_merge_into_half_precision_rounds_once_and_says_what_that_moved(tiny):
    exact = PeftModel.from_pretrained(load_tiny(tiny), tiny / "stage2").merge_and_unload()
    whole = dict(exact.named_parameters())
    base = load_tiny(tiny, torch.bfloat16)
    rounded_base = {name: parameter.detach().float().clone() for name, parameter in base.named_parameters()}
    model, merged = merge_stage2(base, str(tiny / "stage2"), TOKENS[0].tolist())
    original = dict(load_tiny(tiny).named_parameters())
    name = "model.layers.1.mlp.up_proj.weight"
    update = (whole[name] - original[name]).detach()
    assert torch.allclose(
        model.get_parameter(name).float(), (rounded_base[name] + update).bfloat16().float(), rtol=2**-8, atol=1e-6
    )
    assert 1e-4 < merged.moved < 0.5


REFUSED = {
    "DoRA": ({"use_dora": True}, "DoRA"),
    "a whole module": ({"modules_to_save": ["norm"]}, "modules_to_save"),
    "a bias": ({"bias": "lora_only"}, "a trained bias"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "an initialisation that changes the base"),
    "tied output": ({"target_modules": ["lm_head"]}, "shares its weights with the embeddings"),
}


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_more_than_plain_matrices_is_refused(tiny, tmp_path, config, reason):
    stage2 = make_stage2(tiny, tmp_path, **{"r": 2, "target_modules": ["q_proj"]} | config)
    with pytest.raises(CaiError, match=rf"cannot be merged and combined with a new one: it has .*{reason}"):
        merge_stage2(load_tiny(tiny), str(stage2), [2, 4, 7])


@pytest.mark.slow
def test_on_the_embedded_models_the_export_is_the_trained_policy_and_a_stopped_run_ends_the_same(
    tmp_path, monkeypatch, capsys
):
    small = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "accumulation": 1, "max_length": 128,
             "every_steps": 2, "gradient_checkpointing": False, "fresh_adapter": True, "lora_r": 4}  # fmt: skip
    settings = Settings(
        cpu=True,
        threads=1,
        models={"base": "embedded:chat", "adapter": "embedded:stage2", "dtype": "fp32"},
        curate={"min_pairs": 10},
        train=small,
    )
    whole, workspace = make_workspace(tmp_path / "whole"), make_workspace(tmp_path / "stopped")
    report = train_policy(settings, whole)
    assert report.loss_first == pytest.approx(0.6931, abs=1e-4)
    assert report.margin_last > 0.05
    assert "embedded:chat with Stage 2 merged in (rounding moved logits by up to " in report.reference

    row = encode(read_rows(whole.eval_rows)[0], load_tokenizer("embedded:chat"))
    start = load_start(settings, row.prompt)
    policy = get_peft_model(start.model, fresh_lora(settings.train))
    restore_policy(policy, whole.checkpoints / f"checkpoint-{report.best_step}")
    tokens = torch.tensor([row.prompt + row.chosen])
    alone = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(locate("embedded:chat"), dtype=torch.float32), whole.adapter
    ).eval()
    with torch.no_grad():
        trained = policy.eval()(input_ids=tokens).logits
        assert torch.allclose(alone(input_ids=tokens).logits, trained, atol=2e-4)
        with policy.disable_adapter():
            assert not torch.allclose(policy(input_ids=tokens).logits, trained, atol=0.05)

    training_step = PolicyTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PolicyTrainer, "training_step", interrupted)
    with pytest.raises(CaiError, match="Stopped by hand at step 5 of 6"):
        train_policy(settings, workspace)
    monkeypatch.undo()
    assert train_policy(settings, workspace).resumed_from == 4
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))


def test_without_a_stage_2_a_fresh_adapter_is_what_there_is_anyway(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    report = train_policy(make_settings(tiny, adapter=False, epochs=0.5, fresh_adapter=True), workspace)
    assert report.reference == f"the base model {tiny / 'base'}, with the new LoRA switched off"
    assert {tensor.shape[0] for name, tensor in adapter_tensors(workspace).items() if "lora_A" in name} == {16}


def test_a_base_in_half_precision_starts_at_ln_2_on_what_was_merged(tiny, tmp_path):
    """Rounding moves policy and reference alike, so the reference stays exact; the export is off by that rounding."""
    workspace = make_workspace(tmp_path)
    settings = make_settings(tiny, dtype="bf16", epochs=1, fresh_adapter=True, lora_dropout=0)
    report = train_policy(settings, workspace)
    assert report.loss_first == pytest.approx(0.6931, abs=1e-3)
    assert report.loss_last < 0.69
    assert {tensor.dtype for tensor in adapter_tensors(workspace).values()} == {torch.float32}

    start = load_start(settings, TOKENS[0].tolist())
    policy = get_peft_model(start.model, fresh_lora(settings.train))
    restore_policy(policy, workspace.checkpoints / f"checkpoint-{report.best_step}")
    alone = PeftModel.from_pretrained(load_tiny(tiny, torch.bfloat16), workspace.adapter)
    difference = (logits(alone) - logits(policy)).abs().max().item()
    assert difference < 4 * start.merged.moved
