"""A model whose numbers are not finite writes nothing: no row, no answer, no verdict."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import locate
from cai_helpers.models.language import LanguageModel, load_base
from cai_helpers.models.sampling import FiniteScores, Sampling
from cai_helpers.settings import Models
from cai_helpers.stages.evaluate import evaluate_models
from cai_helpers.stages.generate import generate_pairs
from cai_helpers.store import write_jsonl
from cai_helpers.training.dpo import PairHistory

PLANTED = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
CHAT = [{"role": "user", "content": "how do i fix bike"}]


def with_nan(folder: str, copy: Path, tensor: str) -> Path:
    """A copy of a model folder with one NaN in one of its weights."""
    shutil.copytree(folder, copy)
    [file] = copy.glob("*.safetensors")
    tensors = load_file(file)
    tensors[tensor][3, 1] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    return copy


def generate(model: LanguageModel, temperature: float) -> list:
    return list(model.generate([CHAT] * 2, Sampling(max_new_tokens=8, temperature=temperature), ["a", "b"], 2))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_nan_in_a_weight_stops_generation_and_is_named(tiny, tmp_path, temperature):
    base = with_nan(tiny / "base", tmp_path / "base", "model.layers.1.mlp.up_proj.weight")
    model = LanguageModel(load_base(Models(base=str(base), adapter=None)), AutoTokenizer.from_pretrained(base))
    with pytest.raises(CaiError, match=r"weights are broken, model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        generate(model, temperature)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_whole_weights_that_overflow_blame_the_precision(tiny, temperature):
    model = load_base(Models(base=str(tiny / "base"), adapter=None, dtype="fp32")).half()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(6e4)
        model.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(CaiError, match="it overflows in float16") as error:
        generate(LanguageModel(model, AutoTokenizer.from_pretrained(tiny / "base")), temperature)
    assert "Gemma 3" in error.value.todo


def test_one_bad_step_of_one_row_is_remembered_and_a_masked_token_is_none():
    good = torch.tensor([[0.0, -torch.inf], [1.0, 2.0]])
    for bad in (torch.nan, torch.inf):
        scores, broken = FiniteScores(), good.clone()
        broken[1, 0] = bad
        for step in (good, broken, good):
            assert scores(None, step) is step
        with pytest.raises(CaiError, match="not finite"):
            scores.require(torch.nn.Linear(1, 1).half())
    scores = FiniteScores()
    scores(None, good)
    scores.require(torch.nn.Linear(1, 1))


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    return with_nan(locate("embedded:stage2"), tmp_path_factory.mktemp("broken") / "adapter", PLANTED)


@pytest.mark.slow
def test_generate_with_a_nan_in_the_adapter_writes_no_row(broken, smoke, workspace):
    settings = smoke.model_copy(
        update={
            "models": smoke.models.model_copy(update={"adapter": str(broken)}),
            "prompts": smoke.prompts.model_copy(update={"limit": 4}),
        }
    )
    with pytest.raises(CaiError, match="not finite"):
        generate_pairs(settings, workspace)
    assert not workspace.traces.exists() or not workspace.traces.read_text()
    assert workspace.manifest("generate") is None


@pytest.mark.slow
def test_evaluate_with_a_nan_in_the_trained_adapter_gives_no_verdict(broken, smoke, workspace):
    shutil.copytree(broken, workspace.adapter)
    prompt = {"id": "a", "messages": CHAT, "category": "benign", "source": "test"}
    write_jsonl(workspace.eval_prompts, [prompt, prompt | {"id": "b"}])
    with pytest.raises(CaiError, match=r"layers\.2\.self_attn\.v_proj\.lora_B\.stage3\.weight holds NaN"):
        evaluate_models(smoke, workspace)
    answers = [json.loads(line) for line in workspace.answers.read_text().splitlines()]
    assert {answer["stage"] for answer in answers} == {"base", "stage2"}  # which are whole
    assert workspace.manifest("evaluate") is None
    assert not workspace.responses.exists()


def test_a_gradient_that_is_not_finite_stops_training_but_for_fp16_whose_scaler_skips_the_step(tmp_path, smoke):
    state = SimpleNamespace(global_step=3, max_steps=10, epoch=0.1)
    logs = dict.fromkeys(PairHistory.measures, 0.5) | {
        "learning_rate": 1e-5,
        "num_tokens": 900.0,
        "grad_norm": math.nan,
    }
    full, half = (
        PairHistory(tmp_path / f"{fp16}.jsonl", tmp_path, fp16, lambda message, show: None, smoke)
        for fp16 in (False, True)
    )
    for history in (full, half):
        history.on_train_begin(None, state, None)
    with pytest.raises(CaiError, match="The grad norm is not finite at step 3"):
        full.on_log(None, state, None, logs)
    assert full.rows() == []
    half.on_log(None, state, None, logs)
    assert [(row["step"], row["grad_norm"], row["loss"]) for row in half.rows()] == [(3, None, 0.5)]
    with pytest.raises(CaiError, match="The loss is not finite at step 3"):
        half.on_log(None, state, None, logs | {"loss": math.nan})
    for history in (full, half):
        history.close()
