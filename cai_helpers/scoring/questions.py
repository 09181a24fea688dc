"""What a scorer is asked, and the seam behind which it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from cai_helpers.schema import Messages


class Question(NamedTuple):
    """What a scorer is asked at once: one response to be rated, or two to be weighed against each other."""

    messages: Messages
    responses: tuple[str, ...]


class Scorer(Protocol):
    """The seam: a reward model, an ensemble of them, or a language model's feedback."""

    def iterate(self, questions: list[Question]) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield (index, one score a response) as answers come in."""

    def notes(self) -> list[tuple[str, str]]: ...
