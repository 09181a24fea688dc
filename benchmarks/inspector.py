"""How quick the inspector is with many pairs: time to open a file, and from one row to the next.

    python benchmarks/inspector.py [rows]

The kernel's side alone, without the way to the browser. Texts are of about 150 words a side, with random words.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

from cai_helpers.notebook.inspector import Inspector
from cai_helpers.store import write_jsonl
from cai_helpers.workspace import Workspace

WORDS = 150
MOVES = 200


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(folder)
        write_jsonl(workspace.pairs, planted(rows))
        megabytes = workspace.pairs.stat().st_size / 1e6
        opening, inspector = seconds(lambda: Inspector(workspace))
        print(f"| {rows:,} rows, {megabytes:.0f} MB | seconds |\n|---|---|\n| open | {opening:.2f} |")
        moves = sorted(seconds(inspector.next)[0] for _ in range(MOVES))
        print(f"| next row: median, slowest of {MOVES} | {statistics.median(moves):.4f}, {moves[-1]:.4f} |")
        print(f"| sort by delta | {seconds(lambda: choose(inspector.filters.order, 'largest delta first'))[0]:.3f} |")
        print(f"| search all texts | {seconds(lambda: choose(inspector.filters.text, 'w77 w7'))[0]:.3f} |")
        print(f"| show all | {seconds(inspector.filters.reset)[0]:.3f} |")
        print(f"| decide (written and synced) | {seconds(lambda: inspector.decide('revision'))[0]:.3f} |")


def planted(rows: int) -> list[dict]:
    draw = random.Random(0)
    return [
        {
            "prompt": f"Question {number}? " + words(draw, 30),
            "base_response": words(draw, WORDS),
            "revised_response": words(draw, WORDS),
            "base_score": draw.gauss(0, 1),
            "revised_score": draw.gauss(0, 1),
            "chosen": "base",
            "critic_notes": words(draw, 40),
            "principle_ids": ["HE005"],
        }
        for number in range(rows)
    ]


def words(draw: random.Random, count: int) -> str:
    return " ".join(f"w{int(draw.paretovariate(0.6)) % 5000}" for _ in range(count))


def choose(control: object, value: str) -> None:
    control.value = value


def seconds(action: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
