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
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import Machine, usable_memory
from cai_helpers.models.batches import is_out_of_memory, release_memory
from cai_helpers.models.graphs import Graphs
from cai_helpers.models.sampling import Sampling, draw, draw_from_all, not_finite
from cai_helpers.models.slot_cache import SlotCache, attending_to_slots, head_size, visible, without_adapter_shell

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

MOST_SLOTS = 128  # beyond it the arithmetic of a step grows as fast as the rows
_STEPS = 8  # between two looks: looking waits for the device, and an ended row idles for half as many
_PREFILL_TOKENS = 1024  # read at once, padding included: enough to keep a GPU busy, little enough to need no plan
_WAITS_FOR = 8  # prompts are read as soon as one slot in so many is empty
_MULTIPLE = 32  # prompts are padded to one of it, so that few graphs serve all lengths
_SHARE = 0.8  # of the free memory that slots may fill; the rest is the allocator's and the CUDA context's


class Row(NamedTuple):
    """One text to be made."""

    number: int  # the caller's name for it
    prompt: list[int]  # token ids
    key: int  # of its randomness: sampling.row_key
    sampling: Sampling

    @property
    def length(self) -> int:
        """Tokens it may come to."""
        return len(self.prompt) + self.sampling.max_new_tokens


def generate_rows(
    model: PreTrainedModel | PeftModel,
    rows: deque[Row],
    stop_tokens: Collection[int],
    slots: int,
    on_halved: Callable[[int], None] = lambda slots: None,
) -> Iterator[tuple[Row, list[int]]]:
    """Yield (row, its new tokens, with the stop token where it came to one) as rows end, taking them from `rows`.

    `rows` may grow while this runs: what the caller appends between two results joins those that are under way.
    Running out of memory halves the slots; rows under way then start again and end the same.

    Raises:
        CaiError: a single row does not fit, or the model's scores are not finite.
    """
    while rows:
        engine, full = None, False
        size = min(slots, len(rows))
        try:
            engine = SlotEngine(model, stop_tokens, size, max(row.length for row in rows))
            yield from engine.run(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            full = True
        if full:  # outside `except`: there the traceback would still hold the tensors
            if size == 1:
                raise CaiError(
                    "One single row does not fit into the accelerator's memory.",
                    "Lower prompts.max_tokens, restart the runtime so that nothing else holds memory, or take a larger card.",
                )
            slots = size // 2
            on_halved(slots)
            if engine is not None:
                rows.extendleft(reversed(engine.under_way()))
            engine = None
            release_memory()
        engine = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the graphs' memory, for whatever comes next


def slots_that_fit(config: PreTrainedConfig, capacity: int, dtype: torch.dtype, machine: Machine) -> int:
    """Slots of `capacity` tokens in the memory that is free, once the model is loaded; at least 1, at most MOST_SLOTS.

    A slot holds keys and values, 2 · layers · heads · head size · capacity values, and its share of the scores: a row of
    the vocabulary in the model's precision and, at most four times, in fp32. A prefill comes on top.
    """
    free = usable_memory(machine) - (torch.cuda.memory_allocated() if machine.device == "cuda" else 0)
    stored = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * capacity * dtype.itemsize
    scores = config.vocab_size * (dtype.itemsize + 4 * 4)
    prefill = _PREFILL_TOKENS * (8 * config.hidden_size + 4 * config.intermediate_size) * dtype.itemsize
    return max(1, min(MOST_SLOTS, int((_SHARE * free - prefill) / (stored + scores))))


class SlotEngine:
    """`slots` rows under way at once, each of at most `capacity` tokens, on the device of `model`."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, stop_tokens: Collection[int], slots: int, capacity: int
    ) -> None:
        self._model = without_adapter_shell(model)
        self._slots = slots
        device, dtype = self._model.device, self._model.dtype
        self._capacity = -(-max(capacity, 2) // _MULTIPLE) * _MULTIPLE  # attention kernels want it even
        self._cache = SlotCache(self._model.config, slots, self._capacity, dtype, device)
        parameters = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5.24
        self._position = self._cache.place.position
        self._rows: list[Row | None] = [None] * slots
        self._left = [0] * slots  # tokens that the row may still come to, as of the last look
        self._stops = torch.tensor(sorted(stop_tokens), device=device)
        self._tokens = torch.zeros(slots + 1, self._capacity, dtype=torch.long, device=device)  # prompt and answer
        self._start = torch.ones(slots, dtype=torch.long, device=device)  # length of the prompt
        self._end = torch.ones_like(self._start)  # length that it may come to
        self._row_key = torch.zeros_like(self._start)
        self._temperature = torch.zeros(slots, device=device)
        self._top_p = torch.ones(slots, device=device)
        self._running = torch.zeros(slots, dtype=torch.bool, device=device)
        self._short = torch.zeros_like(self._running)  # waits for a draw from the whole vocabulary
        self._broken = torch.zeros_like(self._running)  # its scores were not finite
        self._graphs = Graphs(device)

    def run(self, rows: deque[Row]) -> Iterator[tuple[Row, list[int]]]:
        """As generate_rows. Ends when all slots are empty and `rows` is, or begins with one that is too long for them."""
        exact_steps = 0
        while self._admit(rows):
            steps = min(_STEPS, max(self._left))
            for step in range(steps):
                if step < exact_steps:
                    self._step_exactly()
                else:
                    self._graphs.call("decode", self._step)
            ended, short = self._look()
            # where most rows want the whole vocabulary, as at a high temperature, every step draws from it
            exact_steps = 0 if not short else 1 if short * 2 < len(self.under_way()) else _STEPS
            yield from ended

    def under_way(self) -> list[Row]:
        return [row for row in self._rows if row is not None]

    # ---- rows in

    def _admit(self, rows: deque[Row]) -> bool:
        """Read pending prompts into empty slots; whether any row is under way.

        Mini-batches wait until there are slots for a whole one: reading a few prompts takes as long as reading many.
        """
        while rows and rows[0].length <= self._capacity:
            empty = [slot for slot, row in enumerate(self._rows) if row is None]
            width = len(rows[0].prompt) - 1  # the last token is read by the first step
            if self._graphs.capture:  # one graph a shape
                width = -(-width // _MULTIPLE) * _MULTIPLE
            most = max(1, _PREFILL_TOKENS // max(width, 1))
            enough = max(1, min(most, self._slots // _WAITS_FOR))
            if len(empty) < min(enough, len(rows)):
                break
            most = min(enough if self._graphs.capture else most, len(empty))
            taken: list[Row] = []
            while len(taken) < most and rows and len(rows[0].prompt) <= width + 1 and rows[0].length <= self._capacity:
                taken.append(rows.popleft())
            slots = empty[: len(taken)]
            for slot, row in zip(slots, taken, strict=True):
                self._rows[slot], self._left[slot] = row, row.sampling.max_new_tokens
            self._place(slots, taken)
            if width:
                self._prefill(slots, width, enough if self._graphs.capture else len(slots))
        return bool(self.under_way())

    @torch.no_grad()
    def _place(self, slots: list[int], rows: list[Row]) -> None:
        index = torch.tensor(slots)
        texts = torch.zeros(len(rows), self._capacity, dtype=torch.long)
        for text, row in zip(texts, rows, strict=True):
            text[: len(row.prompt)] = torch.tensor(row.prompt)
        lengths = torch.tensor([len(row.prompt) for row in rows])
        new = {
            self._tokens: texts,
            self._position: lengths - 1,
            self._start: lengths,
            self._end: torch.tensor([row.length for row in rows]),
            self._row_key: torch.tensor([row.key for row in rows]),
            self._temperature: torch.tensor([row.sampling.temperature for row in rows]),
            self._top_p: torch.tensor([row.sampling.top_p for row in rows]),
            self._running: torch.ones(len(rows), dtype=torch.bool),
        }
        index = index.to(self._tokens.device)
        for state, values in new.items():
            state[index] = values.to(state.device)

    def _prefill(self, slots: list[int], width: int, size: int) -> None:
        """Keys and values of the prompts; what stands behind the shorter ones is overwritten before it is seen."""
        static = self._graphs.input((width, size), slots + [self._slots] * (size - len(slots)))

        @torch.no_grad()
        def read() -> None:
            with self._cache.prefilling(static), attending_to_slots(self._model):
                self._model(
                    input_ids=self._tokens.index_select(0, static)[:, :width],
                    position_ids=torch.arange(width, device=static.device).expand(size, width),
                    use_cache=True,
                    logits_to_keep=1,  # the scores are not needed
                    **{self._cache_name: self._cache},
                )

        self._graphs.call((width, size), read)

    # ---- a step

    @torch.no_grad()
    def _step(self) -> None:
        scores = self._scores()
        drawn = draw(scores, *self._draw_arguments())
        self._advance(scores, drawn.tokens, drawn.short, drawn.finite)

    @torch.no_grad()
    def _step_exactly(self) -> None:
        """A step in which no row stays short."""
        self._running |= self._short
        self._short.zero_()
        scores, arguments = self._scores(), self._draw_arguments()
        drawn = draw(scores, *arguments)
        some = drawn.short & self._running & drawn.finite
        if some.any():
            drawn.tokens[some] = draw_from_all(scores[some], *(part[some] for part in arguments))
        self._advance(scores, drawn.tokens, torch.zeros_like(some), drawn.finite)

    def _scores(self) -> torch.Tensor:
        """(slots, vocabulary), of the token that follows the one at each slot's position."""
        position = self._position.unsqueeze(1)
        with attending_to_slots(self._model):
            output = self._model(
                input_ids=self._tokens[: self._slots].gather(1, position),
                attention_mask=visible(self._position, self._capacity, self._model.dtype),
                position_ids=position,
                use_cache=True,
                **{self._cache_name: self._cache},
            )
        return output.logits[:, -1]

    def _draw_arguments(self) -> tuple[torch.Tensor, ...]:
        drawn_before = self._position + 1 - self._start
        temperature = self._temperature.masked_fill(self._temperature == 0, 1.0)  # greedy rows do not use what is drawn
        return tuple(part.unsqueeze(1) for part in (self._row_key, drawn_before, temperature, self._top_p))

    def _advance(self, scores: torch.Tensor, drawn: torch.Tensor, short: torch.Tensor, finite: torch.Tensor) -> None:
        """Keep the drawn tokens and move on, in place. A row that has ended or is short stays where it is."""
        greedy = self._temperature == 0
        drawn = torch.where(greedy, scores.argmax(-1), drawn)
        self._broken |= self._running & ~finite
        self._short |= self._running & short & ~greedy
        moves = self._running & ~self._short
        after = (self._position + 1).unsqueeze(1)
        tokens = self._tokens[: self._slots]
        tokens.scatter_(1, after, torch.where(moves.unsqueeze(1), drawn.unsqueeze(1), tokens.gather(1, after)))
        ended = (drawn.unsqueeze(1) == self._stops).any(1) | (self._position + 2 >= self._end)
        self._running.copy_(moves & ~ended)
        self._position += self._running

    # ---- rows out

    @torch.no_grad()
    def _look(self) -> tuple[list[tuple[Row, list[int]]], int]:
        """(rows that have ended with their tokens, rows that are short). The only place where the host waits."""
        state = torch.stack([self._running, self._short, self._broken, self._position]).tolist()
        running, short, broken, position = state
        if any(broken):
            raise not_finite(self._model)
        done = [
            (slot, row)
            for slot, row in enumerate(self._rows)
            if row is not None and not running[slot] and not short[slot]
        ]
        slots = torch.tensor([slot for slot, _ in done], dtype=torch.long, device=self._tokens.device)
        texts = self._tokens[slots].tolist() if done else []
        ended = []
        for (slot, row), text in zip(done, texts, strict=True):
            ended.append((row, text[len(row.prompt) : position[slot] + 2]))
            self._rows[slot] = None
        self._left = [0 if row is None else row.length - position[slot] - 1 for slot, row in enumerate(self._rows)]
        return ended, sum(short)
