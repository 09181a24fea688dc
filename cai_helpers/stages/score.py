"""Give both sides of each pair a reward. Changing the reward model scores again and generates nothing."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter

from tqdm.auto import tqdm

from cai_helpers.errors import CaiError
from cai_helpers.hardware import use_threads
from cai_helpers.rewards import Scorer, load_scorer, scorer_identity
from cai_helpers.schema import Messages, ScoredPair, Side, StageReport, Trace
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace, file_hash

_ROWS_A_WRITE = 256  # texts scored between two writes; what a kill loses at most


class ScoreReport(StageReport):
    scorer: str
    pairs: int
    with_revision: int  # pairs that have two different sides to compare
    revised_wins: int
    draft_wins: int
    ties: int
    mean_delta: float | None  # over with_revision
    scored_now: int  # texts; the others were scored by an earlier call
    seconds: float

    def title(self) -> str:
        return "Reward scores"

    def lines(self) -> list[tuple[str, str]]:
        compared = max(1, self.with_revision)
        return [
            ("reward model", self.scorer),
            ("pairs with a usable revision", f"{self.with_revision} of {self.pairs}"),
            ("revision scores higher", f"{self.revised_wins} ({self.revised_wins / compared:.0%})"),
            ("draft scores higher", f"{self.draft_wins} ({self.draft_wins / compared:.0%})"),
            ("ties", str(self.ties)),
            ("mean score difference", "none" if self.mean_delta is None else f"{self.mean_delta:+.2f}"),
            ("this call", f"{self.scored_now} texts in {self.seconds:.0f} s"),
        ]

    def summary(self) -> list[tuple[str, str]]:
        shown = ("pairs with a usable revision", "revision scores higher")
        return [(name, figure) for name, figure in self.lines() if name in shown]


def score_pairs(settings: Settings, workspace: Workspace) -> ScoreReport:
    """Score every trace of the prompts at hand and write pairs/pairs.jsonl.

    Scores are kept by text in pairs/scores.jsonl: a killed call resumes, an unchanged text is never scored twice.

    Raises:
        CaiError: there are no traces, or the reward model cannot be loaded, is read the wrong way, or fails.
    """
    traces_file = workspace.require(workspace.traces, made_by="generate")
    fingerprint = {
        "models.reward": scorer_identity(settings.models),
        "input traces": file_hash(traces_file),
        "input prompts": file_hash(workspace.prompts),
    }
    if (report := workspace.finished("score", fingerprint, ScoreReport)) is not None:
        return report

    use_threads(settings.threads)
    started = time.monotonic()
    by_id = {row["id"]: row for row in read_jsonl(traces_file)}
    # in the order of the prompts: that of the traces depends on batches and processes, and DPO's data order follows it
    ids = [row["id"] for row in read_jsonl(workspace.prompts)]
    traces = [Trace.model_validate(by_id[name]) for name in ids if name in by_id]
    scores, scored_now = _scores(settings, workspace, traces)
    pairs = [_pair(trace, scores, scorer_identity(settings.models)) for trace in traces]
    write_jsonl(workspace.pairs, (pair.model_dump() for pair in pairs))
    report = _report(scorer_identity(settings.models), pairs, scored_now, time.monotonic() - started)
    workspace.seal("score", fingerprint, [workspace.pairs], report)
    return report


def choose_side(base_score: float, revised_score: float) -> Side:
    """The side with the higher reward; a tie keeps the draft."""
    return "revised" if revised_score > base_score else "base"


def _scores(settings: Settings, workspace: Workspace, traces: list[Trace]) -> tuple[dict[str, float], int]:
    """Score by text key for every side there is to score, and how many were computed now."""
    scorer_name = scorer_identity(settings.models)
    texts: dict[str, tuple[Messages, str]] = {}
    for trace in traces:
        for response in _sides(trace):
            texts[text_key(scorer_name, trace.prompt.messages, response)] = (trace.prompt.messages, response)
    store = JsonlStore(workspace.scores)
    scores = {row["id"]: row["score"] for row in store.rows() if row["id"] in texts}
    missing = {key: pair for key, pair in texts.items() if key not in scores}
    if missing:
        scores.update(_score_missing(load_scorer(settings.models, settings.score.batch_size), missing, store))
    return scores, len(missing)


def _score_missing(scorer: Scorer, missing: dict[str, tuple[Messages, str]], store: JsonlStore) -> dict[str, float]:
    keys = list(missing)
    scores: dict[str, float] = {}
    unwritten: list[dict] = []
    with tqdm(total=len(keys), desc="score", unit="text") as bar:
        try:
            for index, score in scorer.iterate([missing[key] for key in keys]):
                scores[keys[index]] = score
                unwritten.append({"id": keys[index], "score": score})
                bar.update()
                if len(unwritten) >= _ROWS_A_WRITE:
                    store.append(unwritten)
                    unwritten = []
        except KeyboardInterrupt:
            raise CaiError(
                f"Stopped by hand at {bar.n} of {len(keys)} texts.", "Run `cai score` again to go on."
            ) from None
        finally:
            store.append(unwritten)
    return scores


def _sides(trace: Trace) -> list[str]:
    return [trace.draft, trace.revision] if trace.outcome == "revised" else [trace.draft]


def text_key(scorer: str, messages: Messages, response: str) -> str:
    content = json.dumps([scorer, messages, response], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def _pair(trace: Trace, scores: dict[str, float], scorer_name: str) -> ScoredPair:
    messages = trace.prompt.messages
    base = scores[text_key(scorer_name, messages, trace.draft)]
    revised = None
    if trace.outcome == "revised":
        revised = scores[text_key(scorer_name, messages, trace.revision)]
    elif trace.outcome == "kept":  # both sides are the draft
        revised = base
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


def _report(scorer: str, pairs: list[ScoredPair], scored_now: int, seconds: float) -> ScoreReport:
    deltas = [pair.delta for pair in pairs if pair.outcome == "revised"]
    signs = Counter((delta > 0) - (delta < 0) for delta in deltas)
    return ScoreReport(
        scorer=scorer,
        pairs=len(pairs),
        with_revision=len(deltas),
        revised_wins=signs[1],
        draft_wins=signs[-1],
        ties=signs[0],
        mean_delta=sum(deltas) / len(deltas) if deltas else None,
        scored_now=scored_now,
        seconds=seconds,
    )
