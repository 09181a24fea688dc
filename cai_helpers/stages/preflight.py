"""Will the long run go through, and how long will it take? The whole path on a little, in minutes, before hours are spent.

Nothing is written into the results of a stage: everything happens in a folder of its own, which is removed. What was found is
kept, so that opening a notebook again does not try it all again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

from cai_helpers.critique.critic import load_critic, make_traces
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.prompt_sets import answers_wanted
from cai_helpers.machine.hardware import GIB, TIGHT, Machine, this_machine, usable_memory, use_threads
from cai_helpers.manifest import Fingerprint, section
from cai_helpers.models.batches import release_all
from cai_helpers.models.hub import identity
from cai_helpers.models.language import portion
from cai_helpers.prompts.split import write_prompts
from cai_helpers.readiness.needs import require_ready
from cai_helpers.schema import Prompt, StageReport, Trace
from cai_helpers.scoring.judge import ResponsePair, load_scorer, question_key, questions_of, scorer_identity
from cai_helpers.scoring.questions import Question
from cai_helpers.scoring.samples import asked_about
from cai_helpers.settings import Settings
from cai_helpers.store import read_jsonl
from cai_helpers.training.rehearsal import Rehearsal, Rehearsed, rehearse
from cai_helpers.workspace import Workspace, holds_workspace


class PreflightReport(StageReport):
    FIRST: ClassVar[tuple[str, ...]] = ("peak memory", "projected minutes", "verdict")

    prompts: int  # of the configured run
    generated: int  # pairs, in one batch of the longest prompts
    outcomes: list[str]
    seconds_per_pair: float  # generated, in a full batch
    scored: int  # texts
    seconds_per_text: float
    rows: str  # which rows the steps were made of
    training: list[Rehearsed]  # each phase of train.method
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
            *(("trained", f"{phase.line()}; {self.rows}") for phase in self.training),
            *(("memory plan", phase.memory_plan) for phase in self.training),
            ("peak memory", f"{peaks} of {self.usable:.1f} GiB" if peaks else "not measured on a CPU"),
            ("projected minutes", minutes),
            ("assumed", self.assumed),
            ("verdict", self.verdict()),
        ]

    def verdict(self) -> str:
        total = _minutes(sum(self.minutes.values()))
        peak = max(self.peaks.values(), default=0)
        if peak > TIGHT * self.usable:
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


@holds_workspace
def check_path(settings: Settings, workspace: Workspace, fresh: bool = False) -> PreflightReport:
    """Generate and score one batch, train two steps by train.method on the longest rows, and project the configured run from them.

    The batch is the one that needs most memory, the longest prompts. The rows are the longest of dpo_dataset/, where
    they exist, else made up, at train.max_length tokens a side. The path includes the flight checks, a checkpoint and
    its seal. What it found is remembered: a second call on the same kind of machine, with the same settings, tries nothing
    unless `fresh` is set.

    Raises:
        CaiError: something on the way fails; the message is that of the stage where it would have failed.
    """
    machine = this_machine()
    fingerprint = _tried(settings, machine)
    if not fresh and (earlier := workspace.finished("preflight", fingerprint, PreflightReport)) is not None:
        return earlier
    require_ready(settings, workspace, "generate")
    use_threads(settings.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    began = time.monotonic()
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
            rehearsal = rehearse(settings, workspace, scratch, machine, made.prompts, say)
    report = _report(settings, made, texts, scoring, rehearsal, peaks, machine, time.monotonic() - began)
    workspace.seal("preflight", fingerprint, [], report)
    return report


def _tried(settings: Settings, machine: Machine) -> Fingerprint:
    """What the trial depends on: the models, what is made of them, and the card."""
    models = settings.models
    sections = {
        name: getattr(settings, name) for name in ("prompts", "generate", "endpoint", "score", "train", "evaluate")
    }
    return {
        "machine": f"{machine.gpus} x {machine.name}, {machine.memory / GIB:.0f} GiB",
        "models.base": identity(models.base),
        "models.adapter": identity(models.adapter),
        "models.dtype": models.dtype,
        "models.reward": scorer_identity(settings),
        **{entry: value for name, values in sections.items() for entry, value in section(name, values).items()},
    }


def _generate(settings: Settings, workspace: Workspace, scratch: Workspace, say: Callable[[str], None]) -> _Generated:
    if workspace.prompts.exists():
        scratch = workspace
    else:
        write_prompts(settings, scratch)
    prompts = [Prompt.model_validate(row) for row in read_jsonl(scratch.prompts)]
    held_out = sum(1 for _ in read_jsonl(scratch.eval_prompts))
    protocol = "single/short" if settings.generate.protocol == "auto" else settings.generate.protocol
    critic = load_critic(settings, protocol)
    together = portion(critic.drafter, settings.generate.batch_size)
    batch = sorted(prompts, key=lambda prompt: -len(prompt.text))[:together]
    started = time.monotonic()
    traces = [trace for ended in make_traces(critic, batch) for trace in ended]
    seconds = time.monotonic() - started
    if not traces:
        raise CaiError("Not one of the pairs was generated.", "See the messages above; run `cai doctor`.")
    first = traces[0]
    say(f"one pair: {first.draft[:80]!r} → {first.outcome}: {first.revision[:80]!r}")
    return _Generated(traces, len(prompts), held_out, seconds / len(traces))


def _score(settings: Settings, traces: list[Trace], say: Callable[[str], None]) -> tuple[int, float]:
    """How many texts, and seconds a text."""
    release_all()
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


def _report(
    settings: Settings,
    made: _Generated,
    texts: int,
    scoring: float,
    rehearsal: Rehearsal,
    peaks: dict[str, float],
    machine: Machine,
    seconds: float,
) -> PreflightReport:
    generate, evaluate = settings.generate, settings.evaluate
    answers = answers_wanted(settings, made.eval_prompts)
    answer = made.seconds * evaluate.max_tokens / (generate.draft_tokens + generate.critic_tokens)
    steps = " and ".join(f"{phase.steps} {phase.phase.upper()} steps" for phase in rehearsal.phases)
    return PreflightReport(
        prompts=made.prompts,
        generated=len(made.traces),
        outcomes=[trace.outcome for trace in made.traces],
        seconds_per_pair=made.seconds,
        scored=texts,
        seconds_per_text=scoring,
        rows=rehearsal.rows,
        training=rehearsal.phases,
        peaks=peaks,
        usable=usable_memory(machine) / GIB,
        minutes={
            "generate": made.prompts * made.seconds / 60,
            "score": max(2, texts / len(made.traces)) * made.prompts * scoring / 60,
            "train": sum(phase.minutes for phase in rehearsal.phases),
            "evaluate": answers * (answer + scoring) / 60,
        },
        assumed=f"{made.prompts} prompts, every one a pair; {steps}, all as long as the longest rows; "
        f"{answers} answers in the evaluation: so at most that long, loading aside",
        seconds=seconds,
    )


@contextmanager
def _peak(peaks: dict[str, float], what: str) -> Iterator[None]:
    """Note the peak of the GPU's memory meanwhile, and leave the GPU empty."""
    import torch

    release_all()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield
    if torch.cuda.is_available():
        peaks[what] = torch.cuda.max_memory_allocated() / GIB
    release_all()


def _minutes(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
