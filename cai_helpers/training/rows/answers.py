"""Answers that are good or bad by themselves, as KTO takes them: from both sides of the pairs, and from what curation left.

Ethayarajh et al. 2024, arXiv 2402.01306. Pure but for the tokenizer: rows in, rows out.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.curation.rules import Dropped
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.models.chat_format import accepts_system, fold_system
from cai_helpers.prompts.sources import as_prompt_messages
from cai_helpers.prompts.split import prompt_id
from cai_helpers.schema import Message, PreferenceRow, ScoredPair, UnpairedRow
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


def one_sided(dropped: Iterable[Dropped], is_held_out: Callable[[str], bool]) -> list[UnpairedRow]:
    """The sides that can be trusted although their pair teaches no preference.

    A draft that the critic judged good and kept is desirable; the one side of a pair that goes round in circles is
    undesirable. Nothing else is taken. Of a tie, a near-duplicate or a row that was balanced away neither side is known
    to be good or bad; of a failed revision only the critic is to blame; and a person who dropped a pair meant both sides.

    is_held_out: whether a prompt, by its id, is one of those that do not train.
    """
    rows = []
    for pair, reason in dropped:
        if (found := _trustworthy(pair, reason)) is None:
            continue
        answer, desirable = found
        messages = pair.messages or as_prompt_messages(pair.prompt)
        name = pair.id or prompt_id(messages)
        rows.append(
            UnpairedRow(
                prompt=messages,
                completion=[Message(role="assistant", content=answer)],
                label=desirable,
                id=name,
                category=pair.category,
                reason=reason,
                held_out=is_held_out(name),
            )
        )
    return rows


def _trustworthy(pair: ScoredPair, reason: str) -> tuple[str, bool] | None:
    """(answer, whether it is desirable), or None."""
    if reason == "kept":
        # one that was cut off would teach to stop mid-sentence
        whole = pair.base_finish != "length" and not is_degenerate(pair.base_response)
        return (pair.base_response, True) if whole else None
    if reason == "degenerate":
        # both sides are the draft where the critic went round in circles: then they are alike, and none is taken
        broken = [side for side in (pair.base_response, pair.revised_response) if is_degenerate(side)]
        return (broken[0], False) if len(broken) == 1 and broken[0].strip() else None
    return None


def held_out_rule(pair_ids: set[str], held_out: set[str], seed: int) -> Callable[[str], bool]:
    """Whether a prompt is held out, by the rule that split the pairs: those whose hash is among the lowest.

    The pairs stay split as they are; another prompt is held out where its hash lies below theirs.
    """
    border = max((split_hash(name, seed) for name in held_out), default=b"")

    def rule(name: str) -> bool:
        return name in held_out if name in pair_ids else split_hash(name, seed) < border

    return rule


def split_hash(name: str, seed: int) -> bytes:
    """Orders prompts for the split: the same whatever the order of the file."""
    return hashlib.sha256(f"{seed}:dpo eval:{name}".encode()).digest()


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
    parts, alone = [], 0
    for name, pairs in (("train", train), ("eval", held_out)):
        rows = [side for pair in pairs for side in _sides(pair, held_out=name == "eval")]
        rows += [row for row in fitting if row.held_out == (name == "eval")]
        random.Random(f"{seed}:kto:{name}").shuffle(rows)
        left = len(rows) % batch_size == 1
        alone += left
        parts.append(rows[:-1] if left else rows)
    return Unpaired(*parts, too_long=len(extra) - len(fitting), alone=alone)


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
