"""Will the long run go through, and how long will it take? The whole path on a little, in minutes, before hours are spent.

Nothing is written into the results of a stage: everything happens in a folder of its own, which is removed.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cai_helpers.critique.critic import load_critic, make_traces
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, Machine, choose_dtype, this_machine, usable_memory, use_threads
from cai_helpers.models.batches import release_memory
from cai_helpers.models.language import load_tokenizer
from cai_helpers.prompts.split import write_prompts
from cai_helpers.schema import BENIGN, PreferenceRow, Prompt, StageReport, Trace
from cai_helpers.scoring.judge import ResponsePair, load_scorer, question_key, questions_of
from cai_helpers.scoring.questions import Question
from cai_helpers.scoring.samples import asked_about
from cai_helpers.settings import Settings
from cai_helpers.store import read_jsonl
from cai_helpers.training.memory_plan import plan_memory, require_memory
from cai_helpers.training.policy.reference_store import reference_of
from cai_helpers.training.rows.pairs import Fitting, Preferences, encode, keep_fitting, read_rows
from cai_helpers.workspace import Workspace, holds_workspace

_STEPS = 2  # the first one warms up; the second is what a step costs
_TIGHT = 0.9  # share of the memory there is


class PreflightReport(StageReport):
    prompts: int  # of the configured run
    generated: int  # pairs, in one batch of the longest prompts
    outcomes: list[str]
    seconds_per_pair: float  # generated, in a full batch
    scored: int  # texts
    seconds_per_text: float
    rows: str  # which rows the steps were made of
    tokens: int  # of their longest side
    seconds_per_step: float
    pairs_per_step: int
    memory_plan: str
    peaks: dict[str, float]  # GiB on the GPU, by what was done; empty on a CPU
    usable: float  # GiB
    minutes: dict[str, float]  # projected, by stage
    assumed: str  # what the projection rests on
    seconds: float

    def title(self) -> str:
        return "Preflight"

    def lines(self) -> list[tuple[str, str]]:
        peaks = ", ".join(f"{what} {peak:.1f} GiB" for what, peak in self.peaks.items())
        minutes = ", ".join(f"{stage} {_minutes(value)}" for stage, value in self.minutes.items())
        outcomes = ", ".join(f"{self.outcomes.count(name)} {name}" for name in dict.fromkeys(self.outcomes))
        return [
            (
                "generated",
                f"{self.generated} pairs of the longest prompts ({outcomes}), {self.seconds_per_pair:.2f} s a pair",
            ),
            ("scored", f"{self.scored} texts, {self.seconds_per_text:.3f} s each"),
            (
                "trained",
                f"{_STEPS} DPO steps of {self.pairs_per_step} pairs, {self.seconds_per_step:.2f} s a step; {self.rows}",
            ),
            ("memory plan", self.memory_plan),
            ("peak memory", f"{peaks} of {self.usable:.1f} GiB" if peaks else "not measured on a CPU"),
            ("projected minutes", minutes),
            ("assumed", self.assumed),
            ("verdict", self.verdict()),
        ]

    def verdict(self) -> str:
        total = _minutes(sum(self.minutes.values()))
        peak = max(self.peaks.values(), default=0)
        if peak > _TIGHT * self.usable:
            return (
                f"TIGHT: {peak:.1f} of {self.usable:.1f} GiB are in use at the peak; about {total} minutes if it fits. "
                "Halve train.batch_size (and double train.accumulation), or lower train.max_length."
            )
        return f"ready: everything ran; the configured run takes about {total} minutes (this took {self.seconds:.0f} s)"


class _Generated(NamedTuple):
    traces: list[Trace]
    prompts: int
    eval_prompts: int
    seconds: float


class _Trained(NamedTuple):
    rows: str
    longest: int
    steps: int  # of the configured run, at most
    step_seconds: float
    pair_seconds: float  # of a pair that is only looked at, as in an evaluation
    plan: str


@holds_workspace
def check_path(settings: Settings, workspace: Workspace) -> PreflightReport:
    """Generate and score one batch, make two DPO steps on the longest rows, and project the configured run from them.

    The batch is the one that needs most memory, the longest prompts. The rows are the longest of dpo_dataset/, where
    they exist, else made up, at train.max_length tokens a side. The path includes the flight checks, a checkpoint and
    its seal.

    Raises:
        CaiError: something on the way fails; the message is that of the stage where it would have failed.
    """
    use_threads(settings.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    began = time.monotonic()
    machine = this_machine()
    peaks: dict[str, float] = {}

    def say(message: str) -> None:
        workspace.say("preflight", message)

    with tempfile.TemporaryDirectory(prefix="cai-preflight-") as folder:
        scratch = Workspace(Path(folder))
        with _peak(peaks, "generating"):
            made = _generate(settings, workspace, scratch, say)
        with _peak(peaks, "scoring"):
            texts, scoring = _score(settings, made.traces, say)
        with _peak(peaks, "training"):
            trained = _train(settings, workspace, scratch, machine, made.prompts, say)
    return _report(settings, made, texts, scoring, trained, peaks, machine, time.monotonic() - began)


def _generate(settings: Settings, workspace: Workspace, scratch: Workspace, say: Callable[[str], None]) -> _Generated:
    if workspace.prompts.exists():
        scratch = workspace
    else:
        write_prompts(settings, scratch)
    prompts = [Prompt.model_validate(row) for row in read_jsonl(scratch.prompts)]
    held_out = sum(1 for _ in read_jsonl(scratch.eval_prompts))
    batch = sorted(prompts, key=lambda prompt: -len(prompt.text))[: settings.generate.batch_size]
    protocol = "single/short" if settings.generate.protocol == "auto" else settings.generate.protocol
    critic = load_critic(settings, protocol)
    started = time.monotonic()
    traces = make_traces(critic, batch)
    seconds = time.monotonic() - started
    if not traces:
        raise CaiError("Not one of the pairs was generated.", "See the messages above; run `cai doctor`.")
    first = traces[0]
    say(f"one pair: {first.draft[:80]!r} → {first.outcome}: {first.revision[:80]!r}")
    return _Generated(traces, len(prompts), held_out, seconds / len(traces))


def _score(settings: Settings, traces: list[Trace], say: Callable[[str], None]) -> tuple[int, float]:
    """How many texts, and seconds a text."""
    release_memory()
    scorer = load_scorer(settings)
    pairs = [pair for trace in traces for pair in asked_about(trace)]
    # a sample stands in several pairs and is scored once
    asked = list({key: question for pair in pairs for key, question in _by_key(pair, settings)}.values())
    started = time.monotonic()
    answers = dict(scorer.iterate(asked))
    seconds = time.monotonic() - started
    first = [answers[place] for place in range(len(questions_of(pairs[0], settings)))]
    say(f"its scores: {', '.join(f'{score:+.2f}' for scores in first for score in scores) or 'two equal texts'}")
    return len(asked), seconds / max(1, len(asked))


def _by_key(pair: ResponsePair, settings: Settings) -> list[tuple[str, Question]]:
    return [(question_key("", question), question) for question in questions_of(pair, settings)]


def _train(
    settings: Settings,
    workspace: Workspace,
    scratch: Workspace,
    machine: Machine,
    prompts: int,
    say: Callable[[str], None],
) -> _Trained:
    from cai_helpers.training.checks import check_flight
    from cai_helpers.training.dpo import build_trainer
    from cai_helpers.training.trainer import explained_memory, quiet_libraries
    from cai_helpers.training.watch.history import TrainingHistory

    release_memory()
    tokenizer = load_tokenizer(settings.models.base)
    data, rows, pairs = _rows(settings, workspace, tokenizer, prompts)
    two_steps = {"epochs": 1, "log_steps": 1, "every_steps": _STEPS, "every_minutes": 1e6, "report_to": "none"}
    short = settings.model_copy(update={"train": settings.train.model_copy(update=two_steps)})
    dtype = choose_dtype(settings.models.dtype, machine)
    plan = require_memory(plan_memory(settings, dtype, machine, data.longest), settings)
    with quiet_libraries(), explained_memory(settings.train):
        reference = reference_of(scratch, "preflight", say)
        trainer = build_trainer(
            short, scratch.checkpoints, data.train.rows, data.held_out.rows, tokenizer, dtype, machine, reference
        )
        checks = check_flight(trainer, settings.models, data)
        say(f"{len(checks)} checks before the first update hold: {', '.join(check.what for check in checks)}")
        history = TrainingHistory(
            scratch.history, scratch.checkpoints, dtype == "fp16", lambda message, show=True: None, short
        )
        trainer.add_callback(history)
        try:
            trainer.train()
        finally:
            history.close()
        started = time.monotonic()
        trainer.measure_each(trainer.eval_dataset)
        looked = (time.monotonic() - started) / len(data.held_out.rows)
    training = [row["seconds"] for row in history.rows() if "loss" in row]
    steps = math.ceil(
        pairs * (1 - settings.curate.eval_fraction) / settings.train.effective_batch * settings.train.epochs
    )
    return _Trained(rows, data.longest, steps, training[1] - training[0], looked, plan.line())


def _rows(settings: Settings, workspace: Workspace, tokenizer, prompts: int) -> tuple[Preferences, str, int]:
    """The rows of the two steps, what they are in words, and how many pairs the configured run has at most."""
    count, limit = _STEPS * settings.train.effective_batch, settings.train.max_length
    if not workspace.train_rows.exists():
        made_up = [_made_up(number, tokenizer, limit) for number in range(count + 1)]
        fitting = keep_fitting(made_up, tokenizer, limit)
        data = Preferences(
            Fitting(fitting.rows[:count], 0, fitting.longest), Fitting(fitting.rows[count:], 0, fitting.longest)
        )
        return data, f"made-up rows of {fitting.longest} tokens a side, as there is no dpo_dataset/ yet", prompts
    there = keep_fitting([*read_rows(workspace.train_rows), *read_rows(workspace.eval_rows)], tokenizer, limit)
    if not there.rows:
        raise CaiError(
            f"No pair of dpo_dataset/ fits into train.max_length = {limit} tokens.", "Raise train.max_length."
        )
    longest = sorted(there.rows, key=lambda row: -encode(row, tokenizer).length)
    train = (longest * math.ceil(count / len(longest)))[:count]
    data = Preferences(Fitting(train, 0, there.longest), Fitting(longest[:1], 0, there.longest))
    return data, f"the longest rows of dpo_dataset/, up to {there.longest} tokens a side", len(there.rows)


def _made_up(number: int, tokenizer, tokens: int) -> PreferenceRow:
    """A pair whose longer side fills `tokens` as far as whole words do."""

    def row(words: int) -> PreferenceRow:
        long = " and so on" * words
        return PreferenceRow(
            prompt=[{"role": "user", "content": f"Question {number}?"}],
            chosen=[{"role": "assistant", "content": f"Yes{long}"}],
            rejected=[{"role": "assistant", "content": f"No{long}"}],
            id=f"made-up {number}",
            category=BENIGN,
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


def _report(
    settings: Settings,
    made: _Generated,
    texts: int,
    scoring: float,
    trained: _Trained,
    peaks: dict[str, float],
    machine: Machine,
    seconds: float,
) -> PreflightReport:
    generate, evaluate = settings.generate, settings.evaluate
    answers = 2 * min(made.eval_prompts, evaluate.limit or made.eval_prompts)
    answer = made.seconds * evaluate.max_tokens / (generate.draft_tokens + generate.critic_tokens)
    evaluations = trained.steps / settings.train.every_steps + 1
    held_out = made.prompts * settings.curate.eval_fraction
    method = settings.train.method
    other = "" if method == "dpo" else f"; the steps are DPO's, though train.method is {method}"
    return PreflightReport(
        prompts=made.prompts,
        generated=len(made.traces),
        outcomes=[trace.outcome for trace in made.traces],
        seconds_per_pair=made.seconds,
        scored=texts,
        seconds_per_text=scoring,
        rows=trained.rows,
        tokens=trained.longest,
        seconds_per_step=trained.step_seconds,
        pairs_per_step=settings.train.effective_batch,
        memory_plan=trained.plan,
        peaks=peaks,
        usable=usable_memory(machine) / GIB,
        minutes={
            "generate": made.prompts * made.seconds / 60,
            "score": max(2, texts / len(made.traces)) * made.prompts * scoring / 60,
            "train": (trained.steps * trained.step_seconds + evaluations * held_out * trained.pair_seconds) / 60,
            "evaluate": answers * (answer + scoring) / 60,
        },
        assumed=f"{made.prompts} prompts, every one a pair; {trained.steps} steps, all as long as the longest rows; "
        f"{answers} answers in the evaluation: so at most that long, loading aside" + other,
        seconds=seconds,
    )


@contextmanager
def _peak(peaks: dict[str, float], what: str) -> Iterator[None]:
    """Note the peak of the GPU's memory meanwhile, and leave the GPU empty."""
    import torch

    release_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield
    if torch.cuda.is_available():
        peaks[what] = torch.cuda.max_memory_allocated() / GIB
    release_memory()


def _minutes(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
