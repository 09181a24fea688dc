"""What does a second GPU of the same host bring? Generation and DPO by one process, then by two of an `accelerate launch`.

    python benchmarks/two_gpus.py           # needs two NVIDIA GPUs; 6 minutes on H100s; nothing is fetched
    python benchmarks/two_gpus.py --tiny    # that it works, on a CPU with the embedded models: figures without meaning

gemma-2b's shape with random weights in fp16, each card held to a T4's memory. Generation: the slot engine on the prompts of
benchmarks/generation.py, shared out as `cai generate` does; the time is from when all processes are ready to when the last is
done, the median of three (of one with more --prompts), after a warm-up. DPO: `train_policy` on 192 pairs, one epoch, with the effective batch of the t4
preset; pairs/s are of the steps but the first, without evaluating and saving. "508" are sides of about 508 tokens, "spread" are
log-normal lengths. Losses of one and two are printed beside each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from generation import SHAPES, in_slots, make_prompts, random_model
from gpu_limits import write_gemma_shape

from cai_helpers.machine.hardware import GIB
from cai_helpers.machine.processes import this_process
from cai_helpers.models.language import load_tokenizer
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Settings, load_settings
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace

GIB_OF_A_T4 = 14.5
GOALS = {"generation": 1.9, "DPO": 1.8}
PROMPTS, PAIRS, HELD_OUT = 768, 192, 16  # --prompts asks for more
PATIENCE = 600  # seconds for one of the six
PARTS = ("generation", "DPO 508", "DPO spread")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models on a CPU")
    parser.add_argument(
        "--prompts", type=int, default=PROMPTS, help="to generate from; few leave slots empty at the end"
    )
    parser.add_argument("--only", default="", help="only parts whose name contains this")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # of one process of a launch
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        work(options.part, options.folder, options.prompts, options.tiny)
        return
    with tempfile.TemporaryDirectory() as folder:
        name = "CPU"
        if not options.tiny:
            name = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}, each held to {GIB_OF_A_T4} GiB"
            write_gemma_shape(Path(folder) / "base")
        print(f"{name}, torch {torch.__version__}", flush=True)
        parts = [part for part in PARTS if options.only in part and not (options.tiny and part == "DPO 508")]
        found = {
            part: [launch(part, count, Path(folder), options.prompts, options.tiny) for count in (1, 2)]
            for part in parts
        }
    print_table(found)


def launch(part: str, processes: int, folder: Path, prompts: int, tiny: bool) -> dict[str, Any]:
    place = folder / f"{part} {processes}"
    place.mkdir()
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0"]
    command += [__file__, "--part", part, "--folder", str(place), "--prompts", str(prompts)]
    command += ["--tiny"] if tiny else []
    cpu = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} if tiny else {}
    cards = {"CUDA_VISIBLE_DEVICES": "0"} if processes == 1 and not tiny else {}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, env={**os.environ, **cpu, **cards}, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        print(error.stdout, error.stderr, sep="\n", flush=True)
        return {"rate": 0.0, "error": f"not done after {PATIENCE} s"}
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", flush=True)
        return {"rate": 0.0, "error": f"ended with {done.returncode}"}
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    print(f"{part}, {processes}: {result}, {time.monotonic() - began:.0f} s in all", flush=True)
    return result


def print_table(found: dict[str, list[dict[str, Any]]]) -> None:
    print("\n| what | one | two | ratio | goal |\n|---|---|---|---|---|")
    for part, (one, two) in found.items():
        ratio = two["rate"] / one["rate"] if one["rate"] else 0.0
        goal = GOALS[part.split(" ")[0]]
        unit = one.get("unit", "")
        print(f"| {part} | {one['rate']:,.1f} {unit} | {two['rate']:,.1f} {unit} | {ratio:.2f} | {goal} |")
    for part, (one, two) in found.items():
        if "losses" in one and "losses" in two:
            print(f"\n{part}, losses\n  one {one['losses']}\n  two {two['losses']}")


# ---- what each process does


def work(part: str, folder: Path, prompts: int, tiny: bool) -> None:
    processes = this_process()  # gives each its card
    if not tiny:
        card = torch.cuda.current_device()
        total = torch.cuda.get_device_properties(card).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, GIB_OF_A_T4 * GIB / total))
    result = generation(prompts, tiny) if part == "generation" else training(part, folder, tiny)
    if processes.is_main:
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    processes.wait()


def generation(count: int, tiny: bool) -> dict[str, Any]:
    processes, device = this_process(), "cpu" if tiny else "cuda"
    model = random_model(SHAPES["gemma-2b"], device)
    prompts = make_prompts(model.config.vocab_size, *((12, 24) if tiny else (count, 256)))
    own = processes.share(prompts, lambda prompt: len(prompt.tokens))
    slots = 4 if tiny else 128
    in_slots(model, own[:128], slots)
    rates = []
    for _ in range(3 if count <= PROMPTS else 1):
        processes.wait()
        began = time.perf_counter()
        made = in_slots(model, own, slots)
        processes.wait()
        rates.append(sum(processes.gathered([made])) / (time.perf_counter() - began))
    return {"rate": statistics.median(rates), "unit": "useful tokens/s", "spread": [round(rate) for rate in rates]}


def training(part: str, folder: Path, tiny: bool) -> dict[str, Any]:
    from cai_helpers.stages.train import train_policy

    processes = this_process()
    changes = ["train.epochs=1", "train.log_steps=1", "train.every_steps=1000", "curate.min_pairs=5"]
    if tiny:
        settings = load_settings("smoke", [*changes, "threads=1", "train.batch_size=2", "train.accumulation=2"])
    else:
        settings = load_settings("t4", [*changes, f"models.base={folder.parent / 'base'}", "models.dtype=fp16"])
    workspace = Workspace(folder / "run")
    if processes.is_main:
        write_pairs(workspace, settings, part, tiny)
    processes.wait()
    report = train_policy(settings, workspace)
    rows = [row for row in read_jsonl(workspace.history) if "loss" in row]
    # the first step warms up
    seconds = sum((row["tokens"] - before["tokens"]) / row["tokens_per_s"] for before, row in itertools.pairwise(rows))
    rate = (report.pairs - settings.train.effective_batch) / seconds
    losses = [round(row["loss"], 4) for row in rows[:: max(1, len(rows) // 6)]]
    return {"rate": rate, "unit": "pairs/s", "losses": losses, "peak": report.memory_gib, "longest": report.longest}


def write_pairs(workspace: Workspace, settings: Settings, part: str, tiny: bool) -> None:
    tokenizer = load_tokenizer(settings.models.base)
    word = " rose"
    each = len(tokenizer(word * 100, add_special_tokens=False)["input_ids"]) / 100
    chance = random.Random(0)

    def words(mean: float, most: int) -> str:
        tokens = mean if part == "DPO 508" else min(most, mean * chance.lognormvariate(-0.32, 0.8))
        return word * max(1, int(tokens / (20 if tiny else 1) / each))

    rows = [
        PreferenceRow(
            prompt=[{"role": "user", "content": f"Question {index}: {words(97, 256)}"}],
            chosen=[{"role": "assistant", "content": f"Yes {index}.{words(380, 700)}"}],
            rejected=[{"role": "assistant", "content": f"No {index}.{words(380, 700)}"}],
            id=f"{index:016x}",
            category="helpful",
            delta=1.0,
            chosen_side="revised",
        ).model_dump()
        for index in range((24 if tiny else PAIRS) + HELD_OUT)
    ]
    write_jsonl(workspace.train_rows, rows[HELD_OUT:])
    write_jsonl(workspace.eval_rows, rows[:HELD_OUT])


if __name__ == "__main__":
    main()
