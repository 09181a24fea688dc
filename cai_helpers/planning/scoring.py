"""Scoring texts with a sequence classifier: how long it takes, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cai_helpers.planning.card import Card, Place
from cai_helpers.planning.shape import Shape

# DeBERTa's attention is written out: scores by content and by position, gathered, added, masked, normalised. So many times
# the matrix of tokens by tokens of each head is read or written, and so many layers' worth of kernels are started.
_WRITTEN_OUT, _WRITTEN_OUT_LAYERS, _HELD = 24, 1.5, 7
_PASSES = 6  # times that a layer's other activations are read or written


class ScoringMemory(NamedTuple):
    """Bytes."""

    weights: int  # whether they may be halved is tried on a copy, which begins as large as they are
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def scoring_memory(shape: Shape, card: Place, batch: int, longest: int) -> ScoringMemory:
    """The larger of two moments: when fp16 is held against fp32, and when a batch is scored in it."""
    size = card.size
    tokens = batch * longest
    matrices = _HELD * tokens * longest * _heads(shape) if _is_written_out(shape) else 0
    activations = (matrices + tokens * (8 * shape.hidden + 2 * shape.mlp)) * size
    both = shape.parameters * 4 * (1 if size == 4 else 2) + shape.vocabulary * shape.hidden * size
    alone = shape.parameters * size + activations
    return ScoringMemory(weights=both, activations=max(0, alone - both))


def scoring_seconds(shape: Shape, card: Card, texts: Sequence[int], batch: int) -> float:
    """`texts` by their tokens, the longest first, in batches padded to their longest."""
    order = sorted(texts, reverse=True)
    return sum(
        _batch_seconds(shape, card, len(order[start : start + batch]), order[start])
        for start in range(0, len(order), batch)
    )


def _batch_seconds(shape: Shape, card: Card, rows: int, width: int) -> float:
    size, tokens = card.size, rows * width
    written_out = _is_written_out(shape)
    products = 2 * shape.linear * tokens + 4 * shape.layers * shape.attention * tokens * width * (
        3 if written_out else 1
    )
    moved = _PASSES * tokens * shape.layers * (4 * shape.hidden + 2 * shape.mlp) * size
    if written_out:
        moved += _WRITTEN_OUT * shape.layers * _heads(shape) * tokens * width * size
    device = products / card.flops + moved / card.bandwidth
    return max(device, shape.layers * card.host_forward * (_WRITTEN_OUT_LAYERS if written_out else 1))


def _is_written_out(shape: Shape) -> bool:
    return shape.config.model_type.startswith("deberta")


def _heads(shape: Shape) -> int:
    return shape.config.num_attention_heads
