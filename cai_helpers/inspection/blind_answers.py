"""Which of two models answers better, by a person who does not know which is which: kept in evaluation/blind.jsonl.

The prompts are the held-out ones, so nothing that is judged here is ever trained on.
"""

from __future__ import annotations

from collections.abc import Iterable

from cai_helpers.curation.overrides import pair_key
from cai_helpers.evaluation.figures import HELD_OUT, Response
from cai_helpers.inspection.blind import Judgement, read_judgements
from cai_helpers.inspection.rows import Row
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.schema import Record, ScoredPair
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace


class HumanWins(Record):
    """What a person found, blind: Stage 3 against Stage 2 on held-out prompts whose two answers differ."""

    wins: int
    ties: int
    losses: int
    left: int  # how often the left side was taken; about half of wins and losses is as it should be
    share: Interval | None  # win rate of Stage 3, a tie as half a win; Wilson
    with_judge: Interval | None  # where the person chose and the judge did: how often they agree

    @property
    def judged(self) -> int:
        return self.wins + self.ties + self.losses

    def line(self) -> str:
        """One sentence, to stand beside the verdict."""
        if self.share is None:
            return "nobody has judged these answers blind yet (notebook 05)"
        agreed = f"; the judge agrees on {self.with_judge.percent()} of them" if self.with_judge else ""
        return (
            f"Stage 3 preferred in {self.share.percent()} of {self.judged} held-out prompts: {self.wins} won, "
            f"{self.ties} tied, {self.losses} lost{agreed}"
        )

    def lines(self) -> list[str]:
        """The result as the person who judged reads it."""
        if self.share is None:
            return ["Nothing was judged, so there is nothing to report."]
        chosen = self.wins + self.losses
        side = f" You took the left side {self.left} times of {chosen}; about half is usual." if chosen else ""
        return [f"Blind, {self.line()}.", f"{_meaning(self.share)}{side}"]


def _meaning(share: Interval) -> str:
    if share.low > 0.5:
        return "To you Stage 3 is the better one, beyond chance."
    if share.high < 0.5:
        return (
            "To you Stage 3 is the worse one, beyond chance: look at these answers before you believe any other figure."
        )
    return "By so few prompts alone it could be a coin toss; each further round narrows the interval."


def read_answer_rows(workspace: Workspace) -> list[Row]:
    """Held-out prompts whose answers differ, as pairs: Stage 2's answer stands for the draft, Stage 3's for the revision."""
    path = workspace.require(workspace.responses, made_by="evaluate")
    responses = map(Response.model_validate, read_jsonl(path))
    return [
        _row(response)
        for response in responses
        if response.prompt_set == HELD_OUT and response.stage2.strip() != response.stage3.strip()
    ]


def _row(response: Response) -> Row:
    pair = ScoredPair(
        prompt=response.prompt,
        base_response=response.stage2,
        revised_response=response.stage3,
        base_score=response.stage2_score,
        revised_score=response.stage2_score + response.delta,
        chosen=None,
        id=response.id,
        category=response.category,
    )
    return Row(pair, pair_key(response.prompt, response.stage2, response.stage3), None)


def human_wins(judgements: Iterable[Judgement], rows: Iterable[Row]) -> HumanWins:
    """Count the judgements about these rows; answers of another adapter, judged earlier, are left out."""
    deltas = {row.key: row.pair.delta or 0.0 for row in rows}
    known = [judgement for judgement in judgements if judgement.key in deltas]
    wins, losses = (sum(one.better == side for one in known) for side in ("revision", "draft"))
    ties = len(known) - wins - losses
    both = [(one.better == "revision", deltas[one.key]) for one in known if one.better != "skip" and deltas[one.key]]
    agreed = sum(better == (delta > 0) for better, delta in both)
    return HumanWins(
        wins=wins,
        ties=ties,
        losses=losses,
        left=sum(one.better == one.left for one in known),
        share=proportion(wins + ties / 2, len(known)),
        with_judge=proportion(agreed, len(both)),
    )


def read_human_wins(workspace: Workspace) -> HumanWins | None:
    """What was judged so far of the answers that lie here now; None where nothing was."""
    if not (workspace.blind_answers.exists() and workspace.responses.exists()):
        return None
    found = human_wins(read_judgements(workspace.blind_answers), read_answer_rows(workspace))
    return found if found.judged else None
