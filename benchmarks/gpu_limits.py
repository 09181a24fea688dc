"""Does it fit and hold on a card of a T4's memory? Needs an NVIDIA GPU; nothing is fetched.

    python benchmarks/gpu_limits.py            # all parts, some minutes
    python benchmarks/gpu_limits.py --gib 14.5 # memory this process may use

1. Reproducibility: share of rows whose sampled text is the same in other batch sizes, fp16 and fp32, embedded model.
2. fp16 training of the embedded model through `train_policy`: flight checks, loss, updates skipped by the gradient scaler;
   then the same killed at its first checkpoint and resumed, and how far the weights are apart.
3. A model of gemma-2b-it's shape with random weights in fp16: tokens/s and peak memory of drafting with the t4 preset's
   batch, milliseconds a pair and peak memory of DPO with the t4 preset on pairs of 512-token sides.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cai_helpers.models.hub import locate
from cai_helpers.models.language import LanguageModel, load_stage2, load_tokenizer
from cai_helpers.models.sampling import Sampling
from cai_helpers.prompts.split import load_prompts
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Settings, load_settings
from cai_helpers.stages.train import train_policy
from cai_helpers.store import write_jsonl
from cai_helpers.workspace import Workspace

GIB = 1024**3
GEMMA_2B = {  # the shape of google/gemma-2b-it
    "vocab_size": 256_000,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=14.5)
    parser.add_argument("--train-only", type=Path, help=argparse.SUPPRESS)  # the run that part 2 kills
    options = parser.parse_args()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * GIB / total))
    if options.train_only:
        train_policy(small("fp16"), Workspace(options.train_only))
        return
    print(f"{torch.cuda.get_device_name(0)}, held to {options.gib} GiB, torch {torch.__version__}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*reproducibility(), *small_training(Path(folder)), *gemma_shape(Path(folder))]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name.ljust(width)}  {figure}" for name, figure in rows))


def small(dtype: str) -> Settings:
    return load_settings("smoke", [f"models.dtype={dtype}", "train.every_steps=20"])


def reproducibility() -> list[tuple[str, str]]:
    rows = []
    for dtype in ("fp32", "fp16"):
        settings = small(dtype)
        model = load_stage2(settings.models, merged=True)
        prompts = load_prompts(settings.prompts, 0, model.count_tokens).train[:200]
        sampling = Sampling(max_new_tokens=64, temperature=0.7, top_p=0.95)
        texts = {size: generate(model, prompts, sampling, size) for size in (64, 17, 1)}
        for size in (17, 1):
            same = sum(one == two for one, two in zip(texts[64], texts[size], strict=True))
            rows.append((f"same text, batch 64 against {size}, {dtype}", f"{same} of {len(prompts)}"))
    return rows


def generate(model: LanguageModel, prompts: list, sampling: Sampling, batch_size: int) -> list[str]:
    keys = [prompt.id for prompt in prompts]
    found = dict(model.generate([prompt.messages for prompt in prompts], sampling, keys, batch_size))
    return [found[index].text for index in range(len(prompts))]


def small_training(folder: Path) -> list[tuple[str, str]]:
    """Rows the embedded Stage 2 can learn: the gold pairs."""
    whole, killed = Workspace(folder / "whole"), Workspace(folder / "killed")
    for workspace in (whole, killed):
        write_gold(workspace)
    report = train_policy(small("fp16"), whole)
    command = [sys.executable, __file__, "--train-only", str(killed.root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(killed.checkpoints.glob("checkpoint-*")):
        time.sleep(0.02)
    time.sleep(0.5)
    process.kill()
    process.wait()
    resumed = train_policy(small("fp16"), killed)
    one, two = (load_file(workspace.adapter / "adapter_model.safetensors") for workspace in (whole, killed))
    apart = max((one[name] - two[name]).abs().max().item() for name in one)
    moved = load_file(Path(locate("embedded:stage2")) / "adapter_model.safetensors")
    update = max((one[name] - moved[name].float()).abs().max().item() for name in one)
    return [
        ("fp16 training, checks", "; ".join(f"{what}: {found}" for what, found in report.checks)),
        ("fp16 training, loss first → last", f"{report.loss_first:.4f} → {report.loss_last:.4f}"),
        ("fp16 training, updates skipped by the scaler", str(report.skipped_updates)),
        ("fp16, killed, resumed from step", str(resumed.resumed_from)),
        ("fp16, largest weight difference to the uninterrupted run", f"{apart:.2e} (largest update {update:.2e})"),
    ]


def write_gold(workspace: Workspace) -> None:
    import json

    lines = (Path(locate("embedded:prompts")) / "gold.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        PreferenceRow(
            prompt=row["messages"],
            chosen=[{"role": "assistant", "content": row["better"]}],
            rejected=[{"role": "assistant", "content": row["worse"]}],
            id=f"{index:016x}",
            category=row["category"],
            delta=1.0,
            chosen_side="revised",
        ).model_dump()
        for index, row in enumerate(map(json.loads, lines))
    ]
    write_jsonl(workspace.train_rows, rows[:104])
    write_jsonl(workspace.eval_rows, rows[104:])


def gemma_shape(folder: Path) -> list[tuple[str, str]]:
    base = write_gemma_shape(folder / "gemma-shape")
    settings = load_settings(
        "t4", [f"models.base={base}", "models.dtype=fp16", "train.epochs=1", "train.every_steps=16"]
    )
    rows = [drafting(settings)]
    workspace = Workspace(folder / "gemma")
    write_long_rows(workspace, base)
    torch.cuda.reset_peak_memory_stats()
    report = train_policy(settings, workspace)
    peak = torch.cuda.max_memory_allocated() / GIB
    milliseconds = 1000 * report.seconds / report.pairs
    longest = f"longest pair side {report.longest} tokens, batch {settings.train.batch_size}"
    rows.append(("gemma-2b shape, DPO", f"{milliseconds:.0f} ms a pair, peak {peak:.1f} GiB ({longest})"))
    return rows


def write_gemma_shape(folder: Path) -> str:
    from transformers import GemmaConfig, GemmaForCausalLM

    tokenizer = load_tokenizer("embedded:chat")
    config = GemmaConfig(
        **GEMMA_2B,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = GemmaForCausalLM(config).half()
    model.save_pretrained(folder)
    shutil.copy(Path(locate("embedded:chat")) / "generation_config.json", folder)
    tokenizer.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return str(folder)


def drafting(settings: Settings) -> tuple[str, str]:
    model = load_stage2(settings.models)
    size, new = settings.generate.batch_size, settings.generate.draft_tokens
    chats = [[{"role": "user", "content": "how do I plant a rose? " * 40}]] * size
    sampling = Sampling(max_new_tokens=new, temperature=0.7)
    list(model.generate(chats[:2], sampling.model_copy(update={"max_new_tokens": 8}), ["a", "b"], 2))
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    made = dict(model.generate(chats, sampling, [f"row {n}" for n in range(size)], size))
    seconds = time.monotonic() - started
    tokens = sum(completion.tokens for completion in made.values())
    peak = torch.cuda.max_memory_allocated() / GIB
    return "gemma-2b shape, drafting", f"{tokens / seconds:.0f} tokens/s, batch {size}, peak {peak:.1f} GiB"


def write_long_rows(workspace: Workspace, base: str) -> None:
    """Pairs whose sides have about 512 tokens."""
    tokenizer = load_tokenizer(base)
    word = " rose"
    each = len(tokenizer(word * 100, add_special_tokens=False)["input_ids"]) / 100
    long = word * int(400 / each)
    rows = [
        PreferenceRow(
            prompt=[{"role": "user", "content": f"Question {index}: {word * int(80 / each)}"}],
            chosen=[{"role": "assistant", "content": f"Yes {index}.{long}"}],
            rejected=[{"role": "assistant", "content": f"No {index}.{long}"}],
            id=f"{index:016x}",
            category="helpful",
            delta=1.0,
            chosen_side="revised",
        ).model_dump()
        for index in range(144)
    ]
    write_jsonl(workspace.train_rows, rows[:128])
    write_jsonl(workspace.eval_rows, rows[128:])


if __name__ == "__main__":
    main()
