"""What the device knows of the row in each slot, beside its keys and values: its tokens, where it stands, how it draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cai_helpers.models.row import Row


class SlotState:
    """One entry a slot in every tensor. They are changed in place, since captured graphs know their addresses."""

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        self.slots, self.capacity, self._device = slots, capacity, device
        self.tokens = torch.zeros(slots + 1, capacity, dtype=torch.long, device=device)  # prompt and answer; a spare
        self.position = torch.zeros(slots, dtype=torch.long, device=device)  # of the token that is read next
        self.start = torch.ones_like(self.position)  # length of the prompt
        self.end = torch.ones_like(self.position)  # length that it may come to
        self.row_key = torch.zeros_like(self.position)
        self.temperature = torch.zeros(slots, device=device)
        self.top_p = torch.ones(slots, device=device)
        self.running = torch.zeros(slots, dtype=torch.bool, device=device)
        self.short = torch.zeros_like(self.running)  # waits for a draw from the whole vocabulary
        self.broken = torch.zeros_like(self.running)  # its scores were not finite

    @torch.no_grad()
    def resized(self, slots: int, capacity: int, kept: Sequence[int]) -> SlotState:
        """A state whose first slots are the `kept` ones of this."""
        new = SlotState(slots, capacity, self._device)
        index = torch.tensor(kept, dtype=torch.long, device=self._device)
        new.tokens[: len(kept), : self.capacity] = self.tokens[index]
        for name, state in vars(new).items():
            if isinstance(state, torch.Tensor) and name != "tokens":
                state[: len(kept)] = getattr(self, name)[index]
        return new

    @torch.no_grad()
    def place(self, slots: Sequence[int], rows: Sequence[Row]) -> None:
        texts = torch.zeros(len(rows), self.capacity, dtype=torch.long)
        for text, row in zip(texts, rows, strict=True):
            text[: len(row.prompt)] = torch.tensor(row.prompt)
        lengths = torch.tensor([len(row.prompt) for row in rows])
        new = {
            self.tokens: texts,
            self.position: lengths - 1,
            self.start: lengths,
            self.end: torch.tensor([row.length for row in rows]),
            self.row_key: torch.tensor([row.key for row in rows]),
            self.temperature: torch.tensor([row.sampling.temperature for row in rows]),
            self.top_p: torch.tensor([row.sampling.top_p for row in rows]),
            self.running: torch.ones(len(rows), dtype=torch.bool),
        }
        index = torch.tensor(slots, device=self._device)
        for state, values in new.items():
            state[index] = values.to(self._device)

    def draw_arguments(self) -> tuple[torch.Tensor, ...]:
        """(row key, tokens drawn before, temperature, top p), each (slots, 1), as sampling.draw takes them."""
        drawn_before = self.position + 1 - self.start
        temperature = self.temperature.masked_fill(self.temperature == 0, 1.0)  # greedy rows do not use what is drawn
        return tuple(part.unsqueeze(1) for part in (self.row_key, drawn_before, temperature, self.top_p))

    def advance(
        self, scores: torch.Tensor, drawn: torch.Tensor, short: torch.Tensor, finite: torch.Tensor, stops: torch.Tensor
    ) -> None:
        """Keep the drawn tokens (slots,) and move on. A row that has ended or is short stays where it is."""
        greedy = self.temperature == 0
        drawn = torch.where(greedy, scores.argmax(-1), drawn)
        self.broken |= self.running & ~finite
        self.short |= self.running & short & ~greedy
        moves = self.running & ~self.short
        after = (self.position + 1).unsqueeze(1)
        tokens = self.tokens[: self.slots]
        tokens.scatter_(1, after, torch.where(moves.unsqueeze(1), drawn.unsqueeze(1), tokens.gather(1, after)))
        ended = (drawn.unsqueeze(1) == stops).any(1) | (self.position + 2 >= self.end)
        self.running.copy_(moves & ~ended)
        self.position += self.running
