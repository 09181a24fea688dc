"""The two things that can be judged blind: pairs against the reward model, and Stage 3's answers against Stage 2's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cai_helpers.inspection.blind import Judgement, agreement, can_be_judged
from cai_helpers.inspection.blind_answers import human_wins
from cai_helpers.inspection.rows import Row
from cai_helpers.notebook import pair_html
from cai_helpers.notebook.markup import Html
from cai_helpers.workspace import Workspace


class Task(NamedTuple):
    """What is judged, where judgements are kept, and in which words."""

    title: str
    introduction: str
    file: Path
    named: str  # the file as a person knows it
    what: str  # "rows", "prompts"
    neither: str  # the button between left and right
    nothing_left: str
    fit: Callable[[Row], bool]
    result: Callable[[Iterable[Judgement], Iterable[Judgement]], Html]  # of this round, of all rounds
    of_pairs: bool  # there are pairs to go back to, and judgements can become decisions about them


def pairs_task(workspace: Workspace, rows: list[Row]) -> Task:
    """How often a person agrees with the reward model."""

    def result(this_round: Iterable[Judgement], all_rounds: Iterable[Judgement]) -> Html:
        return pair_html.agreement_html(agreement(this_round, rows), agreement(all_rounds, rows))

    return Task(
        title="Blind test",
        introduction="You see a prompt and two answers, and choose the better one. Scores, outcome and critique are hidden, "
        "sides are shuffled. Pairs are drawn at random; those you judged blind before are not drawn again.",
        file=workspace.blind,
        named="pairs/blind.jsonl",
        what="rows",
        neither="skip",
        nothing_left="No row is left to judge: a pair needs two different texts with different scores.",
        fit=can_be_judged,
        result=result,
        of_pairs=True,
    )


def answers_task(workspace: Workspace, rows: list[Row]) -> Task:
    """Whether a person finds Stage 3 better than Stage 2 on held-out prompts."""

    def result(this_round: Iterable[Judgement], all_rounds: Iterable[Judgement]) -> Html:
        return pair_html.human_wins_html(human_wins(this_round, rows), human_wins(all_rounds, rows))

    return Task(
        title="Blind check",
        introduction="You see a held-out prompt and two answers, one of Stage 2 and one of Stage 3, and choose the better one. "
        "Sides are shuffled and nothing tells which is which. Each judgement is saved at once; prompts you judged before are "
        "not drawn again.",
        file=workspace.blind_answers,
        named="evaluation/blind.jsonl, and the report shows them beside the verdict",
        what="prompts",
        neither="no difference",
        nothing_left="No prompt is left to judge: you have seen all whose two answers differ.",
        fit=lambda _: True,
        result=result,
        of_pairs=False,
    )
