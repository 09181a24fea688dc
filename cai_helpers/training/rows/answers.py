"""Answers that are good or bad by themselves, as KTO takes them: both sides of the pairs, and the one-sided rows.

Ethayarajh et al. 2024, arXiv 2402.01306. Pure but for the tokenizer: rows in, rows out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.models.chat_format import accepts_system, fold_system
from cai_helpers.schema import PreferenceRow, UnpairedRow
from cai_helpers.store import read_jsonl
from cai_helpers.training.rows.pairs import OF_EACH_ROW, encode_answer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_MOST_RATIO = 4 / 3  # of what all desirable answers weigh to what all undesirable ones do: eq. 8 of the paper


class Weights(NamedTuple):
    """What one desirable and one undesirable answer count in the loss."""

    desirable: float
    undesirable: float


class Unpaired(NamedTuple):
    """Rows in the order in which they are trained on, those held out apart."""

    train: list[UnpairedRow]
    held_out: list[UnpairedRow]
    too_long: int  # one-sided rows that would be cut at max_length
    alone: int  # rows left out because they would stand alone in the last batch


def read_one_sided(path: Path) -> list[UnpairedRow]:
    return [UnpairedRow.model_validate(row) for row in read_jsonl(path)]


def unpair(
    train: Sequence[PreferenceRow],
    held_out: Sequence[PreferenceRow],
    extra: Sequence[UnpairedRow],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    batch_size: int,
    seed: int,
) -> Unpaired:
    """Both sides of the pairs, with the one-sided rows that fit whole; shuffled once.

    TRL takes the rows in their order, epoch after epoch: it estimates the KL from the answers of a batch, each put
    behind its neighbour's prompt, and computes that beforehand. So they are mixed here, or a batch would hold one side
    alone. A row that is alone in its batch has no neighbour: the estimate would be its own reward.

    Raises:
        CaiError: as preference.encode_answer.
    """
    if not accepts_system(tokenizer):
        extra = [row.model_copy(update={"prompt": fold_system(row.prompt)}) for row in extra]
    fitting = [row for row in extra if _tokens(row, tokenizer) <= max_length]
    parts: dict[str, list[UnpairedRow]] = {}
    alone = 0
    for name, pairs in (("train", train), ("eval", held_out)):
        rows = [side for pair in pairs for side in _sides(pair, held_out=name == "eval")]
        rows += [row for row in fitting if row.held_out == (name == "eval")]
        random.Random(f"{seed}:kto:{name}").shuffle(rows)
        left = len(rows) % batch_size == 1
        alone += left
        parts[name] = rows[:-1] if left else rows
    return Unpaired(parts["train"], parts["eval"], too_long=len(extra) - len(fitting), alone=alone)


def balance(rows: Sequence[UnpairedRow]) -> Weights:
    """The weights nearest to 1 for which desirable and undesirable answers weigh 1 to 4/3 as a whole (eq. 8).

    Only the rarer kind is raised, as in the paper. rows: of both kinds.
    """
    desirable = sum(row.label for row in rows)
    undesirable = len(rows) - desirable
    if desirable < undesirable:
        return Weights(undesirable / desirable, 1.0)
    return Weights(1.0, max(1.0, desirable / undesirable / _MOST_RATIO))


def as_unpaired(rows: Sequence[UnpairedRow]) -> Dataset:
    """TRL's conversational unpaired form, in the order of `rows`."""
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": row.prompt, "completion": row.completion, "label": row.label, **OF_EACH_ROW} for row in rows]
    )


def _sides(row: PreferenceRow, held_out: bool) -> list[UnpairedRow]:
    shared = {"prompt": row.prompt, "id": row.id, "category": row.category, "held_out": held_out}
    return [
        UnpairedRow(completion=row.chosen, label=True, reason="chosen", **shared),
        UnpairedRow(completion=row.rejected, label=False, reason="rejected", **shared),
    ]


def _tokens(row: UnpairedRow, tokenizer: PreTrainedTokenizerBase) -> int:
    return sum(map(len, encode_answer(row, tokenizer)))
