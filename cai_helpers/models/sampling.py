"""Sampling whose result depends on the row and not on its neighbours.

Under one global random state a row's text changes with batch size, order and resumption. Here every choice is the
argmax of log-probabilities plus Gumbel noise (an exact draw from the softmax: Maddison et al. 2014,
arXiv 1411.0030), and the noise is a hash of (seed, row key, position, token id).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import LogitsProcessor

from cai_helpers.errors import CaiError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_CANDIDATES = 256  # likeliest tokens looked at first: sorting a 256k vocabulary costs as much as the model itself
_ROWS_AT_ONCE = 8  # whose whole vocabulary is sorted together, where the candidates do not reach top_p


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
        CaiError: a score was not finite; see `not_finite`.
        """
        if self._finite is not None and not bool(self._finite):
            raise not_finite(model)


def not_finite(model: PreTrainedModel | PeftModel) -> CaiError:
    """Why scores of `model` are not finite: a weight is to blame, or the precision."""
    broken = next((name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()), None)
    if broken is not None:
        return CaiError(
            f"The model gives probabilities that are not finite: its weights are broken, {broken} holds NaN or infinity.",
            "Nothing of these rows was kept. Load the model or the adapter again; if you trained the adapter, train it "
            "anew with `cai train --fresh`.",
        )
    return CaiError(
        "The model gives probabilities that are not finite, though its weights are: it overflows in "
        f"{str(next(model.parameters()).dtype).removeprefix('torch.')}.",
        "Nothing of these rows was kept. Some models, such as Gemma 3, do not run in fp16: set models.dtype=bf16 (cards "
        "with compute capability 8.0 or higher) or models.dtype=fp32 (twice the memory), or take another base model.",
    )


class GumbelNucleus(LogitsProcessor):
    """Turns scores so that their argmax is a draw by temperature and top-p. Used with `do_sample=False`.

    keys: one string a row, e.g. "<prompt id>/draft"; prompt_length: tokens before generation starts.
    """

    def __init__(self, sampling: Sampling, keys: list[str], prompt_length: int) -> None:
        self._sampling = sampling
        self._prompt_length = prompt_length
        self._row_keys = torch.tensor([row_key(sampling.seed, key) for key in keys]).unsqueeze(1)  # (rows, 1)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        self._row_keys = self._row_keys.to(scores.device)
        temperature = torch.full_like(self._row_keys, self._sampling.temperature, dtype=torch.float32)
        top_p = torch.full_like(temperature, self._sampling.top_p)
        position = torch.full_like(self._row_keys, input_ids.shape[1] - self._prompt_length)
        drawn = draw(scores, self._row_keys, position, temperature, top_p)
        tokens = drawn.tokens
        if drawn.short.any():
            tokens[drawn.short] = draw_from_all(
                *(part[drawn.short] for part in (scores, self._row_keys, position, temperature, top_p))
            )
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(1), 0.0)


class Draw(NamedTuple):
    """What `draw` says of each row."""

    tokens: torch.Tensor  # (rows,) token ids
    short: torch.Tensor  # (rows,) the candidates hold less than top_p: the row needs `draw_from_all`
    finite: torch.Tensor  # (rows,) False: the scores hold NaN or infinity


def draw(
    scores: torch.Tensor,
    row_keys: torch.Tensor,
    position: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
) -> Draw:
    """A draw by temperature and top-p (nucleus, Holtzman et al. 2020, arXiv 1904.09751) for every row, exact where not `short`.

    scores: (rows, vocabulary); all else (rows, 1), position counted from the first generated token. The nucleus is taken
    in the 256 likeliest tokens, with their probabilities under the softmax of all. The host waits for nothing here, so
    that a CUDA graph can hold it.
    """
    values, tokens = scores.topk(min(_CANDIDATES, scores.shape[-1]), dim=-1)
    total = (scores / temperature).logsumexp(-1, keepdim=True)
    choice, mass = _choose(values, tokens, total, row_keys, position, temperature, top_p)
    enough = (
        mass >= top_p.squeeze(1) if tokens.shape[-1] < scores.shape[-1] else torch.ones_like(mass, dtype=torch.bool)
    )
    return Draw(choice, ~enough, total.squeeze(1).isfinite())


def draw_from_all(
    scores: torch.Tensor,
    row_keys: torch.Tensor,
    position: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
) -> torch.Tensor:
    """The same draw, (rows,) token ids, with the whole vocabulary sorted: exact for every row, and slow."""
    parts = []
    for some in zip(
        *(part.split(_ROWS_AT_ONCE) for part in (scores, row_keys, position, temperature, top_p)), strict=True
    ):
        values, tokens = some[0].sort(dim=-1, descending=True, stable=True)
        total = (some[0] / some[3]).logsumexp(-1, keepdim=True)
        parts.append(_choose(values, tokens, total, *some[1:])[0])
    return torch.cat(parts)


def _choose(
    values: torch.Tensor,
    tokens: torch.Tensor,
    total: torch.Tensor,
    row_keys: torch.Tensor,
    position: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token drawn, mass of all candidates) of each row; values: scores of `tokens`, the likeliest first."""
    log_probabilities = values / temperature - total  # fp32: temperature is
    mass = log_probabilities.exp().cumsum(-1, dtype=torch.float64)
    before = mass - log_probabilities.exp()  # of the likelier tokens
    log_probabilities = log_probabilities.masked_fill(before >= top_p, -torch.inf)
    choice = (log_probabilities + gumbel_noise(row_keys, position, tokens)).argmax(-1, keepdim=True)
    return tokens.gather(1, choice).squeeze(1), mass[:, -1]


def gumbel_noise(row_keys: torch.Tensor, position: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
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


def row_key(seed: int, key: str) -> int:
    """The 64 bits that stand for a row in `gumbel_noise`, as a signed number."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "little", signed=True)
