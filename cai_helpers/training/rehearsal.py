"""Two steps of the configured training on its longest rows: does it go through, and what does a step cost?"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import Machine, choose_dtype
from cai_helpers.models.batches import release_all
from cai_helpers.models.language import load_tokenizer
from cai_helpers.schema import PreferenceRow, Record
from cai_helpers.settings import Settings
from cai_helpers.training.policy.reference_store import reference_of
from cai_helpers.training.rows.answers import read_one_sided, unpair
from cai_helpers.training.rows.pairs import Fitting, Preferences, encode, keep_fitting, read_rows
from cai_helpers.training.run import Job, Method
from cai_helpers.training.watch.copies import RunFiles
from cai_helpers.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEPS = 2  # the first one warms up; the second is what a step costs
_ROWS_OF = {"dpo": "pairs", "sft": "revisions", "kto": "answers"}


class Rehearsed(Record):
    """One phase of the configured training, and what it will take."""

    phase: str  # "dpo", "sft" or "kto"
    tokens: int  # of the longest sequence
    rows_per_step: int
    seconds_per_step: float
    seconds_per_row: float  # of a row that is only looked at, as in an evaluation
    steps: int  # of the configured run, at most
    held_out: float  # its rows, at most
    evaluations: float
    memory_plan: str

    @property
    def minutes(self) -> float:
        return (self.steps * self.seconds_per_step + self.evaluations * self.held_out * self.seconds_per_row) / 60

    def line(self) -> str:
        rows = f"{self.rows_per_step} {_ROWS_OF[self.phase]}"
        return f"{STEPS} {self.phase.upper()} steps of {rows}, {self.seconds_per_step:.2f} s a step"


class _LongRows(NamedTuple):
    """Pairs of the configured run, the longest first."""

    rows: list[PreferenceRow]
    longest: int  # tokens of a side
    words: str  # what they are
    pairs: int  # that there will be, at most
    one_sided: int


class Rehearsal(NamedTuple):
    rows: str  # what the steps were made of
    phases: list[Rehearsed]


def rehearse(
    settings: Settings,
    workspace: Workspace,
    scratch: Workspace,
    machine: Machine,
    prompts: int,
    say: Callable[[str], None],
) -> Rehearsal:
    """Train each phase of train.method for two steps, with its checks, a checkpoint and its seal, in `scratch`.

    The rows are the longest of dpo_dataset/, where they exist, else made up, at train.max_length tokens a side, as if
    each of `prompts` became a pair.

    Raises:
        CaiError: something on the way fails; the message is that of the training itself.
    """
    long = _long_rows(settings, workspace, prompts)
    phases = [_rehearse(phase, settings, scratch, machine, long, say) for phase in settings.train.method.split("+")]
    return Rehearsal(long.words, phases)


def _rehearse(
    phase: str, settings: Settings, scratch: Workspace, machine: Machine, long: _LongRows, say: Callable[[str], None]
) -> Rehearsed:
    from cai_helpers.training.trainer import explained_memory, quiet_libraries

    usable = [
        row for row in long.rows if phase != "sft" or row.chosen_side == "revised"
    ]  # the rest teaches SFT nothing
    job = _job(phase, settings, scratch, machine)
    method = _method(phase, job, usable, long.longest, say)
    with quiet_libraries(), explained_memory(settings.train):
        _, memory_plan = method.require_memory(job)
        seconds_per_step, seconds_per_row = _timed(job, method, say)
    release_all()
    train, share = settings.train, len(usable) / len(long.rows)
    rows = {"dpo": long.pairs, "sft": long.pairs * share, "kto": 2 * long.pairs + long.one_sided}[phase]
    epochs = train.sft_epochs if phase == "sft" else train.epochs
    steps = math.ceil(rows * (1 - settings.curate.eval_fraction) / train.effective_batch * epochs)
    return Rehearsed(
        phase=phase,
        tokens=method.longest,
        rows_per_step=train.effective_batch,
        seconds_per_step=seconds_per_step,
        seconds_per_row=seconds_per_row,
        steps=steps,
        held_out=rows * settings.curate.eval_fraction,
        evaluations=steps / train.every_steps + 1,
        memory_plan=memory_plan,
    )


def _job(phase: str, settings: Settings, scratch: Workspace, machine: Machine) -> Job:
    two_steps = {"epochs": 1, "sft_epochs": 1, "log_steps": 1, "every_steps": STEPS, "every_minutes": 1e6}
    short = settings.train.model_copy(update=two_steps | {"report_to": "none"})
    files = RunFiles(scratch.checkpoints / phase, scratch.logs / f"{phase}.jsonl", reference=None)
    return Job(
        "preflight",
        settings.model_copy(update={"train": short}),
        scratch,
        choose_dtype(settings.models.dtype, machine),
        machine,
        files,
        scratch.adapter,
        alone=True,
    )


def _method(phase: str, job: Job, usable: list[PreferenceRow], longest: int, say: Callable[[str], None]) -> Method[Any]:
    """As the training would have it, on the rows of the two steps and as few held out as it can have."""
    train = job.settings.train
    pairs = STEPS * train.effective_batch // (2 if phase == "kto" else 1)  # KTO makes two answers of each
    rows = list(itertools.islice(itertools.cycle(usable), pairs))
    data = Preferences(Fitting(rows, 0, longest), Fitting(usable[:1], 0, longest))
    reference = reference_of(job.workspace, f"preflight {phase}", say)
    if phase == "sft":
        from cai_helpers.training.sft import by_supervision

        return by_supervision(job, data)
    if phase == "kto":
        from cai_helpers.training.kto import by_kto

        tokenizer, seed = load_tokenizer(job.settings.models.base), job.settings.seed
        answers = unpair(rows, usable[:1], [], tokenizer, train.max_length, train.batch_size, seed)
        return by_kto(job, answers, reference)
    from cai_helpers.training.dpo import by_dpo

    return by_dpo(job, data, reference)


def _timed(job: Job, method: Method[Any], say: Callable[[str], None]) -> tuple[float, float]:
    """Seconds a step, and seconds a row that is evaluated."""
    trainer = method.build()
    checks = method.check(trainer)
    say(f"{len(checks)} checks before the first update hold: {', '.join(what for what, _ in checks)}")
    files, fp16 = job.files, job.dtype == "fp16"
    history = method.history(files.history, files.checkpoints, fp16, lambda message, show=True: None, job.settings)
    trainer.add_callback(history)
    try:
        trainer.train()
    finally:
        history.close()
    trainer.remove_callback(history)
    began = time.monotonic()
    trainer.evaluate()
    looked = (time.monotonic() - began) / len(trainer.eval_dataset)
    then, now = (row["seconds"] for row in history.rows() if "loss" in row)
    return now - then, looked


def _long_rows(settings: Settings, workspace: Workspace, prompts: int) -> _LongRows:
    tokenizer, limit = load_tokenizer(settings.models.base), settings.train.max_length
    if not workspace.train_rows.exists():
        made_up = [_made_up(number, tokenizer, limit) for number in range(STEPS * settings.train.effective_batch + 1)]
        fitting = keep_fitting(made_up, tokenizer, limit)
        words = f"made-up rows of {fitting.longest} tokens a side, as there is no dpo_dataset/ yet"
        return _LongRows(fitting.rows, fitting.longest, words, prompts, one_sided=0)
    fitting = keep_fitting([*read_rows(workspace.train_rows), *read_rows(workspace.eval_rows)], tokenizer, limit)
    if not fitting.rows:
        raise CaiError(
            f"No pair of dpo_dataset/ fits into train.max_length = {limit} tokens.", "Raise train.max_length."
        )
    longest_first = sorted(fitting.rows, key=lambda row: -encode(row, tokenizer).length)
    words = f"the longest rows of dpo_dataset/, up to {fitting.longest} tokens a side"
    one_sided = 0
    if settings.train.method == "kto":
        one_sided = len(read_one_sided(workspace.require(workspace.one_sided_rows, made_by="curate")))
    return _LongRows(longest_first, fitting.longest, words, len(fitting.rows), one_sided)


def _made_up(number: int, tokenizer: PreTrainedTokenizerBase, tokens: int) -> PreferenceRow:
    """A pair whose longer side fills `tokens` as far as whole words do."""

    def row(words: int) -> PreferenceRow:
        long = " and so on" * words
        return PreferenceRow(
            prompt=[{"role": "user", "content": f"Question {number}?"}],
            chosen=[{"role": "assistant", "content": f"Yes{long}"}],
            rejected=[{"role": "assistant", "content": f"No{long}"}],
            id=f"made-up {number}",
            category="made-up",
            delta=1.0,
            chosen_side="revised",
        )

    low, high = 0, tokens
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        if encode(row(middle), tokenizer).length <= tokens:
            low = middle
        else:
            high = middle - 1
    return row(low)
