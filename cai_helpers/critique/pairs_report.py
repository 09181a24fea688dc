"""What making pairs came to."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cai_helpers.critique.samples import is_samples
from cai_helpers.prompts.split import PromptSummary
from cai_helpers.schema import OUTCOME_MEANING, StageReport


class GenerateReport(StageReport):
    FIRST: ClassVar[tuple[str, ...]] = (
        *("training prompts", "protocol", "pairs generated", "revised", "kept", "both sides", "two usable"),
        *("principles shown", "not answered"),
    )

    prompts: PromptSummary
    protocol: str
    pairs: int
    outcomes: dict[str, int]
    attempted: int  # revisions the critic tried: all but the kept; none where samples are drawn
    identical: int  # of the attempted: the "revision" is the draft again
    principles: dict[str, int]  # id → pairs it was shown for
    tokens: int  # generated, all rows
    failed: int  # rows an endpoint did not answer; the next call tries them again
    talk: list[tuple[str, str]] = Field(
        default_factory=list
    )  # how the model talks; empty where no row was left to make
    endpoint: list[tuple[str, str]]  # requests, failures, tokens and cost of this call, where an endpoint criticised
    seconds: float  # of this call; rows made earlier cost nothing now
    rows_now: int
    words: dict[str, str] = Field(default_factory=dict)  # of the principles, by id

    def title(self) -> str:
        return "Pairs: draft, critique, revision"

    def lines(self) -> list[tuple[str, str]]:
        return [
            *self.prompts.lines(),
            ("protocol", self.protocol),
            ("pairs generated", str(self.pairs)),
            *(
                (name, f"{self.outcomes[name]}  ({OUTCOME_MEANING[name]})")
                for name in OUTCOME_MEANING
                if name in self.outcomes
            ),
            *(self._of_samples() if is_samples(self.protocol) else self._of_critic()),
            ("tokens generated", f"{self.tokens:,}"),
            *([("not answered by the endpoint", f"{self.failed}; run it again to try them")] if self.failed else []),
            *self.talk,
            *self.endpoint,
            ("this call", f"{self.rows_now} pairs in {self.seconds:.0f} s"),
        ]

    def _of_critic(self) -> list[tuple[str, str]]:
        same = self.identical + self.outcomes.get("kept", 0)
        common = sorted(self.principles.items(), key=lambda item: -item[1])[:3]
        return [
            (
                "both sides identical",
                f"{same} of {self.pairs}; of {self.attempted} attempted revisions {self.identical}",
            ),
            (
                "principles shown",
                f"{len(self.principles)} different ones, most often "
                + ", ".join(
                    f"“{self.words.get(name, name)}” (in {count / self.pairs:.0%} of the pairs)"
                    for name, count in common
                ),
            ),
        ]

    def _of_samples(self) -> list[tuple[str, str]]:
        made = self.outcomes.get("sampled", 0)
        return [("two usable samples", f"{made} of {self.pairs}; scoring picks the best and the worst of each")]

    def summary(self) -> list[tuple[str, str]]:
        return [("pairs generated", f"{self.pairs}, protocol {self.protocol}")]
