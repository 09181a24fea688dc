"""Time and memory of analysing and curating a large file of pairs: python benchmarks/analysis.py [rows]

Aim: 100,000 rows analysed in less than 20 s and less than 1 GB.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cai_helpers.store import write_jsonl

WORDS = (
    "first take the lid off and let it cool before you pour the rest into a bowl then ask someone who knows how to "
    "hold the handle so that nothing is spilled over the table or the floor while you wait for the answer of the shop"
).split()


def pairs(count: int) -> Iterator[dict]:
    draw = random.Random(0)
    for number in range(count):
        prompt, base, revised = (
            " ".join(draw.choices(WORDS, k=draw.randint(low, high))) for low, high in ((8, 30), (20, 120), (20, 120))
        )
        score = draw.gauss(0, 1)
        yield {
            "prompt": f"{prompt} {number}?",
            "base_response": base,
            "revised_response": base if number % 9 == 0 else revised,
            "base_score": score,
            "revised_score": score + draw.gauss(0.5, 1),
            "chosen": "revised",
            "critic_notes": " ".join(draw.choices(WORDS, k=25)),
            "principle_ids": f"HP{number % 9:03},HE{number % 7:03}",
        }


def measured(file: Path, workspace: Path, stage: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "cai_helpers.cli", stage, *arguments, "--workspace", str(workspace)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = _wait(process)
    if status:
        sys.exit(f"cai {stage} failed with {status}")
    return f"| cai {stage} | {time.monotonic() - started:.1f} s | {usage.ru_maxrss / 1024**2:.2f} GiB |"


def _wait(process: subprocess.Popen) -> tuple[int, int, resource.struct_rusage]:
    import os

    return os.wait4(process.pid, 0)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        file, workspace = Path(folder) / "old.jsonl", Path(folder) / "run"
        write_jsonl(file, pairs(count))
        rows = [
            measured(file, workspace, "analyze", str(file)),
            measured(file, workspace, "curate", "--pairs", str(file)),
        ]
        print(f"{count:,} pairs, {file.stat().st_size / 1e6:.0f} MB\n")
    print("| what | time | memory at most |\n|---|---|---|\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
