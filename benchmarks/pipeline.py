"""Where the time of a run goes that is not the models': the smoke run by stage, and how long imports take.

    python benchmarks/pipeline.py           # two minutes on two cores; nothing is fetched
    python benchmarks/pipeline.py --tiny    # that it works: 24 prompts, one step; shares without meaning

"With the models" is what passes inside a model's forward pass, a step of the slot engine, or a trainer's loop (its
evaluations and checkpoints as well). The rest is reading and writing, checking, counting, drawing, and importing the
libraries, which the first stage that needs one pays. Seconds of the CPU, so that other work on the machine counts little;
the embedded models have 0.6M parameters, so that with yours the share of the rest is far smaller.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARE_AIM, IMPORT_AIM, HELP_AIM = 0.10, 0.3, 0.7
STAGES = (
    "download_models", "calibrate_scorer", "generate_pairs", "score_pairs", "curate_pairs", "analyze_pairs", "train_policy",
    "evaluate_models", "write_run_report", "export_artifacts",
)  # fmt: skip


class Stage(NamedTuple):
    name: str
    seconds: float
    with_models: float


class Watch:
    """Seconds inside wrapped functions; of nested ones the outermost counts."""

    def __init__(self) -> None:
        self.inside = 0.0
        self._depth = 0

    def wrap(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.inside += time.process_time() - began

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a run that is too small to tell anything")
    options = parser.parse_args()
    imports = {
        "import cai_helpers": startup(["-c", "import cai_helpers"], 1 if options.tiny else 7),
        "cai --help": startup(["-m", "cai_helpers.cli", "--help"], 1 if options.tiny else 7),
    }
    stages = run(options.tiny)
    print(table(stages))
    print("\n| what | seconds of the CPU | aim |\n|---|---|---|")
    for (what, seconds), aim in zip(imports.items(), (IMPORT_AIM, HELP_AIM), strict=True):
        print(f"| {what} | {seconds:.2f} | < {aim} |")


def startup(arguments: list[str], times: int) -> float:
    """The least of `times`, the interpreter's own start included."""
    return min(resources(arguments) for _ in range(times))


def resources(arguments: list[str]) -> float:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        sys.exit(f"python {' '.join(arguments)} failed")
    return usage.ru_utime + usage.ru_stime


def run(tiny: bool) -> list[Stage]:
    began = time.process_time()
    import torch
    import transformers

    from cai_helpers import pipeline
    from cai_helpers.models.engine import SlotEngine
    from cai_helpers.settings import load_settings
    from cai_helpers.workspace import Workspace

    stages, watch = [Stage("importing", time.process_time() - began, 0.0)], Watch()
    watch.wrap(torch.nn.Module, "__call__")
    watch.wrap(transformers.Trainer, "train")
    for name, value in vars(SlotEngine).items():
        if callable(value) and name not in ("__init__", "run"):  # run yields
            watch.wrap(SlotEngine, name)
    for name in STAGES:
        setattr(pipeline, name, in_stages(getattr(pipeline, name), stages, watch))
    changes = ["prompts.limit=24", "train.epochs=1", "curate.min_pairs=2", "evaluate.limit=8"] if tiny else []
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        pipeline.run_stage3(load_settings("smoke", changes), Workspace(Path(folder) / "run"))
    return stages


def in_stages(function: Callable[..., Any], stages: list[Stage], watch: Watch) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began, inside = time.process_time(), watch.inside
        try:
            return function(*args, **kwargs)
        finally:
            stages.append(Stage(function.__name__, time.process_time() - began, watch.inside - inside))

    return timed


def table(stages: list[Stage]) -> str:
    lines = ["", "| stage | seconds of the CPU | with the models | outside |", "|---|---|---|---|"]
    whole = Stage("**all**", sum(stage.seconds for stage in stages), sum(stage.with_models for stage in stages))
    for stage in [*stages, whole]:
        outside = stage.seconds - stage.with_models
        share = f" ({outside / whole.seconds:.0%} of all)"
        lines.append(f"| {stage.name} | {stage.seconds:.1f} | {stage.with_models:.1f} | {outside:.1f}{share} |")
    return "\n".join([*lines, f"\nAim: less than {SHARE_AIM:.0%} outside the models."])


if __name__ == "__main__":
    main()
