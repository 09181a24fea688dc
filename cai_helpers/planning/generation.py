"""Generating in slots, played through: how long it takes, and what it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from cai_helpers.machine.hardware import Machine, torch_dtype
from cai_helpers.planning.card import Card, Place
from cai_helpers.planning.shape import Shape

_STEPS, _PREFILL_TOKENS, _WAITS_FOR, _MULTIPLE = 8, 1024, 8, 32  # as models/engine.py
_DRAW = 72  # bytes that move for each score of a row's draw: its passes over the vocabulary
_DRAW_LAYERS = 3  # what the draw and the bookkeeping of a step start, in layers' worth of kernels
_CACHE = 3  # times as long as copying it that attention takes to read the cache, few rows of a query at a time
_LOOK_LAYERS = 2  # what the host does between two steps every eighth time, in layers' worth
_PASSES = 6  # times that a layer's activations are read or written when a prompt is read


class Length(NamedTuple):
    """One text to be generated, in tokens."""

    prompt: int
    new: int


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
    shape: Shape, card: Card, rows: Sequence[Length], slots: int, capacity: int, batch: int = 32
) -> float:
    """`rows`, the longest prompts first, through the slots; or in batches, where the model does not go into slots.

    A step moves all weights, or multiplies them with a row for each slot, whichever takes longer; reads every slot to its
    whole capacity; and draws. Prompts are read by the mini-batch, padded to a multiple of 32. Every eighth step the host
    looks which rows have ended.
    """
    if not rows:
        return 0.0
    if not shape.in_slots:
        return _in_batches(shape, card, rows, batch)
    waiting = deque(sorted(rows, key=lambda row: -row.prompt))
    slots, capacity = min(slots, len(rows)), _rounded(capacity)
    step = _step_seconds(shape, card, slots, capacity)
    looks, shapes, seconds = 0, set(), 0.0
    left = [0] * slots
    while waiting or any(left):
        empty = [slot for slot in range(slots) if not left[slot]]
        while waiting and empty:
            width = max(_MULTIPLE, _rounded(waiting[0].prompt))
            enough = max(1, min(_PREFILL_TOKENS // width, slots // _WAITS_FOR))
            if len(empty) < min(enough, len(waiting)):
                break
            for _ in range(min(enough, len(waiting))):
                left[empty.pop()] = waiting.popleft().new
            shapes.add((width, enough))
            seconds += _read_seconds(shape, card, enough, width)
        steps = min(_STEPS, max(left))
        seconds += steps * step
        looks += 1
        left = [max(0, tokens - _STEPS) for tokens in left]
    seconds += looks * _LOOK_LAYERS * card.host_forward
    captures = 2 * (len(shapes) + 1)  # each graph is run once by the host, and captured once
    return seconds + captures * shape.layers * card.host_forward


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


def _step_seconds(shape: Shape, card: Card, slots: int, capacity: int) -> float:
    size = card.size
    weights = (shape.linear + shape.head) * size
    return (
        max(weights / card.thin, 2 * (shape.linear + shape.head) * slots / card.flops)
        + _CACHE * slots * capacity * shape.cached * size / card.bandwidth
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
