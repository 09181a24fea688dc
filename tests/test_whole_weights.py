import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import locate
from cai_helpers.models.language import attach_adapter, load_base, load_stage2
from cai_helpers.scoring.reward_model import load_reward_model
from cai_helpers.sections import Models, RewardSource
from cai_helpers.stages.evaluate import load_policies
from cai_helpers.training.policy.merged import merge_stage2

BASE, HEAD = "model.layers.1.mlp.up_proj.weight", "score.weight"
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def spoil(folder: Path, name: str, how: str) -> None:
    """Drop, rename or halve one tensor of the only weights file in `folder`."""
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensor = tensors.pop(name)
    if how == "renamed":
        tensors[f"{name}.old"] = tensor
    if how == "halved":
        tensors[name] = tensor[..., : tensor.shape[-1] // 2].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def copy_of(folder: str | Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("how", ["dropped", "renamed", "halved"])
def test_a_base_that_lacks_a_tensor_is_refused_by_its_name(tiny, tmp_path, how):
    base = copy_of(tiny / "base", tmp_path)
    spoil(base, BASE, how)
    with pytest.raises(CaiError, match=BASE) as error:
        load_base(Models(base=str(base), adapter=None, dtype="fp32"))
    assert {"dropped": "missing", "renamed": "not part of the model", "halved": "64×16 in the file, 64×32"}[
        how
    ] in error.value.what


LOADERS = {
    "generate": lambda models, whole: load_stage2(models, merged=True),
    "train": lambda models, whole: attach_adapter(load_base(models), models.adapter, "default", trainable=True),
    "train on the merged": lambda models, whole: merge_stage2(load_base(models), models.adapter, [1, 2, 3]),
    "evaluate, as Stage 2": lambda models, whole: load_policies(models, whole),
    "evaluate, as Stage 3": lambda models, whole: load_policies(
        models.model_copy(update={"adapter": str(whole)}), Path(models.adapter)
    ),
}


@pytest.mark.parametrize("how", ["dropped", "renamed", "halved"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_an_adapter_that_lacks_a_tensor_is_refused_wherever_it_is_loaded(tiny, tmp_path, how, load):
    adapter = copy_of(tiny / "stage2", tmp_path)
    spoil(adapter, LORA, how)
    with pytest.raises(CaiError, match=r"layers\.0\.self_attn\.q_proj\.lora_B"):
        load(Models(base=str(tiny / "base"), adapter=str(adapter), dtype="fp32"), tiny / "stage2")


def test_an_adapter_without_tensors_or_without_its_modules_is_refused(tiny, tmp_path):
    adapter = copy_of(tiny / "stage2", tmp_path)
    models = Models(base=str(tiny / "base"), adapter=str(adapter), dtype="fp32")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["query_key_value"]}))
    with pytest.raises(CaiError, match="does not fit the base model: Target modules .*query_key_value"):
        load_stage2(models)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(CaiError, match="more are without a place in the base model"):
        load_stage2(models)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CaiError, match="holds no tensor"):
        load_stage2(models)


@pytest.mark.parametrize("how", ["dropped", "renamed", "halved"])
def test_a_reward_model_without_its_head_is_refused_and_not_given_a_random_one(tmp_path, how):
    reward = copy_of(locate("embedded:reward"), tmp_path)
    spoil(reward, HEAD, how)
    with pytest.raises(CaiError, match=HEAD):
        load_reward_model(RewardSource(model=str(reward), input="chat"), batch_size=2)


def test_a_language_model_is_no_reward_model():
    with pytest.raises(CaiError, match="score.weight is missing") as error:
        load_reward_model(RewardSource(model="embedded:chat", input="chat"), batch_size=2)
    assert "not a language model" in error.value.todo


def test_what_may_be_absent_or_left_over_is_no_fault(tmp_path):
    """GPT-2's tied head and old attention buffers; position_ids and the head of the pre-training beside a reward head."""
    torch.manual_seed(0)
    small = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=2048, eos_token_id=1, bos_token_id=2))
    base = copy_of(locate("embedded:chat"), tmp_path / "base")
    small.save_pretrained(base)
    add(base, {"transformer.h.0.attn.bias": torch.ones(4), "transformer.h.0.attn.masked_bias": torch.ones(1)})
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    load_base(Models(base=str(base), adapter=None, dtype="fp32"))

    reward = copy_of(locate("embedded:reward"), tmp_path / "reward")
    add(reward, {"model.embeddings.position_ids": torch.arange(4), "lm_head.weight": torch.ones(4, 4)})
    load_reward_model(RewardSource(model=str(reward), input="chat"), batch_size=2)
    shallow = json.loads((reward / "config.json").read_text())
    (reward / "config.json").write_text(json.dumps(shallow | {"num_hidden_layers": shallow["num_hidden_layers"] - 1}))
    with pytest.raises(CaiError, match="layers.3.*are not part of the model"):
        load_reward_model(RewardSource(model=str(reward), input="chat"), batch_size=2)


def add(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
