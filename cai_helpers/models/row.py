"""One text that a language model is to make, as the slots know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cai_helpers.models.sampling import Sampling


@dataclass(frozen=True, eq=False)  # told apart by identity: one object for all rows that share it
class Opening:
    """Tokens that several prompts begin with: they are read once for all of them."""

    tokens: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


NO_OPENING = Opening()


class Row(NamedTuple):
    """One text to be made."""

    number: int  # the caller's name for it
    prompt: list[int]  # token ids
    key: int  # of its randomness: sampling.row_key
    sampling: Sampling
    opening: Opening = NO_OPENING

    @property
    def length(self) -> int:
        """Tokens it may come to."""
        return len(self.prompt) + self.sampling.max_new_tokens

    @property
    def unread(self) -> int:
        """Tokens of the prompt that a prefill has to read; the last is read by the first step."""
        return len(self.prompt) - len(self.opening) - 1
