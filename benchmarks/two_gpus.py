"""What does a second GPU of the same host bring? Generation and DPO by one process, then by two of an `accelerate launch`.

    python benchmarks/two_gpus.py           # needs two NVIDIA GPUs; 11 minutes on H200s; nothing is fetched
    python benchmarks/two_gpus.py --only FSDP   # that part alone, 3 minutes
    python benchmarks/two_gpus.py --tiny    # that it works, on a CPU with the embedded models: figures without meaning

gemma-2b's shape with random weights in fp16, each card held to a T4's memory. Generation: the slot engine on the prompts of
benchmarks/generation.py, shared out as `cai generate` does; the time is from when all processes are ready to when the last is
done, the median of three (of one with more --prompts), after a warm-up. DPO: `train_policy` on 192 pairs, one epoch, with the
effective batch of the t4 preset; pairs/s are of the steps but the first, without evaluating and saving. "508" are sides of
about 508 tokens, "1000" of about 1,000 (half as many pairs), "spread" are log-normal lengths. Losses of one and two are printed
beside each other.

FSDP: the same on 96 pairs of "508", by one card with a T4's memory, and by two with the base cut up, each held to less than the
base's weights alone take (4.7 GiB); that one card refuses it in that memory is tried first. "peaks" are each card's, allocated.
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
GIB_WITHOUT_ROOM = 4.6  # for gemma-2b's weights
GOALS = {"generation": 1.9, "DPO": 1.8}
PROMPTS, PAIRS, HELD_OUT = 768, 192, 16  # --prompts asks for more
PATIENCE = 600  # seconds for one of them
PARTS = ("generation", "DPO 508", "DPO 1000", "DPO spread", "FSDP 508")
ANSWERS = {"508": 380, "1000": 870}  # tokens of each, where all are as long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models on a CPU")
    parser.add_argument(
        "--prompts", type=int, default=PROMPTS, help="to generate from; few leave slots empty at the end"
    )
    parser.add_argument("--only", default="", help="only parts whose name contains this")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # of one process of a launch
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gib", type=float, default=GIB_OF_A_T4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        work(options.part, options.folder, options.prompts, options.tiny, options.gib)
        return
    with tempfile.TemporaryDirectory() as folder:
        name = "CPU"
        if not options.tiny:
            name = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}, each held to {GIB_OF_A_T4} GiB"
            write_gemma_shape(Path(folder) / "base")
        print(f"{name}, torch {torch.__version__}", flush=True)
        left_out = ("DPO 508", "DPO 1000") if options.tiny else ()
        parts = [part for part in PARTS if options.only in part and part not in left_out]
        if "FSDP 508" in parts and not options.tiny:
            print("What one card says in the memory of the two:", flush=True)
            launch("FSDP 508", 1, Path(folder), options.prompts, options.tiny, GIB_WITHOUT_ROOM, last=700)
        found = {
            part: [launch(part, count, Path(folder), options.prompts, options.tiny) for count in (1, 2)]
            for part in parts
        }
    print_table(found)


def launch(
    part: str, processes: int, folder: Path, prompts: int, tiny: bool, gib: float | None = None, last: int = 3000
) -> dict[str, Any]:
    """gib: of each card; None: what the part is held to. last: letters to show of what a failed one said."""
    fsdp = part.startswith("FSDP")
    gib = gib or (GIB_WITHOUT_ROOM if fsdp and processes > 1 else GIB_OF_A_T4)
    place = folder / f"{part} {processes} {gib}"
    place.mkdir()
    command = [sys.executable]
    if processes > 1:
        how = ["--use_fsdp", "--fsdp_version", "2"] if fsdp else ["--multi_gpu"]
        command += ["-m", "accelerate.commands.launch", *how, "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0"]
    command += [__file__, "--part", part, "--folder", str(place), "--prompts", str(prompts), "--gib", str(gib)]
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
        print(done.stdout[-last:], done.stderr[-last:], sep="\n", flush=True)
        return {"rate": 0.0, "error": f"ended with {done.returncode}"}
    result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    print(f"{part}, {processes}: {result}, {time.monotonic() - began:.0f} s in all", flush=True)
    return result


def print_table(found: dict[str, list[dict[str, Any]]]) -> None:
    print("\n| what | one | two | ratio | goal |\n|---|---|---|---|---|")
    for part, (one, two) in found.items():
        ratio = two["rate"] / one["rate"] if one["rate"] else 0.0
        goal = GOALS.get(part.split(" ")[0], "")
        unit = one.get("unit", "")
        print(f"| {part} | {one['rate']:,.1f} {unit} | {two['rate']:,.1f} {unit} | {ratio:.2f} | {goal} |")
    for part, (one, two) in found.items():
        if "losses" in one and "losses" in two:
            print(f"\n{part}, losses\n  one {one['losses']}\n  two {two['losses']}")


# ---- what each process does


def work(part: str, folder: Path, prompts: int, tiny: bool, gib: float) -> None:
    processes = this_process()  # gives each its card
    if not tiny:
        card = torch.cuda.current_device()
        total = torch.cuda.get_device_properties(card).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
    result = generation(prompts, tiny) if part == "generation" else training(part, folder, tiny)
    if not tiny:
        result["peaks"] = processes.gathered([round(torch.cuda.max_memory_allocated() / GIB, 2)])
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
        if part.startswith("FSDP"):
            changes += ["train.batch_size=2", "train.accumulation=4"]  # the same step; held-out pairs two at a time
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
    checks = dict(report.checks)
    kept = {name: checks[name] for name in ("memory plan", "base, cut up") if name in checks}
    return {"rate": rate, "unit": "pairs/s", "losses": losses, "longest": report.longest, **kept}


def write_pairs(workspace: Workspace, settings: Settings, part: str, tiny: bool) -> None:
    tokenizer = load_tokenizer(settings.models.base)
    word = " rose"
    each = len(tokenizer(word * 100, add_special_tokens=False)["input_ids"]) / 100
    chance = random.Random(0)

    fixed = ANSWERS.get(part.split(" ")[1])
    answer = fixed or 380
    pairs = PAIRS // 2 if part in ("FSDP 508", "DPO 1000") else PAIRS

    def words(mean: float, most: int) -> str:
        tokens = mean if fixed else min(most, mean * chance.lognormvariate(-0.32, 0.8))
        return word * max(1, int(tokens / (20 if tiny else 1) / each))

    rows = [
        PreferenceRow(
            prompt=[{"role": "user", "content": f"Question {index}: {words(97, 256)}"}],
            chosen=[{"role": "assistant", "content": f"Yes {index}.{words(answer, 700)}"}],
            rejected=[{"role": "assistant", "content": f"No {index}.{words(answer, 700)}"}],
            id=f"{index:016x}",
            category="helpful",
            delta=1.0,
            chosen_side="revised",
        ).model_dump()
        for index in range((24 if tiny else pairs) + HELD_OUT)
    ]
    write_jsonl(workspace.train_rows, rows[HELD_OUT:])
    write_jsonl(workspace.eval_rows, rows[:HELD_OUT])


if __name__ == "__main__":
    main()
