"""Generating in slots, played through: how long it takes, and what it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cai_helpers.machine.hardware import Machine, torch_dtype
from cai_helpers.planning.card import Card, Place
from cai_helpers.planning.shape import Shape

_STEPS, _PREFILL_TOKENS, _WAITS_FOR, _MULTIPLE, _REACH = 8, 1024, 8, 32, 128  # as models/engine.py
_DRAW = 72  # bytes that move for each score of a row's draw: its passes over the vocabulary
_DRAW_LAYERS = 3  # what the draw and the bookkeeping of a step start, in layers' worth of kernels
_CACHE = 3  # times as long as copying it that attention takes to read the cache, few rows of a query at a time
_LOOK_LAYERS = 2  # what the host does between two steps every eighth time, in layers' worth
_PASSES = 6  # times that a layer's activations are read or written when a prompt is read


class Length(NamedTuple):
    """One text to be generated, in tokens."""

    prompt: int
    new: int


Chain = Sequence[Length]  # texts of which each waits for the one before, as a critique for its draft


class GenerationMemory(NamedTuple):
    """Bytes."""

    weights: int
    slots: int  # keys, values and scores of all of them
    prefill: int

    @property
    def total(self) -> int:
        return self.weights + self.slots + self.prefill


def slots_of(shape: Shape, card: Place, capacity: int) -> int:
    """How many texts of `capacity` tokens are under way at once; 0: the weights alone do not fit."""
    from cai_helpers.models.slots import slots_that_fit  # brings torch: late

    free = card.memory - shape.parameters * card.size
    if free <= 0:
        return 0
    return slots_that_fit(shape.config, capacity, torch_dtype(card.dtype), Machine("cpu", card.name, None, free, 1))


def generation_memory(shape: Shape, card: Place, slots: int, capacity: int) -> GenerationMemory:
    """The peak: weights, and for each slot (and a spare) keys, values, and a row of scores, four times in fp32."""
    size = card.size
    capacity = _rounded(capacity)
    return GenerationMemory(
        weights=shape.parameters * size,
        slots=(slots + 1) * shape.cached * capacity * size + slots * shape.vocabulary * (size + 4 * 4),
        prefill=_PREFILL_TOKENS * (8 * shape.hidden + 4 * shape.mlp) * size,
    )


def generation_seconds(
    shape: Shape, card: Card, chains: Sequence[Chain], slots: int, capacity: int, batch: int = 32
) -> float:
    """`chains`, those with the longest prompts first, through the slots; or in batches, where the model has no slots.

    A step moves all weights, or multiplies them with a row for each slot, whichever takes longer; reads every slot as far as
    the longest row reaches; and draws. Prompts are read by the mini-batch, padded to a multiple of 32. Every eighth step the
    host looks which rows have ended, and what follows them waits for a slot.
    """
    if not chains:
        return 0.0
    if not shape.in_slots:
        return _in_batches(shape, card, [row for chain in chains for row in chain], batch)
    schedule = _Schedule(chains, min(slots, sum(map(len, chains))))
    capacity = _rounded(capacity)
    looks, shapes, reaches, seconds = 0, set(), set(), 0.0
    while schedule.unfinished:
        for width, rows in schedule.admit():
            shapes.add((width, rows))
            seconds += _read_seconds(shape, card, rows, width)
        steps, longest = schedule.go_on()
        reaches.add(reach := min(capacity, -(-longest // _REACH) * _REACH))
        seconds += steps * _step_seconds(shape, card, schedule.slots, reach)
        looks += 1
    seconds += looks * _LOOK_LAYERS * card.host_forward
    captures = 2 * (len(shapes) + len(reaches))  # each graph is run once by the host, and captured once
    return seconds + captures * shape.layers * card.host_forward


class _Schedule:
    """Which rows are in the slots, as models/slots.py and models/engine.py have it."""

    def __init__(self, chains: Sequence[Chain], slots: int) -> None:
        self.slots = slots
        self._to_come = deque(sorted(chains, key=lambda chain: -chain[0].prompt))
        self._waiting: list[Chain] = []  # what is left of each, its first row next
        self._chains: list[Chain] = [()] * slots  # under way: their first row
        self._left = [0] * slots  # tokens that the row still comes to

    @property
    def unfinished(self) -> bool:
        return bool(self._to_come or self._waiting or any(self._left))

    def admit(self) -> Iterator[tuple[int, int]]:
        """(width in tokens, rows) of each mini-batch that is read into empty slots."""
        empty = [slot for slot, left in enumerate(self._left) if not left]
        room = self.slots + self.slots // 2 - (self.slots - len(empty)) - len(self._waiting)
        for _ in range(min(max(0, room), len(self._to_come))):
            self._waiting.append(self._to_come.popleft())
        while self._waiting and empty:
            width = max(_MULTIPLE, _rounded(self._waiting[0][0].prompt))
            enough = max(1, min(_PREFILL_TOKENS // width, self.slots // _WAITS_FOR))
            if len(empty) < min(enough, len(self._waiting)):
                return
            fitting = [place for place, chain in enumerate(self._waiting) if chain[0].prompt <= width]
            fitting = [0, *sorted(fitting[1:], key=lambda place: -self._waiting[place][0].prompt)][:enough]
            for place in fitting:
                slot, chain = empty.pop(), self._waiting[place]
                self._chains[slot], self._left[slot] = chain, chain[0].new
            taken = set(fitting)
            self._waiting = [chain for place, chain in enumerate(self._waiting) if place not in taken]
            yield width, enough

    def go_on(self) -> tuple[int, int]:
        """(steps until the next look, tokens of the longest row by then)."""
        steps = min(_STEPS, max(self._left))
        longest = _STEPS + max(
            chain[0].prompt + chain[0].new - left for chain, left in zip(self._chains, self._left, strict=True) if left
        )
        for slot, left in enumerate(self._left):
            if left and left <= _STEPS and self._chains[slot][1:]:
                self._waiting.append(self._chains[slot][1:])
            self._left[slot] = max(0, left - _STEPS)
        return steps, longest


def _in_batches(shape: Shape, card: Card, rows: Sequence[Length], batch: int) -> float:
    """Each batch until its longest text has ended, every kernel started by the host."""
    order = sorted(rows, key=lambda row: -row.prompt)
    seconds = 0.0
    for start in range(0, len(order), batch):
        together = order[start : start + batch]
        width, steps = together[0].prompt, max(row.new for row in together)
        step = _step_seconds(shape, card, len(together), width + steps)
        host = (shape.layers + _DRAW_LAYERS) * card.host_forward
        seconds += _read_seconds(shape, card, len(together), width) + steps * max(step, host)
    return seconds


def _step_seconds(shape: Shape, card: Card, slots: int, reach: int) -> float:
    size = card.size
    weights = (shape.linear + shape.head) * size
    return (
        max(weights / card.thin, 2 * (shape.linear + shape.head) * slots / card.flops)
        + _CACHE * slots * reach * shape.cached * size / card.bandwidth
        + slots * shape.vocabulary * _DRAW / card.bandwidth
        + (shape.layers + _DRAW_LAYERS) * card.in_graph
    )


def _read_seconds(shape: Shape, card: Card, rows: int, width: int) -> float:
    size, tokens = card.size, rows * width
    products = 2 * shape.linear * tokens + 2 * shape.layers * shape.attention * tokens * width
    activations = _PASSES * tokens * shape.layers * (4 * shape.hidden + 2 * shape.mlp) * size
    weights = shape.linear * size
    return (
        max(products / card.flops, weights / card.bandwidth)
        + activations / card.bandwidth
        + shape.layers * card.in_graph
    )


def _rounded(tokens: int) -> int:
    return -(-max(tokens, 2) // _MULTIPLE) * _MULTIPLE
