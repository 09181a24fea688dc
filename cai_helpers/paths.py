"""Every path of a run."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path

DEFAULT_ROOT = Path("artifacts/stage3_constitutional")


class RunPaths:
    """Where everything of one run lies, below `root`. Nothing is made on disk."""

    def __init__(self, root: Path | str = DEFAULT_ROOT) -> None:
        self.root = Path(root)
        self.pairs_dir = self.root / "pairs"
        self.prompts = self.pairs_dir / "prompts.jsonl"
        self.prompt_summary = self.pairs_dir / "prompt_summary.json"
        self.eval_prompts = self.pairs_dir / "eval_prompts.jsonl"
        self.traces = self.pairs_dir / "traces.jsonl"
        self.scores = self.pairs_dir / "scores.jsonl"
        self.pairs = self.pairs_dir / "pairs.jsonl"
        self.overrides = self.pairs_dir / "overrides.jsonl"
        self.blind = self.pairs_dir / "blind.jsonl"
        self.calibration = self.root / "calibration" / "result.json"
        self.calibration_scores = self.root / "calibration" / "scores.jsonl"
        self.bakeoff_dir = self.root / "bakeoff"
        self.bakeoff = self.bakeoff_dir / "result.json"
        self.bakeoff_drafts = self.bakeoff_dir / "drafts.jsonl"  # the same for all protocols
        self.bakeoff_scores = self.bakeoff_dir / "scores.jsonl"
        self.principles_dir = self.root / "principles"  # revisions under one principle or constitution alone
        self.own_constitution = self.root / "constitution.yaml"
        self.dataset_dir = self.root / "dpo_dataset"
        self.train_rows = self.dataset_dir / "train.jsonl"
        self.eval_rows = self.dataset_dir / "eval.jsonl"
        self.dropped_rows = self.dataset_dir / "dropped.jsonl"
        self.one_sided_rows = self.dataset_dir / "one_sided.jsonl"
        self.curation_stats = self.dataset_dir / "stats.json"
        self.checkpoints = self.root / "checkpoints"
        self.reference_dir = self.checkpoints / "reference"  # log-probabilities
        self.sft_dir = self.checkpoints / "sft"  # of the supervised phase, with adapter/
        self.sweep_dir = self.root / "sweep"  # a workspace for each value
        self.adapter = self.root / "models" / "lora_adapters"
        self.logs = self.root / "logs"
        self.run_log = self.logs / "run.log"
        self.history = self.logs / "history.jsonl"
        self.sft_history = self.logs / "history_sft.jsonl"  # where DPO follows: the steps of either begin at 1
        self.held_out = self.logs / "held_out_pairs.jsonl"
        self.metrics = self.root / "metrics.json"
        self.reports = self.root / "reports"
        self.run_page = self.reports / "report.html"
        self.evaluation_dir = self.root / "evaluation"
        self.answers = self.evaluation_dir / "answers.jsonl"
        self.evaluation_scores = self.evaluation_dir / "scores.jsonl"
        self.log_probabilities = self.evaluation_dir / "log_probabilities.jsonl"
        self.responses = self.evaluation_dir / "responses.jsonl"
        self.rounds_dir = self.root / "rounds"  # where the run goes on from an earlier one
        self.rounds = self.rounds_dir / "rounds.json"
        self.rounds_before = self.rounds_dir / "before.json"
        self.rounds_held_out = self.rounds_dir / "held_out.jsonl"
        self.first_responses = self.rounds_dir / "first_responses.jsonl"
        self.blind_answers = self.evaluation_dir / "blind.jsonl"
        self.export_dir = self.root / "export"
        self.zip = self.export_dir / "stage3_constitutional.zip"
        self.settings_file = self.root / "settings.json"
        self.form = self.root / "form.json"  # how the notebook's form stood last
        self.manifests = self.root / "manifests"
        self.reference_record = self.manifests / "reference.json"

    def share_of_traces(self, process: int) -> Path:
        """The file one of several processes writes to: two writers in one file would tear each other's rows."""
        return self.pairs_dir / f"traces.{process}.jsonl"

    def traces_of_protocol(self, protocol: str) -> Path:
        """What a protocol made of the bake-off's drafts."""
        return self.bakeoff_dir / f"{protocol.replace('/', '-')}.jsonl"

    def reports_of(self, file: Path) -> Path:
        """Where the page and the pictures of a pairs file from elsewhere go."""
        return self.reports / (file.name.lstrip(".").split(".")[0] or "pairs")  # never reports/ itself: ".mine.jsonl"

    def calibration_of(self, scorer: str) -> Path:
        """What gold pairs say of a scorer beside the one that labels; `scorer`: its identity."""
        return self.calibration.with_name(f"{hashlib.sha256(scorer.encode()).hexdigest()[:12]}.json")

    def picture(self, name: str) -> Path:
        """reports/NAME.png"""
        return self.reports / f"{name}.png"

    def archive_of(self, stage: str) -> Path:
        """A new folder for what `stage` made so far."""
        return self.root / "archive" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{stage}-{time.time_ns() % 1000:03d}"

    def manifest_of(self, stage: str) -> Path:
        """Where the manifest of a stage lies, or will."""
        return self.manifests / f"{stage}.json"

    def begun_of(self, stage: str) -> Path:
        """Where it is noted what a resumable stage was begun with."""
        return self.manifests / f"{stage}.begun.json"
