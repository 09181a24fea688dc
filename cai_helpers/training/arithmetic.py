"""How many floating-point operations DPO takes: what a slow card waits for. benchmarks/flops.py holds it to torch's count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MULTIPLE = 8  # widths of shared rows are multiples of it, as tensor cores want them


class PairLengths(NamedTuple):
    """Tokens of a pair; a side is prompt and answer."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def side(self) -> int:
        """Of the longer one."""
        return self.prompt + max(self.chosen, self.rejected)

    @property
    def answers(self) -> int:
        return self.chosen + self.rejected

    def width(self, shared: bool) -> int:
        """Tokens that the pair takes of a batch in which it is the longest: both sides, or the prompt once."""
        if shared:
            return -(-(self.prompt + self.answers) // MULTIPLE) * MULTIPLE
        return 2 * self.side


class Arithmetic(NamedTuple):
    """Of a causal language model with a LoRA on all linear layers; an addition and a multiplication are two operations.

    A matrix costs twice its parameters a token, and the same in the backward pass, where its own gradient is not wanted; a
    LoRA costs twice that there. Attention is counted by whole squares, as torch.utils.flop_counter does, though causal
    kernels leave out nearly half. The head is computed where an answer token is predicted, and once more in the backward
    pass, for which its logits are not kept.
    """

    matrices: int  # parameters of all linear layers but the head
    lora: int  # parameters
    attended: int  # layers · heads · head size
    head: int  # vocabulary · hidden size

    def step(self, pairs: Sequence[PairLengths], shared: bool, checkpointed: bool = False) -> int:
        """Forward and backward of pairs that are computed at once, padding included."""
        again = self._layers(pairs, shared) if checkpointed else 0
        tokens = len(pairs) * max(pair.width(shared) for pair in pairs)
        backward = 2 * tokens * (self.matrices + 2 * self.lora) + 2 * self._attention(pairs)
        return self.reference(pairs, shared) + again + backward + 4 * self._answers(pairs) * self.head

    def reference(self, pairs: Sequence[PairLengths], shared: bool) -> int:
        """The forward pass alone."""
        return self._layers(pairs, shared) + 2 * self._answers(pairs) * self.head

    def necessary(self, pair: PairLengths) -> int:
        """Forward and backward of both sides, each by itself and without padding, the logits kept: what an epoch cannot do
        without unless it shares the prompt."""
        total = 0
        for answer in (pair.chosen, pair.rejected):
            tokens = pair.prompt + answer
            total += 4 * tokens * self.matrices + 6 * tokens * self.lora + 12 * tokens**2 * self.attended
            total += 4 * answer * self.head
        return total

    def _layers(self, pairs: Sequence[PairLengths], shared: bool) -> int:
        tokens = len(pairs) * max(pair.width(shared) for pair in pairs)
        return 2 * tokens * (self.matrices + self.lora) + self._attention(pairs)

    def _attention(self, pairs: Sequence[PairLengths]) -> int:
        """Side by side, whether the prompt is shared or not."""
        return 2 * len(pairs) * 4 * max(pair.side for pair in pairs) ** 2 * self.attended

    @staticmethod
    def _answers(pairs: Sequence[PairLengths]) -> int:
        return sum(pair.answers for pair in pairs)


def arithmetic_of(model: PreTrainedModel, rank: int) -> Arithmetic:
    """model: without its LoRA, which has this rank; torch's meta device will do."""
    import torch

    config, head = model.config.get_text_config(), model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Arithmetic(
        matrices=sum(part.in_features * part.out_features for part in linear),
        lora=sum(rank * (part.in_features + part.out_features) for part in linear),
        attended=config.num_hidden_layers * config.num_attention_heads * size,
        head=config.vocab_size * config.hidden_size,
    )
