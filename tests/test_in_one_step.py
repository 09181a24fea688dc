"""LoRA layers, gated MLPs and norms computed in one step: the same values with the same masks, in less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from test_cut_batches import MODELS, SMALL
from tiny_run import make_settings, make_trainer, make_workspace
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
)
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from cai_helpers.models.shapes import attends_by_matrix
from cai_helpers.training import trainer
from cai_helpers.training.one_step.gated_mlp import _GatedDown, mlp_in_one_step
from cai_helpers.training.one_step.lora_linear import LoraLayers, OneStep, _LoraLinear, lora_in_one_step
from cai_helpers.training.one_step.model import in_one_step
from cai_helpers.training.one_step.rms_norm import norm_in_one_step

OTHERS = {  # in which pairs do not share their prompt
    "gemma2": Gemma2Config(**SMALL, head_dim=8),
    "gemma3": Gemma3TextConfig(**SMALL, head_dim=8),
}
TOKENS = torch.randint(2, 40, (3, 11), generator=torch.Generator().manual_seed(0))


def with_lora(config, dropout: float = 0.05, dtype: torch.dtype = torch.float32, **options):
    torch.manual_seed(0)
    attention = {"attn_implementation": "eager"} if attends_by_matrix(config) else {}  # as models/language.py loads it
    base = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, **attention)  # which notes it there
    lora = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, LoraConfig(**(lora.to_dict() | options)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def both(model) -> tuple[torch.nn.Module, torch.nn.Module]:
    fast = copy.deepcopy(model)
    if model.dtype == torch.float64:  # transformers' norms are in fp32 even there, so they are left out
        assert lora_in_one_step(fast).line() is None
        mlp_in_one_step(fast)
    else:
        assert in_one_step(fast).line() is None
    return model, fast


def computed(model, autocast: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(logits, gradients) of a forward and backward pass whose dropout begins at the same random state."""
    torch.manual_seed(1)
    embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(inputs_embeds=embedded, labels=TOKENS, use_cache=False)
    output.loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return output.logits.detach(), gradients | {"the input": embedded.grad}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize(
    ("precision", "rounding"),
    [(torch.float64, 1e-12), (torch.float32, 3e-5)],  # PEFT's own move by 1.5e-5 when weights do by half an ulp
    ids=["fp64", "fp32"],
)
@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_outputs_and_gradients_are_those_of_peft(name, precision, rounding, dropout, checkpointed):
    slow, fast = both(with_lora((MODELS | OTHERS)[name], dropout).to(precision))
    if checkpointed:
        fast.gradient_checkpointing_enable({"use_reentrant": False})
    (logits, gradients), (other_logits, other_gradients) = computed(slow), computed(fast)
    assert (logits - other_logits).norm() <= rounding * logits.norm()
    assert gradients.keys() == other_gradients.keys()
    for each in gradients:
        assert other_gradients[each].dtype == gradients[each].dtype
        assert (gradients[each] - other_gradients[each]).norm() <= rounding * gradients[each].norm(), each


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*size, dtype=torch.double) for size in ((2, 3, 5), (4, 5), (4,)))
    a, b = (torch.randn(*size, dtype=torch.double, requires_grad=True) for size in ((2, 5), (4, 2)))

    def layer(x, a, b):
        torch.manual_seed(2)
        return _LoraLinear.apply(x, weight, bias, a, b, 1.7, 0.4, torch.double)

    assert torch.autograd.gradcheck(layer, (x.requires_grad_(), a, b))


@pytest.mark.parametrize("family", [GemmaRMSNorm, LlamaRMSNorm, Olmo2RMSNorm])
def test_a_norm_and_its_gradient_are_those_of_the_formula(family):
    torch.manual_seed(0)
    norm = family(48).requires_grad_(False)
    norm.weight.copy_(torch.randn(48))
    x, gradient = torch.randn(5, 7, 48) * 3, torch.randn(5, 7, 48)
    exact = x.double().requires_grad_()
    scale = norm.weight.double() + (family is GemmaRMSNorm)
    expected = scale * exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected.backward(gradient.double())

    untouched = norm(x)
    norm_in_one_step(norm)
    y = norm(x.requires_grad_())
    assert y.grad_fn.name() == "_RmsNormBackward"
    y.backward(gradient)
    assert torch.equal(y, untouched)
    assert (y - expected).norm() < 1e-6 * expected.norm()
    assert (x.grad - exact.grad).norm() < 1e-6 * exact.grad.norm()


def test_a_norm_that_is_trained_stays_as_it_is():
    norm = LlamaRMSNorm(4)
    norm_in_one_step(norm)
    norm(torch.randn(2, 4)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_gate_and_up_are_all_that_a_gated_mlp_keeps(name, activation, monkeypatch):
    taken = []
    apply = _GatedDown.apply
    monkeypatch.setattr(_GatedDown, "apply", lambda *given: taken.append(1) or apply(*given))
    config = (MODELS | OTHERS)[name]
    config = type(config).from_dict(config.to_dict() | {"hidden_act": activation, "hidden_activation": activation})
    slow, fast = both(with_lora(config))
    (logits, gradients), (other_logits, other_gradients) = computed(slow), computed(fast)
    assert len(taken) == config.num_hidden_layers
    assert (logits - other_logits).norm() <= 3e-5 * logits.norm()
    for each in gradients:
        assert (gradients[each] - other_gradients[each]).norm() <= 3e-5 * gradients[each].norm(), each


def test_an_mlp_of_another_activation_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(_GatedDown, "apply", None)
    slow, fast = both(with_lora(LlamaConfig.from_dict(MODELS["llama"].to_dict() | {"hidden_act": "relu"})))
    assert torch.allclose(computed(slow)[0], computed(fast)[0], atol=1e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32 base", "bf16 base"])
def test_in_half_precision_it_is_as_near_to_fp32_as_peft(precision):
    reference, _ = both(with_lora(MODELS["llama"], 0.0))
    slow, fast = both(with_lora(MODELS["llama"], 0.0, precision))
    exact, gradients = computed(reference)
    errors = []
    for model in (slow, fast):
        logits, found = computed(model, autocast=True)
        matrices = [name for name in gradients if "lora_" in name]
        assert all(found[name].dtype == torch.float32 for name in matrices)
        off = torch.stack([(found[name] - gradients[name]).norm() / gradients[name].norm() for name in matrices])
        errors.append(((logits - exact).norm() / exact.norm(), off.mean()))
    (slow_logits, slow_gradients), (fast_logits, fast_gradients) = errors
    assert fast_logits < 1.2 * slow_logits < 0.05
    assert fast_gradients < 1.2 * slow_gradients < 0.1


def test_adapters_can_be_switched_off_exchanged_frozen_and_merged():
    model = with_lora(MODELS["qwen2"])
    model.add_adapter("ref", LoraConfig(r=2, lora_alpha=2, target_modules="all-linear", init_lora_weights=False))
    slow, fast = (each.eval() for each in both(model))

    def same() -> torch.Tensor:
        with torch.no_grad():
            one, two = slow(TOKENS).logits, fast(TOKENS).logits
        assert torch.allclose(one, two, atol=1e-6)
        return two

    policy = same()
    with slow.disable_adapter(), fast.disable_adapter():
        base = same()
    for each in (slow, fast):
        each.set_adapter("ref")
        each.requires_grad_(False)
    reference = same()
    for each in (slow, fast):
        each.base_model.set_adapter(["default", "ref"])
    of_two = same()
    for each in (slow, fast):
        each.set_adapter("default")
        each.merge_adapter()
    assert torch.allclose(same(), policy, atol=1e-5)
    assert min((one - two).abs().max() for one, two in ((policy, base), (reference, base), (of_two, policy))) > 0.01


def test_evaluation_keeps_nothing_and_drops_nothing():
    model = with_lora(MODELS["llama"], 0.5)
    in_one_step(model)
    kept: list[torch.Tensor] = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda each: each):
        model(TOKENS)
    assert kept == []
    model.eval()
    assert torch.equal(model(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (LlamaConfig, {"use_dora": True}, "is a DoraLinearVariant"),
        (LlamaConfig, {"lora_bias": True}, "has a LoRA with biases"),
        (GPT2Config, {"fan_in_fan_out": True}, "is built on Conv1D"),
        (LlamaConfig, {"target_modules": ["q_proj", "embed_tokens"]}, "is a Embedding layer"),
    ],
    ids=["dora", "biases", "conv1d", "embedding"],
)
def test_what_is_not_plain_stays_with_peft_and_is_named(config, options, reason):
    if config is GPT2Config:
        made = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=1)
    else:
        made = MODELS["llama"]
    biased = {"attention_bias": True, "mlp_bias": True} if "lora_bias" in options else {}
    slow = with_lora(type(made).from_dict(made.to_dict() | biased), 0.0, **options)
    fast = copy.deepcopy(slow)
    found = in_one_step(fast)
    assert found.in_one_step < found.all
    assert found.reason.endswith(reason)
    assert f"{found.in_one_step} of {found.all} LoRA layers computed in one step" in found.line()
    assert sum(isinstance(layer, OneStep) for layer in fast.modules()) == found.in_one_step
    assert torch.allclose(computed(slow)[0], computed(fast)[0], atol=1e-6)


def test_a_rank_stabilised_lora_and_biases_of_the_base_are_plain():
    config = LlamaConfig.from_dict(MODELS["llama"].to_dict() | {"attention_bias": True, "mlp_bias": True})
    slow, fast = both(with_lora(config, use_rslora=True))
    assert all(type(layer) is OneStep for layer in fast.modules() if isinstance(layer, Linear))
    assert torch.allclose(computed(slow)[0], computed(fast)[0], atol=1e-6)


@pytest.mark.parametrize("adapter", [False, True], ids=["new LoRA", "Stage 2 continued"])
def test_a_training_has_the_losses_of_one_with_pefts_layers(tiny, tmp_path, monkeypatch, adapter):
    losses = []
    for name in ("slow", "fast"):
        with monkeypatch.context() as patch:
            if name == "slow":
                patch.setattr(trainer, "in_one_step", lambda model: LoraLayers(0, 0, None))
            made = make_trainer(make_settings(tiny, adapter=adapter, epochs=1), make_workspace(tmp_path / name))
        assert any(isinstance(layer, OneStep) for layer in made.model.modules()) == (name == "fast")
        made.args.logging_steps, made.args.save_strategy = 1, "no"
        torch.manual_seed(3)
        made.train()
        losses.append([row.get("loss", row.get("eval_loss")) for row in made.state.log_history[:-1]])
    assert len(losses[0]) > 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
