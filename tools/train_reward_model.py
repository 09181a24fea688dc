"""Trains a reward model: a causal language model with a chat template, and pairs of which one answer is better.

    python tools/train_reward_model.py artifacts/real/smollm2 artifacts/real/reward harmless.jsonl.gz --negatives 1

The pairs are files in any form that `cai calibrate --gold` reads: rows of messages, better, worse; hh-rlhf; HHH. With
--negatives the tool makes pairs besides, of a better answer and the same answer spoiled: garbled, looping, cut off,
talked about instead of given, or replaced by the answer to something else. A reward model that never saw such text
prefers some of it to answers.

A part of the prompts is held out; how often their pairs are ranked rightly is printed, with a 95 % interval, and written
beside the model (accuracy.json). Use the result with models.reward=FOLDER models.reward.input=chat.

On a GPU, 6,000 pairs and a model of 135M parameters take two minutes; on a CPU a few steps give a file that works.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cai_helpers.calibration.gold import read_gold
from cai_helpers.errors import CaiError
from cai_helpers.measures.intervals import proportion

PEOPLE = "judged by people"
# Openings of what small critics write in place of a revision.
_META = (
    "The response should be more detailed and address the question that was asked.",
    "This response is clear and follows the principles, but it could be improved by adding an example.",
    "The assistant's answer does not fully answer the user. A better response would mention more facts.",
    "Here is how the response could be rewritten so that it is more helpful and honest.",
)


class Pair(NamedTuple):
    """Two answers to one conversation; `kind` is PEOPLE or what was done to the worse one."""

    messages: list[dict]
    better: str
    worse: str
    kind: str


def main() -> None:
    options = read_options()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        pairs = read_pairs(options)
    except CaiError as error:
        sys.exit(f"{error.what}\n{error.todo}")
    train, held_out = split(pairs, options.held_out)
    if not train or not held_out:
        sys.exit(f"{len(train)} pairs to train on and {len(held_out)} held out: both are needed.\nChange --held-out.")
    trainer = train_model(options, train)
    results = measure(trainer.model, trainer.processing_class, held_out, options)
    save(trainer, results, options)
    print(
        f"\nHeld-out accuracy of {options.out.name}, {len(trainer.train_dataset)} pairs trained on, none of their prompts here"
    )
    for kind, figure in results.items():
        print(f"  {kind.ljust(18)}  {figure['words']}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of a causal language model with a chat template")
    parser.add_argument("out", type=Path, help="folder to write; what is there is replaced")
    parser.add_argument("pairs", nargs="+", help="files of pairs, .jsonl or .jsonl.gz")
    parser.add_argument("--limit", type=int, help="pairs of each file at most")
    parser.add_argument(
        "--negatives", type=float, default=0.0, help="pairs of a spoiled answer, for each pair read (default 0)"
    )
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the prompts (default 0.1)")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=-1, help="so many updates instead of --epochs")
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs an update (default 8)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens; pairs with a longer side are left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    return parser.parse_args()


def read_pairs(options: argparse.Namespace) -> list[Pair]:
    pairs = [
        Pair(pair.messages, pair.better, pair.worse, PEOPLE)
        for source in options.pairs
        for pair in read_gold(source, options.limit, options.seed).pairs
    ]
    draw = random.Random(f"{options.seed}:negatives")
    count = round(len(pairs) * options.negatives)
    # every pair before any a second time
    order = [pair for _ in range(math.ceil(options.negatives)) for pair in draw.sample(pairs, len(pairs))][:count]
    return pairs + list(spoil(order, draw))


def spoil(pairs: list[Pair], draw: random.Random) -> Iterator[Pair]:
    """A pair of the better answer and that answer spoiled, in one of five ways in turn; what cannot be is left out."""
    ways = {
        "garbled": garbled,
        "looping": looping,
        "cut off": cut_off,
        "meta-commentary": lambda text, draw: draw.choice(_META),
    }
    names = [*ways, "off topic"]
    for number, pair in enumerate(pairs):
        name = names[number % len(names)]
        if name == "off topic":
            others = [other.better for other in pairs if other.messages != pair.messages]
            worse = draw.choice(others) if others else pair.better
        else:
            worse = ways[name](pair.better, draw)
        if worse != pair.better:
            yield Pair(pair.messages, pair.better, worse, name)


def garbled(text: str, draw: random.Random) -> str:
    """Its words in any order, half of them replaced by little words."""
    words = [
        word if draw.random() < 0.5 else draw.choice("the of and in a to is that".split()) for word in text.split()
    ]
    draw.shuffle(words)
    return " ".join(words)


def looping(text: str, draw: random.Random) -> str:
    """Its beginning again and again, as long as it was and a little longer."""
    words = text.split()
    start = words[: draw.randint(3, 8)]
    return " ".join(start * (len(words) // len(start) + 2))


def cut_off(text: str, draw: random.Random) -> str:
    """Its first third to two thirds, ending within a word."""
    return text[: max(4, round(len(text) * draw.uniform(0.3, 0.65)))].rstrip(" .!?\n")


def split(pairs: list[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out), by prompt: a spoiled answer stays with the pair it was made from."""
    train, held_out = [], []
    for pair in pairs:
        digest = hashlib.sha256(json.dumps(pair.messages).encode()).digest()
        (held_out if int.from_bytes(digest[:4]) < share * 2**32 else train).append(pair)
    return train, held_out


def train_model(options: argparse.Namespace, pairs: list[Pair]):
    """The trained RewardTrainer of TRL."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
    from trl import RewardConfig, RewardTrainer

    if options.threads:
        torch.set_num_threads(options.threads)
    set_seed(options.seed)  # the head is drawn when the model is loaded
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    if tokenizer.chat_template is None:
        sys.exit(f"{options.base} has no chat template.\nTake an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(options.base, num_labels=1, dtype=torch.float32)
    # without it the classifier reads padding as the last token, or refuses batches
    model.config.pad_token_id = tokenizer.pad_token_id
    gpu = torch.cuda.is_available()
    bf16 = gpu and torch.cuda.get_device_capability() >= (8, 0)
    arguments = RewardConfig(
        output_dir=str(draft_of(options.out)), num_train_epochs=options.epochs, max_steps=options.steps, learning_rate=options.lr,
        per_device_train_batch_size=options.batch_size, max_length=options.max_length, seed=options.seed,
        bf16=bf16, fp16=gpu and not bf16, use_cpu=not gpu, gradient_checkpointing=False, warmup_steps=0.1,
        lr_scheduler_type="linear", logging_steps=10 if gpu else 2, logging_nan_inf_filter=False, save_strategy="no",
        report_to="none", center_rewards_coefficient=0.01,
    )  # fmt: skip
    rows = Dataset.from_list(
        [{"chosen": chat(pair, pair.better), "rejected": chat(pair, pair.worse)} for pair in pairs]
    )
    trainer = RewardTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    if left_out := len(pairs) - len(trainer.train_dataset):
        print(f"{left_out} of {len(pairs)} pairs have a side of more than {options.max_length} tokens and are left out")
    loss = trainer.train().training_loss
    if not math.isfinite(loss):
        sys.exit(f"The loss is {loss}: nothing is saved.\nLower --lr.")
    return trainer


def chat(pair: Pair, answer: str) -> list[dict]:
    return [*pair.messages, {"role": "assistant", "content": answer}]


def measure(model, tokenizer, pairs: list[Pair], options: argparse.Namespace) -> dict[str, dict]:
    """Kind of pair → share that is ranked rightly, with Wilson's 95 % interval. A tie is half right."""
    right: dict[str, list[float]] = {PEOPLE: []}
    for pair in pairs:
        better, worse = scores(model, tokenizer, [chat(pair, pair.better), chat(pair, pair.worse)], options.max_length)
        right.setdefault(pair.kind, []).append((better > worse) + 0.5 * (better == worse))
    results = {}
    for kind, marks in right.items():
        if (share := proportion(sum(marks), len(marks))) is not None:
            results[kind] = {**share.model_dump(), "words": f"right on {share.percent()} of {len(marks)} pairs"}
    return results


def scores(model, tokenizer, chats: list[list[dict]], max_length: int) -> list[float]:
    """As `cai score` reads it with models.reward.input=chat: the template's text, its oldest tokens dropped."""
    import torch

    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in chats]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"][-max_length:] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.inference_mode():
        return model.eval()(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()


def draft_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".tmp")


def save(trainer, results: dict[str, dict], options: argparse.Namespace) -> None:
    """Model, tokenizer and figures, under a temporary name first. Not by the trainer, which adds a pickle."""
    draft = draft_of(options.out)
    shutil.rmtree(draft, ignore_errors=True)
    trainer.model.save_pretrained(draft)
    trainer.processing_class.save_pretrained(draft)
    made = {
        "held_out": results,
        "trained_pairs": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "learning_rate": options.lr,
        "batch_size": options.batch_size,
        "negatives": options.negatives,
        "seed": options.seed,
    }
    (draft / "accuracy.json").write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(options.out, ignore_errors=True)
    draft.rename(options.out)


if __name__ == "__main__":
    main()
