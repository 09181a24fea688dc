"""Without a Hub token: the form offers models that need none, and what is refused names them."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import get_session
from huggingface_hub.errors import GatedRepoError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from cai_helpers.doctor import examine
from cai_helpers.errors import CaiError
from cai_helpers.models.hub import from_hub, locate
from cai_helpers.models.language import load_base, load_weights
from cai_helpers.models.open_models import OPEN_MODELS
from cai_helpers.models.shapes import KNOWN
from cai_helpers.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("notebook", ["00_setup", "run_all"])
def test_the_form_offers_gemma_first_then_every_open_model_and_takes_any_other(notebook):
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join(line for cell in cells for line in cell["source"])
    [(default, choices)] = re.findall(r'^base_model = "(.*?)"  #@param (\[.*?\]) \{allow-input: true\}$', text, re.M)
    assert (default, Settings().models.base) == ("", "google/gemma-2b-it")  # empty: the preset's
    assert json.loads(choices) == ["", Settings().models.base, *OPEN_MODELS]


def gated(*_args, **_options):
    http = get_session()
    request = http.build_request("GET", "https://huggingface.co/google/gemma-2b-it")
    library = __import__(type(http).__module__.partition(".")[0])
    refusal = GatedRepoError("Access is restricted.", response=library.Response(401, request=request))
    raise OSError("You are trying to access a gated repo.") from refusal  # as transformers wraps it


def test_what_the_hub_refuses_for_its_licence_names_models_without_one():
    with pytest.raises(CaiError, match="google/gemma-2b-it is gated") as refused:
        from_hub(gated, "google/gemma-2b-it")
    assert [name for name in OPEN_MODELS if name not in refused.value.todo] == []


def tokens(base: str, workspace, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "auth_check", lambda name: gated() if name == "google/gemma-2b-it" else None)
    checks = examine(load_settings("t4", [f"models.base={base}"]), workspace)
    return next(check for check in checks if check.name == "Hub token")


def test_the_doctor_asks_for_a_token_only_where_a_model_may_need_one(workspace, monkeypatch):
    assert [tokens(name, workspace, monkeypatch).ok for name in OPEN_MODELS] == [True] * len(OPEN_MODELS)
    missing = tokens("google/gemma-2b-it", workspace, monkeypatch)
    assert not missing.ok
    assert OPEN_MODELS[0] in missing.todo


FAMILIES = {shape["model_type"]: shape for name, shape in KNOWN.items() if "deberta" not in shape["model_type"]}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_that_is_named_is_loaded_and_attends_as_it_was_trained_to(family, tmp_path):
    tokenizer = Path(locate("embedded:chat"))
    vocabulary = {"vocab_size": json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))["vocab_size"]}
    config = AutoConfig.for_model(**(FAMILIES[family] | SMALL | vocabulary | {"num_hidden_layers": 2}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "scorer")
    for file in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, tmp_path / "model")
    model = load_base(load_settings("smoke", [f"models.base={tmp_path / 'model'}"]).models)
    scorer = load_weights(AutoModelForSequenceClassification, str(tmp_path / "scorer"), classifier=True)
    # torch's kernels leave the soft cap on attention out, without a word
    attention = "eager" if family == "gemma2" else "sdpa"
    assert [each.config._attn_implementation for each in (model, scorer)] == [attention, attention]
    tokens = torch.arange(5, 13)[None]
    assert all(torch.isfinite(each(input_ids=tokens).logits).all() for each in (model, scorer))
