"""Training a LoRA on pairs: how long it takes. What it holds is training/memory_plan.py's to say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cai_helpers.planning.card import Card
from cai_helpers.planning.shape import Shape
from cai_helpers.training.memory_plan import Part, Room, parts_of

_PASSES = 24  # times that the activations of a layer are read or written in a pass, its LoRA included
_AGAIN = 1.4  # as much with gradient checkpointing, which computes the layer twice forward
_HEAD = 3  # products with the head for each token of an answer: forward, again, and backward
_WITH_LORA = 2.5  # times as many kernels as a layer without one starts
_TRAINED = 1.35  # times the host's part of a layer as the card is measured, for shared prompts and TRL's loss
_UPDATE_LAYERS = 0.25  # of an update of the weights, in layers' worth of the host


class Pair(NamedTuple):
    """Tokens."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def answers(self) -> int:
        return self.chosen + self.rejected

    def size(self, shared: bool) -> int:
        """Tokens that are computed of it: with its prompt once, or both sides as long as the longer one."""
        return self.prompt + self.answers if shared else 2 * (self.prompt + max(self.chosen, self.rejected))


def training_seconds(
    shape: Shape, card: Card, pairs: Sequence[Pair], batch: int, room: Room, epochs: float, accumulation: int = 1
) -> float:
    """DPO on `pairs`: the reference's log-probabilities once, then `epochs` of updates.

    Pairs of like length stand together, a batch is cut into the parts that fit into `room`, and where the model allows it
    both answers share their prompt. A linear layer costs 2 · weights a token forward and as much backward, since the base
    is frozen and only the gradient of its inputs is needed; with checkpointing forward once more.
    """
    reference = sum(
        _forward_seconds(shape, card, len(rows) * max(sizes), max(sizes), sum(row.answers for row in rows))
        for rows, sizes in _batches(shape, pairs, batch)
    )
    return reference + epochs * steps_seconds(shape, card, pairs, batch, room, accumulation)


def steps_seconds(
    shape: Shape, card: Card, pairs: Sequence[Pair], batch: int, room: Room, accumulation: int = 1
) -> float:
    """One epoch of it, its reference known."""
    seconds, count = 0.0, 0
    for rows, sizes in _batches(shape, pairs, batch):
        count += 1
        for part in parts_of(sizes, room):
            seconds += _part_seconds(shape, card, part, sum(rows[number].answers for number in part.rows))
    return seconds + math.ceil(count / accumulation) * _UPDATE_LAYERS * shape.layers * card.host_training


def _batches(shape: Shape, pairs: Sequence[Pair], batch: int) -> Iterator[tuple[list[Pair], list[int]]]:
    """(pairs of like length, their sizes)."""
    order = sorted(pairs, key=lambda pair: -pair.size(shape.shares_prompts))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        yield rows, [row.size(shape.shares_prompts) for row in rows]


def _forward_seconds(shape: Shape, card: Card, tokens: int, width: int, answers: int) -> float:
    return max(_device_seconds(shape, card, tokens, width, answers, 1), shape.layers * card.host_forward * _WITH_LORA)


def _part_seconds(shape: Shape, card: Card, part: Part, answers: int) -> float:
    """Forward and backward; whichever takes longer, device or host."""
    passes = 3 if part.checkpointed else 2
    host = shape.layers * card.host_training * _TRAINED * (_AGAIN if part.checkpointed else 1)
    return max(_device_seconds(shape, card, part.tokens, part.width, answers, passes), host)


def _device_seconds(shape: Shape, card: Card, tokens: int, width: int, answers: int, passes: int) -> float:
    """passes: 1, forward; 2, backward as well; 3, and forward twice."""
    products = 2 * passes * tokens * (shape.linear + shape.layers * shape.attention * width)
    products += 2 * (1 if passes == 1 else _HEAD) * answers * shape.head
    moved = _PASSES * passes * tokens * shape.layers * (4 * shape.hidden + 2 * shape.mlp) * card.size
    return products / card.flops + moved / card.bandwidth
