"""Six held-out prompts with both answers: the two most improved, the two most worsened, two at random."""

from __future__ import annotations

import random
from typing import NamedTuple

from cai_helpers.evaluation.figures import HELD_OUT, Response, readable
from cai_helpers.inspection.worddiff import Piece, word_diff
from cai_helpers.pages.template import shorten
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

_OF_EACH = 2


class AnswerSide(NamedTuple):
    name: str
    score: float
    pieces: list[Piece]
    tag: str  # HTML element of what the other side does not have
    wins: bool


class AnswerExample(NamedTuple):
    heading: str
    asked: str
    sides: list[AnswerSide]


def answer_examples(workspace: Workspace) -> list[AnswerExample]:
    """None before an evaluation. The random two are the same as long as the answers are."""
    if not workspace.responses.exists():
        return []
    responses = [Response.model_validate(row) for row in read_jsonl(workspace.responses)]
    ordered = sorted((one for one in responses if one.prompt_set == HELD_OUT), key=lambda one: (one.delta, one.id))
    improved = [one for one in reversed(ordered[-_OF_EACH:]) if one.delta > 0]
    worsened = [one for one in ordered[:_OF_EACH] if one.delta < 0]
    extreme = {one.id for one in (*improved, *worsened)}
    others = [one for one in ordered if one.id not in extreme]
    drawn = random.Random("examples").sample(others, min(_OF_EACH, len(others)))
    kinds = [("most improved", improved), ("most worsened", worsened), ("at random", drawn)]
    return [_example(kind, one) for kind, ones in kinds for one in ones]


def _example(kind: str, one: Response) -> AnswerExample:
    before, after = shorten(one.stage2), shorten(one.stage3)
    diff = word_diff(before, after)
    if not diff.legible:
        diff = diff._replace(before=[Piece(before, False)], after=[Piece(after, False)])
    same = ", the same answer" if one.stage2 == one.stage3 else ""
    return AnswerExample(
        heading=f"{kind} · {readable(one.category)}{same}",
        asked=shorten(one.prompt),
        sides=[
            AnswerSide("Stage 2", one.stage2_score, diff.before, "del", one.delta < 0),
            # of AI feedback a score belongs to its pair, so the difference is what holds
            AnswerSide("Stage 3", one.stage2_score + one.delta, diff.after, "ins", one.delta > 0),
        ],
    )
