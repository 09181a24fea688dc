"""What a KTO run came to."""

from __future__ import annotations

from cai_helpers.training.outcome.course import Course
from cai_helpers.training.rows.answers import Weights


class KtoReport(Course):
    desirable: int  # answers that are trained on
    undesirable: int
    one_sided: int  # of both, those that are no side of a pair
    eval_rows: int
    weights: Weights  # of a desirable and of an undesirable answer in the loss
    too_long: int  # pairs and one-sided rows left out because an answer would be cut at train.max_length
    eval_reward_desirable: float | None  # of the checkpoint that was kept; beta times nats against Stage 2
    eval_reward_undesirable: float | None
    eval_kl: float  # nats an answer, estimated from mismatched answers

    def title(self) -> str:
        return "KTO training"

    def lines(self) -> list[tuple[str, str]]:
        left_out = f"; {self.too_long} left out as too long" if self.too_long else ""
        return [
            (
                "answers",
                f"{self.desirable} desirable, {self.undesirable} undesirable ({self.one_sided} of them not from a pair) "
                f"+ {self.eval_rows} held out{left_out}",
            ),
            ("weights", f"desirable {self.weights.desirable:.3g}, undesirable {self.weights.undesirable:.3g}"),
            *self.checked("reference", "trained", "start", "labels"),
            self.steps_line(),
            self.loss_line(),
            self.held_out_line(),
            self._rewards_line(),
            *self.machine_lines(),
            *self.alarm_lines(),
        ]

    def _rewards_line(self) -> tuple[str, str]:
        rewards = (self.eval_reward_desirable, self.eval_reward_undesirable)
        good, bad = ("none" if reward is None else f"{reward:+.3f}" for reward in rewards)
        return (
            "held-out rewards",
            f"desirable {good}, undesirable {bad}; KL estimate {self.eval_kl:.2f} nats an answer",
        )

    def summary(self) -> list[tuple[str, str]]:
        shown = (self.steps_line(), self.loss_line(), self.held_out_line(), self._rewards_line())
        return [(f"KTO {name}", figure) for name, figure in (*shown, *self.alarm_lines())]
