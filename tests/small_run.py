"""A whole run on the embedded models that takes seconds: what is done with a finished one is tested on it."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.pipeline import run_stage3
from cai_helpers.settings import Settings, load_settings
from cai_helpers.workspace import Workspace

SMALL = [
    "threads=1", "prompts.limit=48", "calibrate.limit=20", "curate.min_pairs=10", "curate.near_duplicates=null",
    "train.epochs=1", "evaluate.limit=24",
]  # fmt: skip


def small_settings(*changes: str) -> Settings:
    return load_settings("smoke", [*SMALL, *changes])


def make_run(root: Path, *changes: str) -> Workspace:
    workspace = Workspace(root)
    run_stage3(small_settings(*changes), workspace)
    return workspace
