"""All of Stage 3 on a model of real weights, real prompts, and a reward model trained from people's judgements.

    python tools/real_models.py                                  # SmolLM2-135M-Instruct
    python benchmarks/real_run.py DATA OUT --base artifacts/real/smollm2

DATA holds what cannot be shipped: hh-rlhf/harmless-base-test.jsonl.gz, hhh/438HHHEvaluations.jsonl, and xstest/ with its
prompts and labelled answers. Prompts are shared out once, by hash: those the reward model learns from, those it is tried
on, those that train, and those that are held out for the verdict have nothing in common. Every step is a `cai` command,
printed before it runs; docs/REAL_RUN.md tells what came of it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cai_helpers.calibration.gold import read_gold  # noqa: E402
from cai_helpers.schema import BENIGN, HARMFUL  # noqa: E402
from cai_helpers.store import write_jsonl  # noqa: E402

COMPLIES, REFUSES = "1_full_compliance", "2_full_refusal"
SHARES = {"reward": 0.45, "gold": 0.1, "train": 0.35, "eval": 0.1}  # of the prompts
OF_XSTEST = {"reward": 0.3, "gold": 0.1, "train": 0.3, "eval": 0.3}  # it alone has benign prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", required=True, help="folder of the language model")
    parser.add_argument("--limit", type=int, default=800, help="training prompts")
    parser.add_argument("--bakeoff", type=int, default=48, help="prompts of the bake-off")
    parser.add_argument("--reward-steps", type=int, default=-1, help="updates of the reward model; default two epochs")
    parser.add_argument("--set", action="append", default=[], help="more settings of cai, such as train.epochs=1")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_data(options.data, options.out)
    train_reward(options)
    run_stages(options)


# ---- the data


def write_data(data: Path, out: Path) -> None:
    """Gold pairs and prompts of the three sources, shared out by a hash of the prompt."""
    pairs, prompts = defaultdict(list), defaultdict(list)
    for source in ("hh-rlhf/harmless-base-test.jsonl.gz", "hhh/438HHHEvaluations.jsonl"):
        for pair in read_gold(str(data / source), None, 0).pairs:
            text = pair.messages[-1]["content"] if len(pair.messages) == 1 else json.dumps(pair.messages)
            part = part_of(text)
            pairs[part].append(pair._asdict())
            if part in ("train", "eval") and source.startswith("hh-rlhf"):
                prompts[part].append({"messages": pair.messages, "category": HARMFUL})
    for prompt, unsafe, better, worse in judged_answers(data / "xstest"):
        part = part_of(prompt, OF_XSTEST)
        category = HARMFUL if unsafe else BENIGN
        messages = [{"role": "user", "content": prompt}]
        pairs[part].append({"messages": messages, "better": better, "worse": worse, "category": category})
    for prompt, unsafe in read_prompts(data / "xstest"):
        if (part := part_of(prompt, OF_XSTEST)) in ("train", "eval"):
            message = {"messages": [{"role": "user", "content": prompt}], "category": HARMFUL if unsafe else BENIGN}
            prompts[part].append(message)
    write_jsonl(out / "reward_pairs.jsonl", pairs["reward"])
    write_jsonl(out / "gold.jsonl", pairs["gold"])
    for part in ("train", "eval"):
        write_jsonl(out / f"{part}_prompts.jsonl", prompts[part])
    for name, rows in (("reward pairs", pairs["reward"]), ("gold pairs", pairs["gold"]), *prompts.items()):
        print(f"{name}: {len(rows)}, of which {sum(row['category'] == BENIGN for row in rows)} benign", flush=True)


def part_of(prompt: str, shares: dict[str, float] = SHARES) -> str:
    """Which share a prompt belongs to, whatever source it came from."""
    place = int(hashlib.sha256(prompt.strip().lower().encode()).hexdigest()[:8], 16) / 16**8
    for part, share in shares.items():
        if place < share:
            return part
        place -= share
    return part


def read_prompts(folder: Path) -> list[tuple[str, bool]]:
    with (folder / "xstest_prompts.csv").open(encoding="utf-8") as file:
        return [(row["prompt"], row["label"] == "unsafe") for row in csv.DictReader(file)]


def judged_answers(folder: Path) -> list[tuple[str, bool, str, str]]:
    """(prompt, whether it is unsafe, better answer, worse one): refusing is better where it is unsafe, else answering."""
    unsafe = dict(read_prompts(folder))
    answers = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.csv.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                answers[row["prompt"]][row["final_label"]].append(row["completion"])
    found = []
    for prompt, by_label in answers.items():
        if prompt not in unsafe:
            continue
        wanted, unwanted = (REFUSES, COMPLIES) if unsafe[prompt] else (COMPLIES, REFUSES)
        found += [(prompt, unsafe[prompt], *both) for both in product(by_label[wanted], by_label[unwanted])]
    return found


# ---- the stages


def train_reward(options: argparse.Namespace) -> None:
    out = options.out / "reward"
    if (out / "accuracy.json").exists():
        return
    command = ["tools/train_reward_model.py", options.base, str(out), str(options.out / "reward_pairs.jsonl")]
    length = ["--steps", str(options.reward_steps)] if options.reward_steps > 0 else ["--epochs", "2"]
    run([sys.executable, *command, "--negatives", "1", "--batch-size", "16", *length])


def run_stages(options: argparse.Namespace) -> None:
    """The `cai` commands, in order; a protocol that the bake-off does not recommend is not used."""
    out = options.out
    changes = [
        f"models.base={options.base}",
        f"models.reward.model={out / 'reward'}",
        "models.reward.input=chat",
        f"prompts.source={out / 'train_prompts.jsonl'}",
        f"prompts.eval_source={out / 'eval_prompts.jsonl'}",
        f"prompts.limit={options.limit}",
        f"calibrate.gold={out / 'gold.jsonl'}",
        "curate.min_delta=auto",
        *options.set,
    ]
    common = [
        "--workspace",
        str(out / "run"),
        "--preset",
        "t4",
        *(part for text in changes for part in ("--set", text)),
    ]
    cai = [sys.executable, "-m", "cai_helpers.cli"]
    run([*cai, "calibrate", *common])
    run([*cai, "bakeoff", "--n", str(options.bakeoff), *common])
    for stage in ("generate", "score", "curate", "analyze", "train", "evaluate", "export"):
        if code := run([*cai, stage, *common]):
            return print(f"{stage} ended with {code}; what comes after it does not run", flush=True)


def run(command: list[str]) -> int:
    """Print the command and its output as it comes; its exit code."""
    print(f"\n$ {' '.join(command)}", flush=True)
    started = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    print(f"({time.monotonic() - started:.0f} s, exit code {code})", flush=True)
    return code


if __name__ == "__main__":
    main()
