"""Training small enough for a test: random models, rows, settings, and what is looked at afterwards."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from cai_helpers.machine.hardware import this_machine
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Settings
from cai_helpers.store import write_jsonl
from cai_helpers.training.dpo import PolicyTrainer, build_trainer, check_flight
from cai_helpers.training.policy.reference_store import reference_of
from cai_helpers.training.rows.pairs import Preferences, keep_fitting, read_rows
from cai_helpers.workspace import Workspace

WORDS = (
    "how do i pick a lock fix bike no sorry that is wrong sure take wire turn it air pump slow then ask friend".split()
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    vocabulary = {word: number for number, word in enumerate([*special, "\n", "user", "model", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.add_special_tokens(special)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def write_models(folder: Path) -> Path:
    """A random Gemma of 30,000 parameters in base/, and a LoRA on it that moves its logits by much in stage2/."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = GemmaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    base = GemmaForCausalLM(config)
    base.generation_config.eos_token_id = [1, 5]
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    stage2 = get_peft_model(base, lora)
    for name, parameter in stage2.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    stage2.peft_config["default"].base_model_name_or_path = str(folder / "base")
    stage2.save_pretrained(folder / "stage2")
    return folder


def preference_row(number: int) -> dict:
    topic, helpful = WORDS[number % 7 + 4], WORDS[number % 5 + 16]
    prompt = [{"role": "user", "content": f"how do i {topic} {WORDS[number % len(WORDS)]}"}]
    if number % 4 == 0:
        prompt = [*prompt, {"role": "assistant", "content": "sure"}, {"role": "user", "content": f"then {topic}"}]
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": f"no sorry {topic} is wrong {helpful}"}],
        "rejected": [{"role": "assistant", "content": f"sure take {topic} turn it slow then {helpful}"}],
        "id": f"row{number}",
        "category": "harmless",
        "delta": 1.0,
        "chosen_side": "revised",
    }


def make_workspace(root: Path, train: int = 24, held_out: int = 6) -> Workspace:
    workspace = Workspace(root)
    write_jsonl(workspace.train_rows, map(preference_row, range(train)))
    write_jsonl(workspace.eval_rows, map(preference_row, range(100, 100 + held_out)))
    return workspace


def make_settings(tiny: Path, adapter: bool = True, min_pairs: int = 10, dtype: str = "fp32", **train) -> Settings:
    defaults = {
        "epochs": 2, "learning_rate": 3e-3, "batch_size": 2, "accumulation": 2, "max_length": 64, "every_steps": 3,
        "log_steps": 2, "gradient_checkpointing": False,
    }  # fmt: skip
    return Settings(
        threads=1,
        cpu=True,
        models={"base": str(tiny / "base"), "adapter": str(tiny / "stage2") if adapter else None, "dtype": dtype},
        curate={"min_pairs": min_pairs},
        train=defaults | train,
    )


def make_trainer(settings: Settings, workspace: Workspace) -> PolicyTrainer:
    rows, held_out = read_rows(workspace.train_rows), read_rows(workspace.eval_rows)
    tokenizer = AutoTokenizer.from_pretrained(settings.models.base)
    reference = reference_of(workspace, "key", print)
    return build_trainer(settings, workspace.checkpoints, rows, held_out, tokenizer, "fp32", this_machine(), reference)


def check(trainer: PolicyTrainer, settings: Settings) -> dict[str, str]:
    """The flight checks of a trainer that make_trainer made, for a workspace as make_workspace writes it."""
    rows = [
        [PreferenceRow.model_validate(preference_row(number)) for number in numbers]
        for numbers in (range(24), range(100, 106))
    ]
    tokenizer = trainer.processing_class
    data = Preferences(*(keep_fitting(part, tokenizer, settings.train.max_length) for part in rows))
    return dict(check_flight(trainer, settings.models, data))


def adapter_tensors(workspace: Workspace) -> dict[str, torch.Tensor]:
    return load_file(workspace.adapter / "adapter_model.safetensors")


def same_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def sequence_log_probability(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p(answer | prompt), token by token, from the full logits."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + place - 1, token] for place, token in enumerate(answer))
