"""Give both sides of each pair a reward. Changing the reward model scores again and generates nothing."""

from __future__ import annotations

import time
from collections import Counter

from cai_helpers.calibration.accuracy import NOT_CALIBRATED, load_calibration, trust_line
from cai_helpers.contents import file_hash
from cai_helpers.machine.hardware import use_threads
from cai_helpers.readiness.needs import require_ready
from cai_helpers.schema import ScoredPair, Side, StageReport, Trace
from cai_helpers.scoring.judge import Judged, PairScores, ResponsePair, judge_pairs, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace, holds_workspace


class ScoreReport(StageReport):
    scorer: str
    pairs: int
    with_revision: int  # pairs that have two different sides to compare
    revised_wins: int
    draft_wins: int
    ties: int
    mean_delta: float | None  # over with_revision
    scored_now: int  # texts, or pairs for AI feedback; the others were scored by an earlier call
    notes: list[tuple[str, str]]  # of this call: precision, truncated inputs, position bias
    seconds: float
    trust: str = NOT_CALIBRATED  # what gold pairs say of the scorer, see calibration.trust_line

    def title(self) -> str:
        return "Reward scores"

    def lines(self) -> list[tuple[str, str]]:
        compared = max(1, self.with_revision)
        return [
            ("scored by", self.scorer),
            ("pairs with a usable revision", f"{self.with_revision} of {self.pairs}"),
            ("revision scores higher", f"{self.revised_wins} ({self.revised_wins / compared:.0%})"),
            ("draft scores higher", f"{self.draft_wins} ({self.draft_wins / compared:.0%})"),
            ("gold pairs", self.trust),
            ("ties", str(self.ties)),
            ("mean score difference", "none" if self.mean_delta is None else f"{self.mean_delta:+.2f}"),
            *self.notes,
            ("this call", f"{self.scored_now} texts in {self.seconds:.0f} s"),
        ]

    def summary(self) -> list[tuple[str, str]]:
        shown = ("pairs with a usable revision", "revision scores higher")
        return [(name, figure) for name, figure in self.lines() if name in shown]


@holds_workspace
def score_pairs(settings: Settings, workspace: Workspace) -> ScoreReport:
    """Score every trace of the prompts at hand and write pairs/pairs.jsonl.

    Scores are kept by what was asked in pairs/scores.jsonl: a killed call resumes, an unchanged text is never scored twice.

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
    judged = judge_pairs(settings, [_asked(trace) for trace in traces], JsonlStore(workspace.scores))
    pairs = [_pair(trace, scores) for trace, scores in zip(traces, judged.scores, strict=True)]
    write_jsonl(workspace.pairs, (pair.model_dump() for pair in pairs))
    report = _report(scorer_identity(settings), pairs, judged, time.monotonic() - started)
    report = report.model_copy(update={"trust": trust_line(load_calibration(workspace, report.scorer))})
    workspace.seal("score", fingerprint, [workspace.pairs], report)
    return report


def choose_side(base_score: float, revised_score: float) -> Side:
    """The side with the higher reward; a tie keeps the draft."""
    return "revised" if revised_score > base_score else "base"


def _asked(trace: Trace) -> ResponsePair:
    """Only a usable revision is scored; all other traces have one side, the draft."""
    return ResponsePair(
        trace.prompt.messages, trace.draft, trace.revision if trace.outcome == "revised" else trace.draft
    )


def _pair(trace: Trace, scores: PairScores) -> ScoredPair:
    messages, base = trace.prompt.messages, scores.first
    revised = scores.second if trace.outcome in ("revised", "kept") else None
    return ScoredPair(
        prompt=trace.prompt.text,
        base_response=trace.draft,
        revised_response=trace.revision,
        base_score=base,
        revised_score=revised,
        chosen=None if revised is None else choose_side(base, revised),
        critic_notes=trace.critique,
        principle_ids=trace.principle_ids,
        id=trace.id,
        messages=messages,
        category=trace.prompt.category,
        source=trace.prompt.source,
        outcome=trace.outcome,
        reason=trace.reason,
        base_finish=trace.draft_finish,
    )


def _report(scorer: str, pairs: list[ScoredPair], judged: Judged, seconds: float) -> ScoreReport:
    deltas = [pair.delta for pair in pairs if pair.outcome == "revised" and pair.delta is not None]
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
        notes=judged.notes,
        seconds=seconds,
    )
