"""Sampling whose result depends on the row and not on its neighbours.

Under one global random state a row's text changes with batch size, order and resumption. Here every choice is the
argmax of log-probabilities plus Gumbel noise (an exact draw from the softmax: Maddison et al. 2014,
arXiv 1411.0030), and the noise is a hash of (seed, row key, position, token id).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import LogitsProcessor

from cai_helpers.errors import CaiError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_CANDIDATES = 256  # tokens that can be drawn; the nucleus is taken inside them, so a 256k vocabulary costs no sort


class Sampling(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(0.7, ge=0)  # 0 is greedy
    top_p: float = Field(0.95, gt=0, le=1)
    seed: int = 0


class FiniteScores(LogitsProcessor):
    """Remembers whether the scores of every row and step were finite. No step waits for the device: `require` does, once.

    A masked token may be -inf; a row's largest score may not, and NaN is the largest where it occurs.
    """

    def __init__(self) -> None:
        self._finite: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        now = scores.amax(-1).isfinite().all()
        self._finite = now if self._finite is None else self._finite & now
        return scores

    def require(self, model: PreTrainedModel | PeftModel) -> None:
        """Raises:
        CaiError: a score was not finite; it says whether a weight of `model` or the precision is to blame.
        """
        if self._finite is None or bool(self._finite):
            return
        broken = next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), None)
        if broken is not None:
            raise CaiError(
                f"The model gives probabilities that are not finite: its weights are broken, {broken} holds NaN or infinity.",
                "Nothing of this batch was kept. Load the model or the adapter again; if you trained the adapter, train it "
                "anew with `cai train --fresh`.",
            )
        raise CaiError(
            "The model gives probabilities that are not finite, though its weights are: it overflows in "
            f"{str(next(model.parameters()).dtype).removeprefix('torch.')}.",
            "Nothing of this batch was kept. Some models, such as Gemma 3, do not run in fp16: set models.dtype=bf16 (cards "
            "with compute capability 8.0 or higher) or models.dtype=fp32 (twice the memory), or take another base model.",
        )


class GumbelNucleus(LogitsProcessor):
    """Turns scores so that their argmax is a draw by temperature and top-p. Used with `do_sample=False`.

    keys: one string a row, e.g. "<prompt id>/draft"; prompt_length: tokens before generation starts.
    """

    def __init__(self, sampling: Sampling, keys: list[str], prompt_length: int) -> None:
        self._sampling = sampling
        self._prompt_length = prompt_length
        self._row_keys = torch.tensor([_row_key(sampling.seed, key) for key in keys]).unsqueeze(1)  # (rows, 1)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        values, tokens = scores.float().topk(min(_CANDIDATES, scores.shape[-1]), dim=-1)
        log_probabilities = torch.log_softmax(values / self._sampling.temperature, dim=-1)
        before = log_probabilities.exp().cumsum(-1) - log_probabilities.exp()  # mass of the likelier tokens
        log_probabilities = log_probabilities.masked_fill(before >= self._sampling.top_p, -torch.inf)
        self._row_keys = self._row_keys.to(scores.device)
        position = input_ids.shape[1] - self._prompt_length
        choice = (log_probabilities + gumbel_noise(self._row_keys, position, tokens)).argmax(-1, keepdim=True)
        drawn = tokens.gather(1, choice)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def gumbel_noise(row_keys: torch.Tensor, position: int, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, (rows, candidates), a pure function of (row key, position, token id)."""
    bits = _mix(_mix(row_keys + position) ^ tokens)
    uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add_(0.5) / 2**53  # in (0, 1), never 0 or 1
    return -torch.log(-torch.log(uniform))


def _mix(value: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap around."""
    value = (value ^ _shift(value, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed number
    value = (value ^ _shift(value, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return value ^ _shift(value, 31)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _row_key(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "little", signed=True)
