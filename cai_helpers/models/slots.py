"""Rows that wait for slots, and as many slots as rows and memory ask for: more, fewer, or longer ones on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import torch

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import Machine, usable_memory
from cai_helpers.models.batches import is_out_of_memory, release_memory
from cai_helpers.models.engine import PREFILL_TOKENS, SlotEngine
from cai_helpers.models.row import Row
from cai_helpers.models.slot_cache import head_size

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

MOST_SLOTS = 128  # beyond it the arithmetic of a step grows as fast as the rows
_GROWTH = 1.5  # of a slot's capacity, where longer rows come
_SHARE = 0.8  # of the free memory that slots may fill; the rest is the allocator's and the CUDA context's

Ended = list[tuple[Row, list[int]]]


class Slots:
    """Rows of one model, under way in a SlotEngine that grows where it is too small for what waits.

    Rows under way go on; those for which no slot is left, as after running out of memory, start again and end the same.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        stop_tokens: Collection[int],
        slots: Callable[[int, int], int],
        on_halved: Callable[[int], None] = lambda slots: None,
        capacity: int = 0,
    ) -> None:
        """slots: how many of so many tokens fit into the memory that is free, so many bytes included that slots hold already.

        capacity: tokens that rows will come to, as far as known.
        """
        self.waiting: deque[Row] = deque()
        self.capacity = capacity  # tokens of a slot
        self.most = 0  # slots that the present length of the rows allows; 0: nothing has run yet
        self._model = model
        self._stop_tokens = stop_tokens
        self._slots = slots
        self._on_halved = on_halved
        self._engine: SlotEngine | None = None
        self._size = 0  # slots of the engine
        self._halved: int | None = None  # slots that are known to fit, once memory has run out

    @property
    def unfinished(self) -> int:
        return len(self.waiting) + len(self._under_way())

    def step(self) -> Ended:
        """Some tokens for every row under way; (row, its new tokens) of those that have ended.

        Running out of memory halves the slots.

        Raises:
            CaiError: a single row does not fit, or the model's scores are not finite.
        """
        ended: Ended | None = None
        try:
            ended = self._fitting_engine().step(self.waiting)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if ended is None:  # outside `except`: there the traceback would still hold the tensors
            self._halve()
        return ended or []

    def close(self) -> None:
        """Rows that are unfinished are dropped."""
        self._engine = None
        self.waiting.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the graphs' memory, for whatever comes next

    def _under_way(self) -> list[Row]:
        return [] if self._engine is None else self._engine.under_way()

    def _fitting_engine(self) -> SlotEngine:
        engine, longest = self._engine, max((row.length for row in self.waiting), default=0)
        if longest > self.capacity:  # critiques are longer than drafts: in steps, since graphs are captured anew
            self.capacity = max(longest, int(_GROWTH * self.capacity))
        if engine is not None and engine.capacity >= self.capacity:
            more = engine.slots < self.most and len(self.waiting) > engine.slots
            if not more:
                return engine
        if engine is None:
            release_memory()
        most = self._slots(self.capacity, 0 if engine is None else engine.stored)
        self.most = most if self._halved is None else min(most, self._halved)
        self._size = min(self.most, max(self.unfinished, 0 if engine is None else engine.slots))
        if engine is None:
            engine = self._engine = SlotEngine(self._model, self._stop_tokens, self._size, self.capacity)
        else:
            self.waiting.extendleft(reversed(engine.resize(self._size, max(self.capacity, engine.capacity))))
        return engine

    def _put_back(self) -> None:
        self.waiting.extendleft(reversed(self._under_way()))

    def _halve(self) -> None:
        if self._size == 1:
            raise CaiError(
                "One single row does not fit into the accelerator's memory.",
                "Lower prompts.max_tokens, restart the runtime so that nothing else holds memory, or take a larger card.",
            )
        self._halved = self.most = self._size // 2
        self._on_halved(self._halved)
        self._put_back()
        self._engine = None
        release_memory()


def generate_rows(
    model: PreTrainedModel | PeftModel,
    rows: deque[Row],
    stop_tokens: Collection[int],
    slots: int,
    on_halved: Callable[[int], None] = lambda slots: None,
) -> Iterator[tuple[Row, list[int]]]:
    """Yield (row, its new tokens) as rows end, taking them from `rows`, which may grow meanwhile."""
    under_way = Slots(model, stop_tokens, lambda capacity, held: slots, on_halved)
    under_way.waiting = rows
    try:
        while under_way.unfinished:
            yield from under_way.step()
    finally:
        under_way.close()


def slots_that_fit(config: PreTrainedConfig, capacity: int, dtype: torch.dtype, machine: Machine, held: int = 0) -> int:
    """Slots of `capacity` tokens in the memory that is free, once the model is loaded; at least 1, at most MOST_SLOTS.

    held: bytes that slots hold already.

    A slot holds keys and values, 2 · layers · heads · head size · capacity values, and its share of the scores: a row of
    the vocabulary in the model's precision and, at most four times, in fp32. A prefill comes on top.
    """
    free = usable_memory(machine) - (torch.cuda.memory_allocated() - held if machine.device == "cuda" else 0)
    stored = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * capacity * dtype.itemsize
    scores = config.vocab_size * (dtype.itemsize + 4 * 4)
    prefill = PREFILL_TOKENS * (8 * config.hidden_size + 4 * config.intermediate_size) * dtype.itemsize
    return max(1, min(MOST_SLOTS, int((_SHARE * free - prefill) / (stored + scores))))
