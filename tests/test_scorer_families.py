"""The scorers of docs/MODELS.md, with their settings, on tiny models of the same architectures with random weights."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from template_families import TRL_TEMPLATES
from tokenizers import processors
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    GemmaConfig,
    GemmaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from cai_helpers.errors import CaiError
from cai_helpers.models.language import load_tokenizer
from cai_helpers.scoring.reward_model import RewardModel, load_reward_model
from cai_helpers.scoring.sanity import check_sanity, norming_texts
from cai_helpers.sections import USUAL_REWARD, RewardSource
from cai_helpers.settings import load_settings

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "MODELS.md"
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 1,
    "initializer_range": 0.3,
}  # wide: scores that differ
DECODER = {**SIZE, "num_key_value_heads": 1, "head_dim": 16}
ARCHITECTURES = {
    USUAL_REWARD: (
        DebertaV2ForSequenceClassification,
        DebertaV2Config,
        SIZE
        | {"type_vocab_size": 2, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": (Qwen3ForSequenceClassification, Qwen3Config, DECODER),
    "Ray2333/GRM-Gemma2-2B-rewardmodel-ft": (Gemma2ForSequenceClassification, Gemma2Config, DECODER),
    "Ray2333/GRM-Gemma-2B-rewardmodel-ft": (GemmaForSequenceClassification, GemmaConfig, DECODER),
}


def documented() -> dict[str, RewardSource]:
    """Each scorer of the table, as its settings give it."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Scorers by name")[2]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    names = [re.search(r"`([^`]+)`", row[0]).group(1) for row in rows]
    written = [re.search(r"`(models\.reward=[^`]+)`", row[-1]) for row in rows]
    last: list[str] = []
    sources = {}
    for name, match in zip(names, written, strict=True):
        if match:
            last = match.group(1).split()
        elif "the same with its name" in rows[names.index(name)][-1]:
            last = [f"models.reward={name}", *last[1:]]
        sources[name] = load_settings("t4", last).models.reward
    return sources


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    """That of the embedded model, which knows words; its form is the family's."""
    embedded = load_tokenizer("embedded:chat")
    special = {"pad_token": embedded.pad_token, "eos_token": embedded.eos_token, "bos_token": embedded.bos_token}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=embedded.backend_tokenizer, **special)
    tokenizer.chat_template = embedded.chat_template
    if "Qwen3" in name:
        tokenizer.chat_template = (TRL_TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
        marks = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
    if name == USUAL_REWARD:
        tokenizer.chat_template = None
        first, last = tokenizer.bos_token, tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, tokenizer.bos_token_id), (last, tokenizer.eos_token_id)],
        )
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def write_scorer(name: str, source: RewardSource, folder: Path) -> RewardSource:
    """A random model of the architecture that happens to rank answers above word salad, as every scorer is asked to."""
    model_class, config_class, size = ARCHITECTURES[name]
    tokenizer = tokenizer_for(name)
    config = config_class(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **size)
    for seed in range(64):
        torch.manual_seed(seed)
        model = model_class(config)
        try:
            check_sanity(RewardModel(model, tokenizer, source, 4))
        except CaiError:
            continue
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return source.model_copy(update={"model": str(folder)})
    raise AssertionError("no seed gives such a model")


def test_the_table_names_every_scorer_that_is_tried_here_and_no_other():
    assert {name: (source.model, source.input, source.max_length) for name, source in documented().items()} == {
        name: (name, "pair", 512) if name == USUAL_REWARD else (name, "chat", 2048) for name in ARCHITECTURES
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.set_num_threads(1)
    sources = documented()
    folder = tmp_path_factory.mktemp("scorers")
    return {name: write_scorer(name, sources[name], folder / name.partition("/")[2]) for name in ARCHITECTURES}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_scorer_loads_with_its_settings_and_scores_alike_alone_and_in_a_batch(written, name):
    scorer = load_reward_model(written[name], batch_size=6)
    texts = norming_texts()[:12]
    together = scorer(texts)
    assert together == pytest.approx([scorer([text])[0] for text in texts], abs=1e-4)
    assert len({round(score, 2) for score in together}) > 9  # else it would be alike whatever is read
    assert scorer.truncated == 0


def test_a_value_head_under_another_name_is_named_and_refused(written, tmp_path):
    source = written["Ray2333/GRM-Gemma2-2B-rewardmodel-ft"]
    folder = Path(shutil.copytree(source.model, tmp_path / "value_head"))
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("score.weight")
    save_file(weights | {"v_head.summary.weight": head}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CaiError, match="score.weight is missing; v_head.summary.weight is not part of the model"):
        load_reward_model(source.model_copy(update={"model": str(folder)}), 4)


def test_a_scorer_that_brings_code_of_its_own_is_refused_and_the_code_not_run(written, tmp_path):
    folder = Path(shutil.copytree(written["Ray2333/GRM-Gemma-2B-rewardmodel-ft"].model, tmp_path / "code"))
    ran = tmp_path / "ran"
    (folder / "model.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = (folder / "config.json").read_text().replace('"model_type": "gemma"', '"model_type": "grm"')
    own = '{"auto_map": {"AutoConfig": "model.Own", "AutoModelForSequenceClassification": "model.Model"},'
    (folder / "config.json").write_text(own + config.lstrip().removeprefix("{"))
    with pytest.raises(CaiError, match="brings Python code of its own"):
        load_reward_model(RewardSource(model=str(folder), input="chat"), 4)
    assert not ran.exists()
