"""Gives a file of good pairs the faults of a first attempt that failed: python tools/spoil_pairs.py GOOD.jsonl BAD.jsonl

The shares are that attempt's own: 38 % of the revisions were the draft, in 54 % of the others the draft scored higher,
one principle stood in 96 % of the rows, and prompts were torn from their conversations. The result has the eight columns
such files have; `cai analyze BAD.jsonl` should name every one of these faults.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from cai_helpers.analysis.frame import read_pairs
from cai_helpers.schema import ScoredPair
from cai_helpers.store import write_jsonl

IDENTICAL, DRAFT_WINS, ONE_PRINCIPLE, TORN = 0.378, 0.538, 0.96, 0.10
FOLLOW_UPS = ("Yeah.", "Why not?", "And then?", "Ok, go on", "What about the other one?")


def spoiled(pair: ScoredPair, draw: random.Random) -> dict:
    texts = [(pair.base_response, pair.base_score), (pair.revised_response, pair.revised_score)]
    texts.sort(key=lambda side: side[1], reverse=draw.random() < DRAFT_WINS)
    (base, base_score), (revised, revised_score) = texts
    if draw.random() < IDENTICAL:
        revised, revised_score = base, base_score
    return {
        "prompt": draw.choice(FOLLOW_UPS) if draw.random() < TORN else pair.prompt,
        "base_response": base,
        "revised_response": revised,
        "base_score": base_score,
        "revised_score": revised_score,
        "chosen": "revised" if revised_score > base_score else "base",
        "critic_notes": pair.critic_notes,
        "principle_ids": "HP001" if draw.random() < ONE_PRINCIPLE else ",".join(pair.principle_ids),
    }


def main() -> None:
    good, bad = map(Path, sys.argv[1:])
    draw = random.Random(0)
    write_jsonl(bad, (spoiled(pair, draw) for pair in read_pairs(good) if pair.outcome == "revised"))


if __name__ == "__main__":
    main()
