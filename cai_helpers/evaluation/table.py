"""Responses as columns of numbers, one row a prompt: all that the verdict looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from cai_helpers.evaluation.figures import (
    MAIN,
    OF_CHANCE,
    OVER_BASE,
    STAGE2,
    STAGE3,
    Answer,
    Response,
    wins_of,
)


@dataclass(frozen=True)
class Table:
    """Arrays of shape (prompts,). Wins are 1, ½ or 0; before is Stage 2, after is Stage 3.

    A column that was not measured is None; single missing values are NaN.
    """

    category: np.ndarray  # text: "harmless" (harmful requests), "helpful" (benign ones), or another
    wins: np.ndarray  # Stage 3 over Stage 2
    refuses_before: np.ndarray  # True or False, full refusals
    refuses_after: np.ndarray
    characters_before: np.ndarray
    characters_after: np.ndarray
    deltas: np.ndarray | None = None  # score of Stage 3 less that of Stage 2; None: only who wins is known
    conversation: np.ndarray | None = None  # a number for each conversation; None: each prompt is one
    wins_over_base: np.ndarray | None = (
        None  # Stage 3 over the base model; None: Stage 2 is the base, or it was not asked
    )
    wins_by_chance: np.ndarray | None = None  # Stage 2 under another seed over Stage 2; None: greedy, or not asked
    degenerate_before: np.ndarray | None = None
    degenerate_after: np.ndarray | None = None
    cut_before: np.ndarray | None = None
    cut_after: np.ndarray | None = None
    logp_before: np.ndarray | None = None  # the base model's log-probability of a token, nats
    logp_after: np.ndarray | None = None
    fit_before: np.ndarray | None = None  # topic fit; NaN for a refusal
    fit_after: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.wins)

    def of(self, category: str) -> Table:
        return self.where(self.category == category)

    def where(self, chosen: np.ndarray) -> Table:
        """The rows that are chosen by an array of True and False."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: column[chosen] for name, column in columns.items() if column is not None})


def table_of(responses: Sequence[Response]) -> Table:
    """The table of a non-empty group of responses."""

    def each(policy: str, value: Callable[[Answer], float | bool | None]) -> np.ndarray:
        found = [value(response.answers[policy]) for response in responses]
        return np.array([np.nan if one is None else one for one in found])

    def wins(pairing: str) -> np.ndarray | None:
        if not all(pairing in response.deltas for response in responses):
            return None
        return np.array([wins_of(response.deltas[pairing]) for response in responses])

    names = [response.conversation or response.id for response in responses]
    main = wins(MAIN)
    assert main is not None, "every response holds Stage 3 against Stage 2"
    return Table(
        category=np.array([response.category for response in responses]),
        wins=main,
        refuses_before=each(STAGE2, lambda answer: answer.refuses).astype(bool),
        refuses_after=each(STAGE3, lambda answer: answer.refuses).astype(bool),
        characters_before=each(STAGE2, lambda answer: len(answer.text)),
        characters_after=each(STAGE3, lambda answer: len(answer.text)),
        deltas=np.array([response.delta for response in responses]),
        conversation=np.unique(names, return_inverse=True)[1],
        wins_over_base=wins(OVER_BASE),
        wins_by_chance=wins(OF_CHANCE),
        degenerate_before=each(STAGE2, lambda answer: answer.degenerate),
        degenerate_after=each(STAGE3, lambda answer: answer.degenerate),
        cut_before=each(STAGE2, lambda answer: answer.finish == "length"),
        cut_after=each(STAGE3, lambda answer: answer.finish == "length"),
        logp_before=each(STAGE2, lambda answer: answer.logp),
        logp_after=each(STAGE3, lambda answer: answer.logp),
        fit_before=each(STAGE2, lambda answer: None if answer.refuses else answer.fit),
        fit_after=each(STAGE3, lambda answer: None if answer.refuses else answer.fit),
    )
