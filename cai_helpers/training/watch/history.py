"""What training says while it runs: one line a logging step, rows in logs/history.jsonl, sealed checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import TrainerCallback

from cai_helpers import screen
from cai_helpers.machine.hardware import GIB
from cai_helpers.machine.processes import is_main_process, launched, this_process
from cai_helpers.screen import Bar, duration
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.training.watch import checkpoints
from cai_helpers.training.watch.alarms import OVERFITTING, Alarm, Detector, first_raised, raised_at_end
from cai_helpers.training.watch.finite import not_finite
from cai_helpers.training.watch.views import View

_TRAINING_ONLY = {"learning_rate": "lr", "grad_norm": "grad_norm", "num_tokens": "tokens"}
_TIE = 1e-6  # rewards that small are none
_MOST_SKIPPED = 20  # fp16 updates skipped in a row; the scaler halves each time, so from 65536 it is below 1 by then


class Evaluation(NamedTuple):
    loss: float  # on the held-out pairs
    step: int


class Progress(NamedTuple):
    """What a watcher is given after each row: everything so far."""

    rows: list[dict[str, Any]]
    step: int
    steps: int  # in all
    seconds_left: float
    alarms: list[Alarm]
    view: View  # what the method shows of them


Watcher = Callable[[Progress], None]


class TrainingHistory(TrainerCallback):
    """Rows {step, epoch, seconds, …}, one for each logging step and each evaluation. A method's own is made of it.

    seconds counts training time over all calls, tokens those of this call; tokens_per_s is of the steps since the last
    row, without evaluating and saving; memory_gib is the peak that torch has allocated on the GPU, null on a CPU;
    grad_norm is null where fp16 overflowed and the step was skipped. After a resume, rows later than the checkpoint are
    removed: those steps are made again.

    A checkpoint is also saved when train.every_minutes have passed, so that a slow run loses no more than that. Such a
    one is not evaluated and so never the best: what comes out does not depend on the clock.
    """

    # TRL's name → ours. A training row has them as means over the steps since the last row; an evaluation row has the
    # same of the held-out rows as eval_<name>.
    measures: ClassVar[dict[str, str]]
    detectors: ClassVar[list[Detector]]
    view: ClassVar[View]

    def __init__(
        self,
        path: Path,
        folder: Path,
        fp16: bool,
        say: Callable[..., None],
        settings: Settings,
        watch: Watcher | None = None,
        on_sealed: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self._path, self._folder, self._fp16, self._say = path, folder, fp16, say
        self._rows: list[dict[str, Any]] | None = None  # those of the file, once it was read
        self._settings, self._watch, self._on_sealed = settings, watch, on_sealed
        self._alarms: list[Alarm] = []
        self._busy = 0.0  # seconds of this call spent in steps
        self._tokens_then = self._busy_then = 0.0  # at the last training row
        self._step_began = self._saved_at = 0.0
        self._bar: Bar | None = None
        self._earlier = 0.0  # seconds of earlier calls
        self._first_step = 0
        self._started = 0.0
        self._skipped_now = 0
        self.skipped = 0  # fp16 updates, in this call
        self.newest: Path | None = None  # checkpoint that this call has sealed

    def rows(self) -> list[dict[str, Any]]:
        """All so far. The file is read once: this process alone writes it."""
        if self._rows is None:
            self._rows = list(read_jsonl(self._path)) if self._path.exists() else []
        return list(self._rows)

    def best_first(self) -> list[Evaluation]:
        """Evaluations whose checkpoint is still there, the lowest loss first; of equals, the earlier one."""
        evaluations = [Evaluation(row["eval_loss"], row["step"]) for row in self.rows() if "eval_loss" in row]
        return sorted(item for item in evaluations if checkpoints.at_step(self._folder, item.step).is_dir())

    def alarms(self, until: int | None = None) -> list[Alarm]:
        """Those of the rows, each as it was first raised; of the rows up to step `until`."""
        rows = [row for row in self.rows() if until is None or row["step"] <= until]
        return first_raised(rows, self._settings.alarms, self._settings.train.beta, self.detectors)

    def stopped_early(self, step: int) -> bool:
        """Whether a run that has come to `step` was to stop there."""
        return self._settings.train.stop_early and any(alarm.name == OVERFITTING for alarm in self.alarms(step))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._store = JsonlStore(self._path)  # repairs a torn last row
        self._rows = None
        kept = [row for row in self.rows() if row["step"] <= state.global_step]
        if is_main_process():
            write_jsonl(self._path, kept)
        self._rows = kept
        self._earlier = kept[-1]["seconds"] if kept else 0.0
        self._first_step, self._started = state.global_step, time.monotonic()
        self._saved_at = self._started
        self._alarms = self.alarms()
        hidden = not is_main_process() or self._watch is not None  # a watcher is told the time that is left
        self._bar = screen.bar(state.max_steps, "train", "step", initial=state.global_step, stays=False, hidden=hidden)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        now = time.monotonic()
        assert self._bar is not None  # on_train_begin made it
        self._bar.update()
        self._busy += now - self._step_began
        control.should_log |= state.global_step >= state.max_steps
        control.should_log |= control.should_save  # so a resumed run's next row covers the same steps
        if self._is_time_to_save(now, control.should_log):
            control.should_save = True
            control.should_log = True  # what is averaged since the last row is in no checkpoint
        skipped = getattr(optimizer, "step_was_skipped", False)
        self._skipped_now = self._skipped_now + 1 if skipped else 0
        self.skipped += skipped
        if self._skipped_now >= _MOST_SKIPPED:
            raise not_finite(f"gradient (in fp16, {self._skipped_now} steps in a row)", state.global_step)

    def _is_time_to_save(self, now: float, logged: bool) -> bool:
        """Of several processes the main one's clock counts; it is asked at logged steps alone, which all wait for anyhow."""
        due = now - self._saved_at >= 60 * self._settings.train.every_minutes
        return due if launched() == 1 else logged and this_process().told(lambda: due)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        prefix = next((prefix for prefix in ("", "eval_") if f"{prefix}loss" in (logs or {})), None)
        if logs is None or prefix is None:  # the Trainer's closing summary
            return
        row = self._row(logs, prefix, state)
        line = self._evaluation_line(row) if prefix else self._line(row, state)
        self._say(line, show=self._watch is None)
        if is_main_process():
            self._store.append([row])
        self._rows = rows = [*self.rows(), row]
        self._raise_alarms(rows, control, state)
        if self._watch is not None:
            left = self._pace(state) * (state.max_steps - state.global_step)
            self._watch(Progress(rows, state.global_step, state.max_steps, left, self._alarms, self.view))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved_at = time.monotonic()
        if not is_main_process():
            return
        folder = checkpoints.at_step(self._folder, state.global_step)
        checkpoints.seal(folder)
        evaluated = self.best_first()
        checkpoints.rotate(self._folder, best=evaluated[0].step if evaluated else None)
        self.newest = folder
        self._on_sealed(folder)
        self._saved_at = time.monotonic()

    def _raise_alarms(self, rows: list[dict[str, Any]], control: Any, state: Any) -> None:
        known = {alarm.name for alarm in self._alarms}
        for alarm in raised_at_end(rows, self._settings.alarms, self._settings.train.beta, self.detectors):
            if alarm.name not in known:
                self._alarms.append(alarm)
                self._say(alarm.line())
            stop = alarm.name == OVERFITTING and self._settings.train.stop_early
            if stop and state.global_step < state.max_steps:
                control.should_training_stop = True
                self._say("stopping early, as train.stop_early says; the best checkpoint is kept")

    def _row(self, logs: dict[str, Any], prefix: str, state: Any) -> dict[str, Any]:
        seconds = self._earlier + time.monotonic() - self._started
        row = {"step": state.global_step, "epoch": round(state.epoch, 4), "seconds": round(seconds, 2)}
        names = {f"{prefix}{theirs}": f"{prefix}{ours}" for theirs, ours in self.measures.items()}
        for theirs, ours in (names if prefix else names | _TRAINING_ONLY).items():
            value = float(logs[theirs]) if theirs in logs else None
            if value is not None and not math.isfinite(value):
                if not (ours == "grad_norm" and self._fp16):  # the gradient scaler skips such a step and goes on
                    raise not_finite(ours.replace("_", " "), state.global_step)
                value = None
            row[ours] = value
        if not prefix:
            row |= self._load(row["tokens"])
        if (
            f"{prefix}accuracy" in row
            and abs(row[f"{prefix}rewards_chosen"]) + abs(row[f"{prefix}rewards_rejected"]) < _TIE
        ):
            row[f"{prefix}accuracy"] = 0.5  # policy and reference are the same still: TRL counts a tie as a miss
        return row

    def _load(self, tokens: float) -> dict[str, float | None]:
        """How hard the machine works."""
        speed = (tokens - self._tokens_then) / max(self._busy - self._busy_then, 1e-9)
        self._tokens_then, self._busy_then = tokens, self._busy
        peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
        return {"tokens_per_s": round(speed, 1), "memory_gib": peak and round(peak, 2)}

    def _pace(self, state: Any) -> float:
        """Seconds a step, evaluating and saving included."""
        return (time.monotonic() - self._started) / max(1, state.global_step - self._first_step)

    def _evaluation_line(self, row: dict[str, Any]) -> str:
        raise NotImplementedError

    def _best_mark(self, row: dict[str, Any]) -> str:
        before = self.best_first()
        return "" if before and before[0].loss <= row["eval_loss"] else "  (best so far)"

    def _line(self, row: dict[str, Any], state: Any) -> str:
        raise NotImplementedError

    def _speed(self, row: dict[str, Any], state: Any) -> str:
        pace = self._pace(state)
        memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f} GiB  "
        return (
            f"{row['tokens_per_s']:.0f} tokens/s  {memory}{pace:.2f} s/step  "
            f"{duration(pace * (state.max_steps - state.global_step))} left"
        )
