"""What supervised fine-tuning came to."""

from __future__ import annotations

from cai_helpers.training.outcome.course import Course


class SftReport(Course):
    """Losses are nats a token of the answers."""

    rows: int  # winning revisions
    eval_rows: int
    eval_token_accuracy: float  # share of answer tokens that are the most probable one

    def title(self) -> str:
        return "Supervised fine-tuning"

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("revisions", f"{self.rows} + {self.eval_rows} held out"),
            *self.checked("start", "trained", "labels"),
            self.steps_line(),
            self.loss_line(),
            self.held_out_line(),
            ("held-out tokens right", f"{self.eval_token_accuracy:.2f}"),
            *self.machine_lines(),
            *self.alarm_lines(),
        ]

    def summary(self) -> list[tuple[str, str]]:
        shown = (self.steps_line(), self.loss_line(), self.held_out_line())
        return [(f"SFT {name}", figure) for name, figure in shown]
