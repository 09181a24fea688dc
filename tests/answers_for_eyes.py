"""A small evaluation with planted answers, for the tests of what people read and touch."""

from __future__ import annotations

from cai_helpers.evaluation.comparison import compare, compare_by_category
from cai_helpers.evaluation.figures import HELD_OUT, PAIRINGS, Answer, Judgement, Response
from cai_helpers.evaluation.report import EvaluateReport
from cai_helpers.store import write_jsonl
from cai_helpers.workspace import Workspace

POLICIES = ("base", "stage2", "stage3")


def answered(number: int, delta: float, stage3: str | None = None, prompt_set: str = HELD_OUT, **fields) -> Response:
    """A prompt on which Stage 3 scores higher by `delta`; the base scores as Stage 2 does."""
    texts = {
        "base": f"Base number {number} says take the red pin.",
        "stage2": f"Stage two number {number} says take the red pin.",
        "stage3": stage3 or f"Stage two number {number} says take the blue pin.",
    }
    scores = {"base": 0.0, "stage2": 0.0, "stage3": delta}
    answers = {name: Answer(text=texts[name], finish="stop", refusal="none", score=scores[name]) for name in POLICIES}
    deltas = {
        pairing: scores[first] - scores[second]
        for pairing, (first, second) in PAIRINGS.items()
        if first in scores and second in scores
    }
    defaults = {
        "id": f"id{number}",
        "category": "harmless" if number % 2 else "helpful",
        "prompt": f"Question {number}?",
        "answers": answers,
        "deltas": deltas,
        "prompt_set": prompt_set,
    }
    return Response(**(defaults | fields))


def write_evaluation(workspace: Workspace, rows: list[Response], **fields) -> EvaluateReport:
    """evaluation/responses.jsonl and the sealed report of these rows."""
    write_jsonl(workspace.responses, (row.model_dump() for row in rows))
    held_out = [row for row in rows if row.prompt_set == HELD_OUT]
    sets = {row.prompt_set for row in rows} - {HELD_OUT}
    defaults = {
        "scorer": "a scorer",
        "notes": [],
        "judgement": Judgement(verdict="not shown", reason="it wins 60 % (40–80 %; of 9). Not shown: a; b (c; d)"),
        "overall": compare(held_out),
        "by_category": compare_by_category(held_out),
        "sets": {name: compare_by_category([row for row in rows if row.prompt_set == name]) for name in sorted(sets)},
        "generated_now": 0,
        "seconds": 0.0,
    }
    report = EvaluateReport(**(defaults | fields))
    workspace.seal("evaluate", {}, [], report)
    return report
