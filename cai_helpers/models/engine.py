"""Generation in slots: a row that has ended is replaced at once. What a row says depends on itself alone.

Batched `generate` computes every row of a batch until the longest has ended, and waits for the host between two kernels.
Here a fixed number of slots decode together, one captured CUDA graph a step; every eighth step the host looks which rows
have ended, hands them out, and reads the next prompts into their slots.

Written here because nothing that fits exists: vLLM and SGLang pin a torch that replaces Colab's, TensorRT-LLM dropped the
T4, and llama.cpp is another numeric model and has no wheel. What does run there was measured in one run of
benchmarks/generation.py, gemma-2b's shape in fp16 on one H100 held to 14.5 GiB, useful tokens/s: `generate` in batches of
32 (the default before) 179, of 128 776; continuous batching 820, with graphs (greedy) 1,731; 128 slots 8,168.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from cai_helpers.models.graphs import Graphs
from cai_helpers.models.row import Opening, Row
from cai_helpers.models.sampling import draw, draw_from_all, not_finite
from cai_helpers.models.slot_cache import SlotCache, attending_to_slots, causal, visible, without_adapter_shell
from cai_helpers.models.slot_state import SlotState

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_STEPS = 8  # between two looks: looking waits for the device, and an ended row idles for half as many
PREFILL_TOKENS = 1024  # read at once, padding included: enough to keep a GPU busy, little enough to need no plan
_WAITS_FOR = 8  # prompts are read as soon as one slot in so many is empty
_MULTIPLE = 32  # prompts are padded to one of it, so that few graphs serve all lengths
_REACH = 128  # attention reads the slots to a multiple of it: each is a graph of its own


class SlotEngine:
    """`slots` rows under way at once, each of at most `capacity` tokens, on the device of `model`."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, stop_tokens: Collection[int], slots: int, capacity: int
    ) -> None:
        self._model = without_adapter_shell(model)
        self.slots, self.capacity = slots, _rounded(capacity, _MULTIPLE)
        device, dtype = self._model.device, self._model.dtype
        self._state = SlotState(slots, self.capacity, device)
        self._cache = SlotCache(self._model.config, self._state.position, self.capacity, dtype)
        parameters = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5.24
        self._rows: list[Row | None] = [None] * slots
        self._left = [0] * slots  # tokens that the row may still come to, as of the last look
        self._stops = torch.tensor(sorted(stop_tokens), device=device)
        self._openings: dict[Opening, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # keys and values, by layer
        self._exact_steps = 0  # of the next ones
        self._graphs = Graphs(device)

    @property
    def stored(self) -> int:
        """Bytes of keys and values."""
        return self._cache.stored

    def resize(self, slots: int, capacity: int) -> list[Row]:
        """So many slots, of so many tokens, no shorter than before. Rows go on where they are, with what is known of them.

        Returns those that have no slot any more. Raises RuntimeError where memory runs out; then the engine is of no use.
        """
        self._graphs.forget()  # they know the old addresses
        taken = [slot for slot, row in enumerate(self._rows) if row is not None]
        kept, dropped = taken[:slots], taken[slots:]
        without = [row for slot in dropped if (row := self._rows[slot]) is not None]
        capacity = _rounded(capacity, _MULTIPLE)
        state = self._state.resized(slots, capacity, kept)
        self._cache.resize(state.position, capacity, kept)
        self._state, self.slots, self.capacity = state, slots, capacity
        empty = slots - len(kept)
        self._rows = [*(self._rows[slot] for slot in kept), *[None] * empty]
        self._left = [*(self._left[slot] for slot in kept), *[0] * empty]
        return without

    def step(self, rows: deque[Row]) -> list[tuple[Row, list[int]]]:
        """Take rows into empty slots from `rows`, all of which fit, and go on by some tokens.

        Returns (row, its new tokens, with the stop token where it came to one) of those that have ended.

        Raises:
            CaiError: the model's scores are not finite.
        """
        if not self._admit(rows):
            return []
        self._cache.place.reach = reach = self._reach()
        for step in range(min(_STEPS, max(self._left))):
            if step < self._exact_steps:
                self._step_exactly()
            else:
                self._graphs.call(("decode", reach), self._step)
        ended, short = self._look()
        # where most rows want the whole vocabulary, as at a high temperature, every step draws from it
        self._exact_steps = 0 if not short else 1 if short * 2 < len(self.under_way()) else _STEPS
        return ended

    def under_way(self) -> list[Row]:
        return [row for row in self._rows if row is not None]

    def _reach(self) -> int:
        """Tokens of a slot that attention has to read until the next look: as many as the longest row has by then."""
        longest = max(row.length - left for row, left in zip(self._rows, self._left, strict=True) if row is not None)
        return min(self.capacity, _rounded(longest + _STEPS, _REACH))

    # ---- rows in

    def _admit(self, rows: deque[Row]) -> bool:
        """Read pending prompts into empty slots; whether any row is under way.

        Mini-batches wait until there are slots for a whole one: reading a few prompts takes as long as reading many.
        """
        while rows:
            empty = [slot for slot, row in enumerate(self._rows) if row is None]
            opening, width = rows[0].opening, self._width(rows[0])
            most = max(1, PREFILL_TOKENS // max(width, 1))
            enough = max(1, min(most, self.slots // _WAITS_FOR))
            if len(empty) < min(enough, len(rows)):
                break
            taken = self._mini_batch(rows, min(enough if self._graphs.capture else most, len(empty)))
            slots = empty[: len(taken)]
            for slot, row in zip(slots, taken, strict=True):
                self._rows[slot], self._left[slot] = row, row.sampling.max_new_tokens
            self._state.place(slots, taken)
            if opening:
                self._open(slots, opening)
            if width:
                self._prefill(slots, opening, width, enough if self._graphs.capture else len(slots))
        return bool(self.under_way())

    def _width(self, row: Row) -> int:
        """Tokens to read of its prompt, rounded up where each shape is a graph of its own."""
        if not self._graphs.capture:
            return row.unread
        return min(-(-row.unread // _MULTIPLE) * _MULTIPLE, self.capacity - len(row.opening))

    def _mini_batch(self, rows: deque[Row], most: int) -> list[Row]:
        """Take the first of `rows`, and with it those that open alike and are at most as wide: the widest of them."""
        first, width = rows[0], self._width(rows[0])
        fitting = [
            row for row in rows if row.opening is first.opening and self._width(row) <= width and row is not first
        ]
        taken = [first, *sorted(fitting, key=lambda row: -row.unread)[: most - 1]]
        chosen = set(map(id, taken))
        left = [row for row in rows if id(row) not in chosen]
        rows.clear()
        rows.extend(left)
        return taken

    @torch.no_grad()
    def _open(self, slots: list[int], opening: Opening) -> None:
        """Keys and values of the opening, into the slots of rows that begin with it; read where it was not yet."""
        if opening not in self._openings:
            tokens = torch.tensor([opening.tokens], device=self._model.device)
            with self._cache.noting() as noted:
                self._read(tokens, 0)
            self._openings[opening] = noted
        self._cache.copy_to(torch.tensor(slots, device=self._model.device), self._openings[opening])

    def _prefill(self, slots: list[int], opening: Opening, width: int, size: int) -> None:
        """Keys and values of the prompts; what stands behind the shorter ones is overwritten before it is seen."""
        name = (opening, width, size)
        static = self._graphs.input(name, slots + [self.slots] * (size - len(slots)))

        @torch.no_grad()
        def read() -> None:
            tokens = self._state.tokens.index_select(0, static)[:, len(opening) : len(opening) + width]
            with self._cache.prefilling(static, len(opening)):
                self._read(tokens, len(opening))

        self._graphs.call(name, read)

    def _read(self, tokens: torch.Tensor, start: int) -> None:
        """tokens: (rows, width), which stand behind `start` others. Their scores are not needed."""
        rows, width = tokens.shape
        with attending_to_slots(self._model):
            self._model(
                input_ids=tokens,
                attention_mask=causal(start, width, self._model.dtype, tokens.device) if start else None,
                position_ids=torch.arange(start, start + width, device=tokens.device).expand(rows, width),
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_name: self._cache},
            )

    # ---- a step

    @torch.no_grad()
    def _step(self) -> None:
        scores = self._scores()
        drawn = draw(scores, *self._state.draw_arguments())
        self._state.advance(scores, *drawn, self._stops)

    @torch.no_grad()
    def _step_exactly(self) -> None:
        """A step in which no row stays short."""
        state = self._state
        state.running |= state.short
        state.short.zero_()
        scores, arguments = self._scores(), state.draw_arguments()
        drawn = draw(scores, *arguments)
        some = drawn.short & state.running & drawn.finite
        if some.any():
            drawn.tokens[some] = draw_from_all(scores[some], *(part[some] for part in arguments))
        state.advance(scores, drawn.tokens, torch.zeros_like(some), drawn.finite, self._stops)

    def _scores(self) -> torch.Tensor:
        """(slots, vocabulary), of the token that follows the one at each slot's position."""
        state = self._state
        position = state.position.unsqueeze(1)
        with attending_to_slots(self._model):
            output = self._model(
                input_ids=state.tokens[: self.slots].gather(1, position),
                attention_mask=visible(state.position, self._cache.place.reach, self._model.dtype),
                position_ids=position,
                use_cache=True,
                **{self._cache_name: self._cache},
            )
        return output.logits[:, -1]

    # ---- rows out

    @torch.no_grad()
    def _look(self) -> tuple[list[tuple[Row, list[int]]], int]:
        """(rows that have ended with their tokens, rows that are short). The only place where the host waits."""
        state = self._state
        running, short, broken, position = torch.stack(
            [state.running, state.short, state.broken, state.position]
        ).tolist()
        if any(broken):
            raise not_finite(self._model)
        done = [
            (slot, row)
            for slot, row in enumerate(self._rows)
            if row is not None and not running[slot] and not short[slot]
        ]
        slots = torch.tensor([slot for slot, _ in done], dtype=torch.long, device=self._model.device)
        texts = state.tokens[slots].tolist() if done else []
        ended = []
        for (slot, row), text in zip(done, texts, strict=True):
            ended.append((row, text[len(row.prompt) : position[slot] + 2]))
            self._rows[slot] = None
        self._left = [0 if row is None else row.length - position[slot] - 1 for slot, row in enumerate(self._rows)]
        return ended, sum(short)


def _rounded(tokens: int, multiple: int) -> int:
    return -(-max(tokens, 2) // multiple) * multiple
