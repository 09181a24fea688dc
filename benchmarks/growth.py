"""Do store, curate and analyze stay near-linear, and their memory bounded, as the pairs grow?

    python benchmarks/growth.py                      # 10^3 … 10^6 pairs; a quarter of an hour, 4 GB of disk
    python benchmarks/growth.py --most 100000        # up to so many
    python benchmarks/growth.py --tiny               # that it works, in seconds
    python benchmarks/growth.py --picture docs/growth.png

Made-up pairs of 1.1 kB, in the eight-column form. Each figure is a process of its own: seconds of the CPU, so that other work
on the machine counts little, and the peak of resident memory. `store` appends the rows to a JSONL file by the hundred, opens
it anew, and reads it back. What a process takes that does nothing but import is in the first row. `exponent`: of the last
decade, once what imports take is taken off; 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from analysis import pairs  # noqa: E402

from cai_helpers.machine.hardware import GIB  # noqa: E402
from cai_helpers.store import JsonlStore, write_jsonl  # noqa: E402

STAGES = ("store", "curate", "analyze")


class Figure(NamedTuple):
    rows: int
    stage: str
    seconds: float  # of the CPU
    peak: float  # GiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="100 pairs")
    parser.add_argument("--most", type=int, default=1_000_000, help="pairs")
    parser.add_argument("--picture", type=Path, help="draw it there")
    parser.add_argument("--store", type=Path, nargs=2, help=argparse.SUPPRESS)  # the process that is measured
    options = parser.parse_args()
    if options.store:
        through_store(*options.store)
        return
    counts = [100] if options.tiny else [10**n for n in range(3, 7) if 10**n <= options.most]
    figures = []
    for count in counts:
        for figure in measured(count):
            print(f"  {figure}", flush=True)
            figures.append(figure)
    print(table(figures))
    if options.picture:
        draw(figures, options.picture)


def measured(count: int) -> Iterable[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        file, workspace = Path(folder) / "old.jsonl", Path(folder) / "run"
        write_jsonl(file, pairs(count))
        commands = {
            "store": [__file__, "--store", str(file), str(Path(folder) / "copy.jsonl")],
            "curate": ["-m", "cai_helpers.cli", "curate", "--pairs", str(file), "--workspace", str(workspace)],
            "analyze": ["-m", "cai_helpers.cli", "analyze", str(file), "--workspace", str(workspace)],
        }
        for stage, command in commands.items():
            seconds, peak = resources(command)
            yield Figure(count, stage, seconds, peak)


def through_store(source: Path, target: Path) -> None:
    """Appended by the hundred, as a stage does it; then opened again, and read."""
    from cai_helpers.store import read_jsonl

    store, rows, waiting = JsonlStore(target), 0, read_jsonl(source)
    while some := list(islice(waiting, 100)):
        store.append(some)
        rows += len(some)
    if sum(1 for _ in JsonlStore(target).rows()) != rows:
        sys.exit("rows were lost")


def resources(command: list[str]) -> tuple[float, float]:
    """(seconds of the CPU, GiB) of a Python process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        sys.exit(f"{' '.join(command)} failed with {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / GIB


def table(figures: list[Figure]) -> str:
    lines = ["", "| pairs | " + " | ".join(f"{stage}: CPU s | GiB" for stage in STAGES) + " |", "|---" * 7 + "|"]
    for count in dict.fromkeys(figure.rows for figure in figures):
        cells = [f"{f.seconds:.1f} | {f.peak:.2f}" for f in figures if f.rows == count]
        lines.append(f"| {count:,} | " + " | ".join(cells) + " |")
    lines.append("| exponent | " + " | ".join(f"{exponent(figures, stage):.2f} | " for stage in STAGES) + " |")
    return "\n".join(lines)


def exponent(figures: list[Figure], stage: str) -> float:
    """Of the growth from the last but one count to the last, less the least count's seconds."""
    of_stage = [figure for figure in figures if figure.stage == stage]
    if len(of_stage) < 3:
        return float("nan")
    first, before, last = of_stage[0], of_stage[-2], of_stage[-1]
    if min(before.seconds, last.seconds) <= first.seconds:
        return float("nan")
    gain = (last.seconds - first.seconds) / (before.seconds - first.seconds)
    return math.log(gain) / math.log((last.rows - first.rows) / (before.rows - first.rows))


def draw(figures: list[Figure], path: Path) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 3.2), layout="constrained")
    time, memory = canvas.subplots(1, 2)
    for stage in STAGES:
        of_stage = [figure for figure in figures if figure.stage == stage]
        counts = [figure.rows for figure in of_stage]
        time.plot(counts, [figure.seconds for figure in of_stage], marker="o", label=stage)
        memory.plot(counts, [figure.peak for figure in of_stage], marker="o", label=stage)
    last = max((figure for figure in figures if figure.stage == "curate"), key=lambda figure: figure.rows)
    counts = sorted({figure.rows for figure in figures})
    time.plot(counts, [last.seconds * count / last.rows for count in counts], "k:", linewidth=1, label="linear")
    for axes, what in ((time, "seconds of the CPU"), (memory, "GiB at the peak")):
        axes.set(xscale="log", yscale="log", xlabel="pairs", title=what)
        axes.grid(alpha=0.3)
    time.legend(frameon=False)
    canvas.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
