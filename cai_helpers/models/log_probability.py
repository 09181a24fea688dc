"""How likely a model finds a given answer: log-probabilities by teacher forcing, in batches that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.models.batches import in_batches
from cai_helpers.models.language import LanguageModel
from cai_helpers.schema import Messages

if TYPE_CHECKING:
    import torch

_MOST_LOGITS = 2**28  # of one batch: half a GiB in 16 bits


class LogProbability(NamedTuple):
    """Of an answer's own tokens, without the one that ends it."""

    total: float  # nats
    tokens: int

    @property
    def per_token(self) -> float | None:
        return self.total / self.tokens if self.tokens else None


def answer_log_probabilities(
    language_model: LanguageModel, asked: Sequence[tuple[Messages, str]], batch_size: int
) -> Iterator[tuple[int, LogProbability]]:
    """Yield (index, log-probability of the answer after the conversation), longest first.

    The prompt is the text that generation continues; no special token is added to the answer. An empty one has 0 tokens.

    Raises:
        CaiError: the model's scores are not finite, or one row alone does not fit into memory.
    """
    tokenizer = language_model.tokenizer
    prompts = tokenizer([language_model.render(chat) for chat, _ in asked], add_special_tokens=False)["input_ids"]
    answers = tokenizer([text for _, text in asked], add_special_tokens=False)["input_ids"]
    yield from ((place, LogProbability(0.0, 0)) for place, answer in enumerate(answers) if not answer)
    order = sorted(
        (place for place, answer in enumerate(answers) if answer),
        key=lambda place: -len(prompts[place] + answers[place]),
    )
    longest = max((len(answer) for answer in answers), default=1)
    size = max(1, min(batch_size, _MOST_LOGITS // ((longest + 1) * len(tokenizer))))

    def measure(rows: list[int]) -> list[LogProbability]:
        return _measure(language_model, [prompts[row] for row in rows], [answers[row] for row in rows])

    for rows, found in in_batches(order, size, measure):
        yield from zip(rows, found, strict=True)


def _measure(language_model: LanguageModel, prompts: list[list[int]], answers: list[list[int]]) -> list[LogProbability]:
    import torch

    model, pad = language_model.model, language_model.tokenizer.pad_token_id
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    kept = max(map(len, answers)) + 1  # the logits before each token of the longest answer, and those behind its last
    padding = [width - len(prompt) - len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    # left padding, so that all answers end at the same place and the last logits are theirs
    ids = torch.tensor(
        [[pad] * space + prompt + answer for space, prompt, answer in zip(padding, prompts, answers, strict=True)]
    )
    mask = torch.tensor([[0] * space + [1] * (width - space) for space in padding])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ids, mask, positions = (tensor.to(model.device) for tensor in (ids, mask, positions))
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept).logits
        rows = [_total(row, ids[place], len(answers[place])) for place, row in enumerate(logits)]
        totals = torch.stack(rows).tolist()
    if not all(total > float("-inf") and total == total for total in totals):
        raise CaiError(
            "The model gives log-probabilities that are not finite: weights or precision are broken.",
            "Set models.dtype=fp32, or bf16 on a card with compute capability 8.0 or higher.",
        )
    return [LogProbability(total, len(answer)) for total, answer in zip(totals, answers, strict=True)]


def _total(logits: torch.Tensor, ids: torch.Tensor, length: int) -> torch.Tensor:
    """logits: (kept, vocabulary), the last ones of the row; ids: (width,). Row by row: in 32 bits a batch is large."""
    import torch

    scores = torch.log_softmax(logits[-length - 1 : -1].float(), dim=-1)
    return scores.gather(1, ids[-length:, None]).sum()
