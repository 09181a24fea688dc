"""Is the memory plan right? Peaks of DPO steps on models with random weights, beside what memory_plan.py says beforehand.

    python benchmarks/memory_plan.py     # needs an NVIDIA GPU of 24 GiB or more, four minutes; nothing is fetched

fp16, three shapes (gemma-2b, a Llama of 1.5B, a Qwen2 of 0.6B), with and without gradient checkpointing, several batches
and lengths, a fresh LoRA of rank 16. `measured` is torch's peak of allocated memory over the reference's
log-probabilities and two steps of TRL's trainer with the options of dpo.training_arguments.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedConfig, Qwen2Config
from trl import DPOConfig, DPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cai_helpers.machine.hardware import GIB, this_machine
from cai_helpers.models.batches import release_memory
from cai_helpers.models.language import load_tokenizer
from cai_helpers.settings import load_settings
from cai_helpers.training.memory_plan import plan_memory
from cai_helpers.training.one_step.model import in_one_step

SPECIAL = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
SHAPES: dict[str, PreTrainedConfig] = {
    "gemma-2b": GemmaConfig(
        vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256, **SPECIAL,
    ),
    "llama-1.5b": LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, **SPECIAL,
    ),
    "qwen2-0.6b": Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, **SPECIAL,
    ),
}  # fmt: skip
CASES = [  # pairs a batch, words of an answer, gradient checkpointing
    (1, 500, True), (2, 500, True), (8, 500, True), (2, 1010, True), (1, 500, False), (2, 500, False), (4, 245, False),
]  # fmt: skip


def main() -> None:
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}\n")
    print("shape        batch  tokens  checkpointing  planned  measured  ratio")
    with tempfile.TemporaryDirectory() as folder:
        for name, config in SHAPES.items():
            config.save_pretrained(Path(folder) / name)
            for batch, words, thrifty in CASES:
                measured, tokens = peak(config, batch, words, thrifty)
                planned = plan(Path(folder) / name, batch, tokens, thrifty)
                figures = f"{planned:8.2f} {measured:9.2f} {planned / measured:6.2f}"
                print(f"{name:12} {batch:5} {tokens:7} {thrifty!s:>14} {figures}", flush=True)


def plan(shape: Path, batch: int, tokens: int, thrifty: bool) -> float:
    """GiB."""
    changes = [f"models.base={shape}", f"train.batch_size={batch}", f"train.gradient_checkpointing={thrifty}".lower()]
    return plan_memory(load_settings("t4", changes), "fp16", this_machine(), tokens, sides=2).total / GIB


def peak(config: PreTrainedConfig, batch: int, words: int, thrifty: bool) -> tuple[float, int]:
    """GiB, and tokens of the longest side."""
    release_memory()
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    torch.cuda.reset_peak_memory_stats()  # initialising takes more than loading would
    arguments = DPOConfig(
        tempfile.mkdtemp(), num_train_epochs=1, per_device_train_batch_size=batch, max_length=4096,
        gradient_checkpointing=thrifty, fp16=True, bf16=False, precompute_ref_log_probs=True, save_strategy="no",
        report_to="none", disable_tqdm=True, disable_dropout=False,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = load_tokenizer("embedded:chat")
    rows = Dataset.from_list([row(tokenizer, number, words) for number in range(2 * batch)])
    trainer = DPOTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    in_one_step(trainer.model)  # as in `cai train`, dropout and all
    first = trainer.train_dataset[0]
    trainer.train()
    return torch.cuda.max_memory_allocated() / GIB, len(first["prompt_ids"]) + len(first["chosen_ids"])


def row(tokenizer, number: int, words: int) -> dict[str, list[dict[str, str]]]:
    each = len(tokenizer(" rose" * 1000)["input_ids"])  # tokens of a thousand
    long = " rose" * (words * 1000 // each)
    turn = {"role": "assistant"}
    return {
        "prompt": [{"role": "user", "content": f"hi {number}"}],
        "chosen": [{**turn, "content": f"Yes{long}"}],
        "rejected": [{**turn, "content": f"No{long}"}],
    }


if __name__ == "__main__":
    main()
