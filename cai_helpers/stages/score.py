"""Give both sides of each pair a reward. Changing the reward model scores again and generates nothing."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import ClassVar, Literal, NamedTuple

from cai_helpers.calibration.accuracy import NOT_CALIBRATED, load_calibration, trust_line
from cai_helpers.contents import file_hash
from cai_helpers.machine.hardware import use_threads
from cai_helpers.machine.processes import is_main_process
from cai_helpers.readiness.needs import require_ready
from cai_helpers.schema import SAMPLED, ScoredPair, Side, StageReport, Trace
from cai_helpers.scoring.judge import Judged, PairScores, judge_pairs, scorer_identity
from cai_helpers.scoring.samples import asked_about, extremes
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace, holds_workspace


class ScoreReport(StageReport):
    FIRST: ClassVar[tuple[str, ...]] = (
        "scored by",
        "pairs with",
        "prompts with",
        "revision",
        "draft",
        "best",
        "gold",
        "mean",
    )

    scorer: str
    pairs: int
    with_revision: int  # pairs that have two different sides to compare: a revision, or two samples
    revised_wins: int
    draft_wins: int
    ties: int
    mean_delta: float | None  # over with_revision
    scored_now: int  # texts, or pairs for AI feedback; the others were scored by an earlier call
    notes: list[tuple[str, str]]  # of this call: precision, truncated inputs, position bias
    seconds: float
    sampled: bool = False  # the sides are the worst and the best of several samples
    trust: str = NOT_CALIBRATED  # what gold pairs say of the scorer, see calibration.trust_line

    def title(self) -> str:
        return "Reward scores"

    def lines(self) -> list[tuple[str, str]]:
        mean = "none" if self.mean_delta is None else f"{self.mean_delta:+.2f}"
        return [
            ("scored by", self.scorer),
            *(self._of_samples() if self.sampled else self._of_revisions()),
            ("gold pairs", self.trust),
            ("ties", str(self.ties)),
            ("mean score difference", f"{mean}, best less worst" if self.sampled else mean),
            *self.notes,
            ("this call", f"{self.scored_now} texts in {self.seconds:.0f} s"),
        ]

    def _of_revisions(self) -> list[tuple[str, str]]:
        compared = max(1, self.with_revision)
        return [
            ("pairs with a usable revision", f"{self.with_revision} of {self.pairs}"),
            ("revision scores higher", f"{self.revised_wins} ({self.revised_wins / compared:.0%})"),
            ("draft scores higher", f"{self.draft_wins} ({self.draft_wins / compared:.0%})"),
        ]

    def _of_samples(self) -> list[tuple[str, str]]:
        return [
            ("prompts with two usable samples", f"{self.with_revision} of {self.pairs}"),
            ("best sample scores higher", "by construction: it says nothing about the model or the scorer"),
        ]

    def summary(self) -> list[tuple[str, str]]:
        of_samples = ("prompts with two usable samples", "mean score difference")
        of_revisions = ("pairs with a usable revision", "revision scores higher")
        shown = of_samples if self.sampled else of_revisions
        return [(name, figure) for name, figure in self.lines() if name in shown]


@holds_workspace
def score_pairs(settings: Settings, workspace: Workspace) -> ScoreReport:
    """Score every trace of the prompts at hand and write pairs/pairs.jsonl.

    Scores are kept by what was asked in pairs/scores.jsonl: a killed call resumes, an unchanged text is never scored twice.
    Under `accelerate launch` the texts are shared out; the rows are the same as from one process.

    Raises:
        CaiError: there are no traces, or the reward model cannot be loaded, is read the wrong way, or fails.
    """
    traces_file = workspace.require(workspace.traces, made_by="generate")
    fingerprint = {
        "models.reward": scorer_identity(settings),
        "input traces": file_hash(traces_file),
        "input prompts": file_hash(workspace.prompts),
    }
    if (report := workspace.finished("score", fingerprint, ScoreReport)) is not None:
        return report.model_copy(update={"trust": trust_line(load_calibration(workspace, report.scorer))})

    require_ready(settings, workspace, "score")
    use_threads(settings.threads)
    started = time.monotonic()
    by_id = {row["id"]: row for row in read_jsonl(traces_file)}
    # in the order of the prompts: that of the traces depends on batches and processes, and DPO's data order follows it
    ids = [row["id"] for row in read_jsonl(workspace.prompts)]
    traces = [Trace.model_validate(by_id[name]) for name in ids if name in by_id]
    asked = [asked_about(trace) for trace in traces]
    judged = judge_pairs(settings, [pair for pairs in asked for pair in pairs], JsonlStore(workspace.scores))
    scores = iter(judged.scores)
    pairs = [
        _pair(trace, list(islice(scores, len(of_trace))), settings)
        for trace, of_trace in zip(traces, asked, strict=True)
    ]
    if is_main_process():
        write_jsonl(workspace.pairs, (pair.model_dump() for pair in pairs))
    report = _report(scorer_identity(settings), pairs, judged, time.monotonic() - started)
    report = report.model_copy(update={"trust": trust_line(load_calibration(workspace, report.scorer))})
    workspace.seal("score", fingerprint, [workspace.pairs], report)
    return report


def choose_side(base_score: float, revised_score: float) -> Side:
    """The side with the higher reward; a tie keeps the draft."""
    return "revised" if revised_score > base_score else "base"


class _Sides(NamedTuple):
    """What stands in the pair, and what it is worth."""

    base: str
    revised: str
    base_score: float
    revised_score: float | None
    base_finish: Literal["stop", "length"]
    reason: str


def _pair(trace: Trace, scores: list[PairScores], settings: Settings) -> ScoredPair:
    sides = (
        _best_and_worst(trace, scores, settings) if trace.outcome == "sampled" else _draft_and_revision(trace, scores)
    )
    return ScoredPair(
        prompt=trace.prompt.text,
        base_response=sides.base,
        revised_response=sides.revised,
        base_score=sides.base_score,
        revised_score=sides.revised_score,
        chosen=None if sides.revised_score is None else choose_side(sides.base_score, sides.revised_score),
        critic_notes=trace.critique,
        principle_ids=trace.principle_ids,
        id=trace.id,
        messages=trace.prompt.messages,
        category=trace.prompt.category,
        source=trace.prompt.source,
        outcome=trace.outcome,
        reason=sides.reason,
        base_finish=sides.base_finish,
        critic_output=trace.written,
    )


def _draft_and_revision(trace: Trace, scores: list[PairScores]) -> _Sides:
    (score,) = scores
    revised = score.second if trace.outcome in ("revised", "kept") else None
    return _Sides(trace.draft, trace.revision, score.first, revised, trace.draft_finish, trace.reason)


def _best_and_worst(trace: Trace, scores: list[PairScores], settings: Settings) -> _Sides:
    best, worst = extremes(trace, scores, settings)
    picked = f"{trace.reason}; best is sample {best.place + 1}, worst sample {worst.place + 1}"
    finish = trace.drafts[worst.place].finish
    return _Sides(worst.text, best.text, worst.rating, best.rating, finish, picked)


def _report(scorer: str, pairs: list[ScoredPair], judged: Judged, seconds: float) -> ScoreReport:
    deltas = [pair.delta for pair in pairs if pair.outcome in ("revised", "sampled") and pair.delta is not None]
    signs = Counter((delta > 0) - (delta < 0) for delta in deltas)
    return ScoreReport(
        scorer=scorer,
        pairs=len(pairs),
        with_revision=len(deltas),
        revised_wins=signs[1],
        draft_wins=signs[-1],
        ties=signs[0],
        mean_delta=sum(deltas) / len(deltas) if deltas else None,
        scored_now=judged.scored_now,
        sampled=any(pair.outcome in SAMPLED for pair in pairs),
        notes=judged.notes,
        seconds=seconds,
    )
