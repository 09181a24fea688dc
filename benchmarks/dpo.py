"""How long does DPO take a pair, on a card of a T4's memory? Every variant in one process, on models with random weights.

    python benchmarks/dpo.py           # needs an NVIDIA GPU; about 6 minutes on an H100; nothing is fetched
    python benchmarks/dpo.py --tiny    # that it works, on a CPU: figures without meaning, in seconds

fp16, a fresh LoRA of rank 16 on all linear layers, 8 pairs an update. Lengths are log-normal: 97 tokens of prompt and 150 of
each answer on average, so a pair has 494 (its prompt counted with each answer), and no side more than 640. "508" are pairs
of sides of 508 tokens, 128 of them prompt. Every variant trains on the same pairs over and over; the first time warms up,
and the median of the others counts. Steps alone: the reference's log-probabilities are not in the time where they are stored.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
import trl
import trl.trainer.dpo_trainer
from peft import LoraConfig
from peft.tuners.lora import Linear
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

from cai_helpers.machine.hardware import GIB, this_machine
from cai_helpers.models.batches import release_memory
from cai_helpers.models.language import load_tokenizer
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import load_settings
from cai_helpers.training.arithmetic import PairLengths
from cai_helpers.training.dpo import PolicyTrainer, training_arguments
from cai_helpers.training.memory_plan import plan_room
from cai_helpers.training.one_step.gated_mlp import gated_mlps
from cai_helpers.training.one_step.lora_linear import OneStep
from cai_helpers.training.one_step.rms_norm import known_norms
from cai_helpers.training.policy.lora import fresh_lora
from cai_helpers.training.policy.reference_store import ReferenceStore
from cai_helpers.training.rows.pairs import as_dataset
from cai_helpers.training.trainer import Start, quiet_libraries

GIB_OF_A_T4 = 14.5
SHAPES: dict[str, PreTrainedConfig] = {
    "gemma-2b": GemmaConfig(
        vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    ),
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192, pad_token_id=0, eos_token_id=1,
        bos_token_id=2,
    ),
}  # fmt: skip
TINY = {
    "vocab_size": 2500,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TINY |= {"num_key_value_heads": 1, "head_dim": 16}
AVERAGES, LONGEST = (97, 150), 640  # tokens of a prompt and of an answer; of a side
AN_UPDATE = 8  # pairs


class Variant(NamedTuple):
    name: str
    make: Callable[..., DPOTrainer]  # (model, rows, tokenizer, passes) → a trainer
    passes: int = 3  # over the pairs; the first is not timed
    share: float = 1.0  # of the pairs: slow ones get fewer


class Figure(NamedTuple):
    shape: str
    pairs: str
    variant: str
    milliseconds: float  # a pair; nan: it failed
    peak: float  # GiB
    error: str = ""


class PassTimes(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = now()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(now() - self._begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models on a CPU")
    parser.add_argument("--gib", type=float, default=GIB_OF_A_T4, help="memory this process may use")
    parser.add_argument("--shape", choices=list(SHAPES), help="only this one")
    parser.add_argument("--only", default="", help="only variants whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trl.trainer.dpo_trainer.hash_module = lambda model: "one"  # reads all weights, before anything is timed
    if options.tiny:
        where = "CPU"
    else:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * GIB / total))
        where = f"{torch.cuda.get_device_name(0)}, held to {options.gib} GiB"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    print(f"{where}, {versions}", flush=True)
    figures = []
    for shape in [options.shape] if options.shape else SHAPES:
        for kind, lengths in data(options.tiny).items():
            sums = [2 * pair.prompt + pair.chosen + pair.rejected for pair in lengths]
            print(f"{shape}, {kind}: {len(lengths)} pairs, {statistics.mean(sums):.0f} tokens on average", flush=True)
            for variant in VARIANTS if kind != "508" else VARIANTS[2:]:
                if options.only in variant.name:
                    figures.append(measure(shape, kind, variant, lengths, options.tiny))
    print(table(figures))


def data(tiny: bool) -> dict[str, list[PairLengths]]:
    if tiny:
        return {"drawn": drawn(16, (12, 20), 60)}
    return {"494": drawn(64, AVERAGES, LONGEST), "508": [PairLengths(128, 380, 380)] * 32}


def drawn(count: int, averages: tuple[int, int], longest: int) -> list[PairLengths]:
    draw = random.Random(0)
    lengths: list[PairLengths] = []
    while len(lengths) < count:
        prompt, chosen, rejected = (
            max(8, round(draw.lognormvariate(0, 0.6) / 1.197 * average)) for average in (averages[0], *averages[1:] * 2)
        )
        if prompt + max(chosen, rejected) <= longest:
            lengths.append(PairLengths(prompt, chosen, rejected))
    return scaled(lengths, averages)


def scaled(lengths: list[PairLengths], averages: tuple[int, int]) -> list[PairLengths]:
    """The longest were left out: the averages are put right."""
    prompts = averages[0] / statistics.mean(pair.prompt for pair in lengths)
    answers = 2 * averages[1] / statistics.mean(pair.chosen + pair.rejected for pair in lengths)
    return [
        PairLengths(*(max(8, round(size * by)) for size, by in zip(pair, (prompts, answers, answers), strict=True)))
        for pair in lengths
    ]


# ---- variants


def by_trl(
    model: Any, rows: list[PreferenceRow], tokenizer: Any, passes: int, batch: int, **changes: Any
) -> DPOTrainer:
    gpu = model.device.type == "cuda"
    arguments = DPOConfig(
        tempfile.mkdtemp(), num_train_epochs=passes, per_device_train_batch_size=batch, max_length=1024,
        gradient_accumulation_steps=AN_UPDATE // batch, fp16=gpu, bf16=False, use_cpu=not gpu, save_strategy="no",
        report_to="none", disable_tqdm=True, **changes,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    return DPOTrainer(
        model, args=arguments, train_dataset=as_dataset(rows), processing_class=tokenizer, peft_config=lora
    )


def with_pefts_layers(model: Any, rows: list[PreferenceRow], tokenizer: Any, passes: int) -> DPOTrainer:
    """Layers as PEFT and transformers compute them, which keep more of each token, so that fewer fit at once."""
    trainer = by_us(model, rows, tokenizer, passes, room_share=0.58)
    for layer in trainer.model.modules():
        if isinstance(layer, OneStep):
            layer.__class__ = Linear
    for layer in [*gated_mlps(trainer.model), *known_norms(trainer.model)]:
        del layer.forward
    return trainer


def by_us(
    model: Any, rows: list[PreferenceRow], tokenizer: Any, passes: int, shared: bool = True, room_share: float = 1.0
) -> DPOTrainer:
    """As dpo.build_trainer makes it, of a model that is in memory already."""
    folder, machine = Path(tempfile.mkdtemp()), this_machine()
    model.config.save_pretrained(folder)
    changes = [f"models.base={folder}", f"train.epochs={passes}", "train.every_steps=100000", "train.batch_size=8"]
    settings = load_settings("t4", [*changes, "train.accumulation=1"])
    dtype = "fp16" if machine.device == "cuda" else "fp32"
    arguments = training_arguments(settings, folder, dtype, machine, continued=False)
    arguments.save_strategy = "no"
    if not shared:
        model.config.model_type = f"{model.config.model_type} apart"  # of no known architecture
    room = plan_room(settings, dtype, machine)
    return PolicyTrainer(
        start=Start(model, None, None),
        room=room._replace(tokens=int(room_share * room.tokens)),
        reference=ReferenceStore(folder / "reference", folder / "record.json", "key", print),
        args=arguments,
        model=model,
        train_dataset=as_dataset(rows),
        eval_dataset=as_dataset(rows[:1]),
        processing_class=tokenizer,
        peft_config=fresh_lora(settings.train),
    )


VARIANTS = [
    Variant("TRL's default, one pair at once", lambda *given: by_trl(*given, batch=1), 2, 0.125),
    Variant("TRL's default (8 at once, checkpointing, live reference)", lambda *given: by_trl(*given, batch=8)),
    Variant(
        "stored reference, 4 at once, checkpointing (the preset before)",
        lambda *given: by_trl(*given, batch=4, precompute_ref_log_probs=True),
    ),
    Variant("cut batches of like length", lambda *given: by_us(*given, shared=False)),
    Variant("cut batches, prompts shared, PEFT's own layers", with_pefts_layers),
    Variant("**cut batches, prompts shared (`cai train`)**", by_us),
]


def measure(shape: str, kind: str, variant: Variant, lengths: list[PairLengths], tiny: bool) -> Figure:
    device = "cpu" if tiny else "cuda"
    tokenizer = load_tokenizer("embedded:chat")
    rows = make_rows(tokenizer, lengths[: max(AN_UPDATE, int(variant.share * len(lengths)))])
    release_memory()
    try:
        trainer = variant.make(random_model(SHAPES[shape], device, tiny), rows, tokenizer, variant.passes)
        times = PassTimes()
        trainer.add_callback(times)
        trainer.remove_callback(PrinterCallback)
        if not tiny:
            torch.cuda.reset_peak_memory_stats()
        with quiet_libraries():
            trainer.train()
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        print(f"  {variant.name}: {error}", flush=True)
        return Figure(shape, kind, variant.name, float("nan"), 0, f"{type(error).__name__}")
    peak = 0.0 if tiny else torch.cuda.max_memory_allocated() / GIB
    milliseconds = 1000 * statistics.median(times.seconds[1:]) / len(rows)
    print(f"  {variant.name}: {milliseconds:.1f} ms a pair, {peak:.1f} GiB", flush=True)
    return Figure(shape, kind, variant.name, milliseconds, peak)


def random_model(config: PreTrainedConfig, device: str, tiny: bool) -> Any:
    torch.manual_seed(0)
    config = type(config).from_dict(config.to_dict() | (TINY if tiny else {}))
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32 if tiny else torch.float16)


def make_rows(tokenizer: PreTrainedTokenizerBase, lengths: list[PairLengths]) -> list[PreferenceRow]:
    """Pairs of about these lengths, in tokens, the chat template's own included."""
    each = len(tokenizer(" rose" * 1000, add_special_tokens=False)["input_ids"]) / 1000
    frame = 6  # tokens of the template around a prompt

    def text(first: str, tokens: int) -> str:
        return first + " rose" * max(1, round(tokens / each))

    return [
        PreferenceRow(
            prompt=[{"role": "user", "content": text(f"Q{number}", pair.prompt - frame)}],
            chosen=[{"role": "assistant", "content": text("Yes", pair.chosen - 2)}],
            rejected=[{"role": "assistant", "content": text("No", pair.rejected - 2)}],
            id=f"{number:016x}",
            category="helpful",
            delta=1.0,
            chosen_side="revised",
        )
        for number, pair in enumerate(lengths)
    ]


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def table(figures: list[Figure]) -> str:
    lines = ["", "| shape | tokens | variant | ms a pair | × TRL's default | peak GiB |", "|---|---|---|---|---|---|"]
    for figure in figures:
        default = next(
            (
                other.milliseconds
                for other in figures
                if (other.shape, other.pairs) == (figure.shape, figure.pairs) and "8 at once" in other.variant
            ),
            float("nan"),
        )
        speed = figure.error or f"{figure.milliseconds:.1f}"
        lines.append(
            f"| {figure.shape} | {figure.pairs} | {figure.variant} | {speed} | {default / figure.milliseconds:.2f} | "
            f"{figure.peak:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
