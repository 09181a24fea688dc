"""What training says while it runs: one line a logging step, rows in logs/history.jsonl, sealed checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import TrainerCallback

from cai_helpers import checkpoints
from cai_helpers.policy_trainer import not_finite
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl

# TRL's name → ours. A training row has the first group, means over the steps since the last row; an evaluation row has
# the same of the held-out pairs as eval_<name>, loss to logps_rejected.
_MEASURES = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}
_TRAINING_ONLY = {"learning_rate": "lr", "grad_norm": "grad_norm", "num_tokens": "tokens"}
_TIE = 1e-6  # rewards that small are none
_MOST_SKIPPED = 20  # fp16 updates skipped in a row; the scaler halves each time, so from 65536 it is below 1 by then


class Evaluation(NamedTuple):
    loss: float  # on the held-out pairs
    step: int


class TrainingHistory(TrainerCallback):
    """Rows {step, epoch, seconds, …}, one for each logging step and each evaluation.

    seconds counts training time over all calls, tokens those of this call; grad_norm is null where fp16 overflowed and
    the step was skipped. After a resume, rows later than the checkpoint are removed: those steps are made again.
    """

    def __init__(self, path: Path, folder: Path, fp16: bool, say: Callable[[str], None]) -> None:
        self._path, self._folder, self._fp16, self._say = path, folder, fp16, say
        self._bar: tqdm | None = None
        self._earlier = 0.0  # seconds of earlier calls
        self._first_step = 0
        self._started = 0.0
        self._skipped_now = 0
        self.skipped = 0  # fp16 updates, in this call

    def rows(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self._path)) if self._path.exists() else []

    def best_first(self) -> list[Evaluation]:
        """Evaluations whose checkpoint is still there, the lowest loss first; of equals, the earlier one."""
        found = [Evaluation(row["eval_loss"], row["step"]) for row in self.rows() if "eval_loss" in row]
        return sorted(item for item in found if checkpoints.at_step(self._folder, item.step).is_dir())

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        JsonlStore(self._path)  # repairs a torn last row
        kept = [row for row in self.rows() if row["step"] <= state.global_step]
        write_jsonl(self._path, kept)
        self._earlier = kept[-1]["seconds"] if kept else 0.0
        self._first_step, self._started = state.global_step, time.monotonic()
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._bar.update()
        control.should_log |= state.global_step >= state.max_steps
        skipped = getattr(optimizer, "step_was_skipped", False)
        self._skipped_now = self._skipped_now + 1 if skipped else 0
        self.skipped += skipped
        if self._skipped_now >= _MOST_SKIPPED:
            raise not_finite(f"gradient (in fp16, {self._skipped_now} steps in a row)", state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        prefix = next((prefix for prefix in ("", "eval_") if f"{prefix}loss" in (logs or {})), None)
        if prefix is None:  # the Trainer's closing summary
            return
        row = self._row(logs, prefix, state)
        if not prefix:
            self._say(self._line(row, state))
        else:
            before = self.best_first()
            mark = "" if before and before[0].loss <= row["eval_loss"] else "  (best so far)"
            self._say(
                f"step {row['step']}  held-out pairs: loss {row['eval_loss']:.4f}  "
                f"accuracy {row['eval_accuracy']:.2f}  margin {row['eval_margin']:+.3f}{mark}"
            )
        JsonlStore(self._path).append([row])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoints.seal(checkpoints.at_step(self._folder, state.global_step))
        checkpoints.rotate(self._folder, best=self.best_first()[0].step)

    def _row(self, logs: dict[str, Any], prefix: str, state: Any) -> dict[str, Any]:
        seconds = self._earlier + time.monotonic() - self._started
        row = {"step": state.global_step, "epoch": round(state.epoch, 4), "seconds": round(seconds, 2)}
        names = {f"{prefix}{theirs}": f"{prefix}{ours}" for theirs, ours in _MEASURES.items()}
        for theirs, ours in (names if prefix else names | _TRAINING_ONLY).items():
            value = float(logs[theirs]) if theirs in logs else None
            if value is not None and not math.isfinite(value):
                if not (ours == "grad_norm" and self._fp16):  # the gradient scaler skips such a step and goes on
                    raise not_finite(ours.replace("_", " "), state.global_step)
                value = None
            row[ours] = value
        if abs(row[f"{prefix}rewards_chosen"]) + abs(row[f"{prefix}rewards_rejected"]) < _TIE:
            row[f"{prefix}accuracy"] = 0.5  # policy and reference are the same still: TRL counts a tie as a miss
        return row

    def _line(self, row: dict[str, Any], state: Any) -> str:
        pace = (time.monotonic() - self._started) / max(1, state.global_step - self._first_step)
        left = pace * (state.max_steps - state.global_step)
        return (
            f"step {row['step']}/{state.max_steps}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2f}  "
            f"margin {row['margin']:+.3f}  chosen {row['rewards_chosen']:+.3f}  "
            f"rejected {row['rewards_rejected']:+.3f}  lr {row['lr']:.1e}  {pace:.2f} s/step  {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
