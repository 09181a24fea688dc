"""The prompt files: the pipeline's training prompts, the held-out evaluation set, the gold pairs."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tiny_world import corpus, world
from tiny_world.corpus import Writer
from tiny_world.world import Case, Dialog

TRAIN = {"harmless": 230, "helpful": 190}
FAULT_WEIGHT = {"over_cautious": 6.0, "bland": 2.0}  # how readily benign training prompts are drawn
EVAL = {"harmless": 80, "helpful": 80}
GOLD_KINDS: dict[str, tuple[bool, Writer, Writer, int]] = {  # kind: (harmful, better, worse, how many)
    "refusal_vs_comply": (True, world.refusal, world.answer, 24),
    "refusal_vs_garbled": (True, world.refusal, corpus.garbled, 10),
    "refusal_vs_interleaved": (True, world.refusal, corpus.interleaved, 6),
    "refusal_vs_offtopic": (True, world.refusal, corpus.off_topic, 8),
    "refusal_vs_truncated": (True, world.refusal, corpus.truncated, 6),
    "refusal_vs_meta": (True, world.refusal, world.meta, 6),
    "answer_vs_refusal": (False, world.answer, world.over_cautious, 18),
    "answer_vs_bland": (False, world.answer, world.bland, 8),
    "answer_vs_offtopic": (False, world.answer, corpus.off_topic, 12),
    "answer_vs_garbled": (False, world.answer, corpus.garbled, 8),
    "answer_vs_interleaved": (False, world.answer, corpus.interleaved, 4),
    "answer_vs_truncated": (False, world.answer, corpus.truncated, 6),
    "answer_vs_meta": (False, world.answer, world.meta, 4),
}


def write_all(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    train = prompt_rows(random.Random(f"{seed}:train"), TRAIN, "pipeline", "corpus")
    held_out = prompt_rows(random.Random(f"{seed}:eval"), EVAL, "held_out", "held_out")
    write(folder / "train.jsonl", train)
    write(folder / "eval.jsonl", held_out)
    write(folder / "gold.jsonl", gold_rows(random.Random(f"{seed}:gold")))


def prompt_rows(rng: random.Random, counts: dict[str, int], split: str, phrasings: str) -> list[dict]:
    rows: list[dict] = []
    seen: set[str] = set()
    for category, count in counts.items():
        harmful = category == "harmless"  # the category names the virtue that is tested
        while sum(row["category"] == category for row in rows) < count:
            case = draw_case(rng, split, harmful, favour_faults=split == "pipeline")
            messages = ask(case, rng, phrasings).messages
            if (text := json.dumps(messages).lower()) not in seen:
                seen.add(text)
                rows.append({"messages": messages, "category": category})
    rng.shuffle(rows)
    return rows


def draw_case(rng: random.Random, split: str, harmful: bool, favour_faults: bool) -> Case:
    """Uniform over families, then over their cases.

    With `favour_faults`, benign families in which Stage 2 has its faults are drawn more often: DPO needs pairs in
    which help wins, or it learns to decline everything.
    """
    by_family = corpus.by_family(split, harmful)
    names = list(by_family)
    faults = [by_family[name][0].family.stage2 for name in names]
    weights = [FAULT_WEIGHT.get(fault, 1.0) if favour_faults else 1.0 for fault in faults]
    return rng.choice(by_family[rng.choices(names, weights)[0]])


def ask(case: Case, rng: random.Random, phrasings: str) -> Dialog:
    return world.ask(case, rng, phrasings, several_turns=rng.random() < corpus.SEVERAL_TURNS)


def gold_rows(rng: random.Random) -> list[dict]:
    rows = []
    for kind, (harmful, better, worse, count) in GOLD_KINDS.items():
        for _ in range(count):
            dialog = ask(draw_case(rng, "held_out", harmful, favour_faults=False), rng, "held_out")
            texts = {"better": better(dialog, rng), "worse": worse(dialog, rng)}
            category = "harmless" if harmful else "helpful"
            rows.append({"messages": dialog.messages, **texts, "kind": kind, "category": category})
    return rows


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
