"""Preference data as DPO takes it: rows read, measured under the chat template, and checked before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.models.chat_format import TEMPLATE_OPTIONS, accepts_system, fold_system
from cai_helpers.schema import Messages, PreferenceRow, UnpairedRow
from cai_helpers.store import read_jsonl

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


OF_EACH_ROW = {"chat_template_kwargs": TEMPLATE_OPTIONS}  # the column in which TRL looks for the template's options


class EncodedPair(NamedTuple):
    """Token ids of one row; a side's sequence is prompt + side."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class Fitting(NamedTuple):
    rows: list[PreferenceRow]
    too_long: int  # rows left out because a side would be cut at max_length
    longest: int  # tokens of the longest sequence kept


class Preferences(NamedTuple):
    train: Fitting
    held_out: Fitting

    @property
    def kept(self) -> int:
        return len(self.train.rows) + len(self.held_out.rows)

    @property
    def too_long(self) -> int:
        return self.train.too_long + self.held_out.too_long

    @property
    def longest(self) -> int:
        return max(self.train.longest, self.held_out.longest)


def read_rows(path: Path) -> list[PreferenceRow]:
    return [PreferenceRow.model_validate(row) for row in read_jsonl(path)]


def encode(row: PreferenceRow, tokenizer: PreTrainedTokenizerBase) -> EncodedPair:
    """The row's token ids under the chat template, as the model meets them when it answers.

    Raises:
        CaiError: both sides are the same, or the prompt is no prefix of a side (the template, or a token that spans the
            border, renders the prompt differently once an answer follows: training would see another prompt).
    """

    prompt, chosen = _encoded(row.id, row.prompt, row.chosen, tokenizer)
    _, rejected = _encoded(row.id, row.prompt, row.rejected, tokenizer)
    if chosen == rejected:
        raise CaiError(
            f"Row {row.id}: chosen and rejected are the same, so there is nothing to prefer.",
            "Run `cai curate` again, or take the row out of dpo_dataset/.",
        )
    return EncodedPair(prompt, chosen, rejected)


class EncodedAnswer(NamedTuple):
    prompt: list[int]
    answer: list[int]


def encode_answer(row: UnpairedRow, tokenizer: PreTrainedTokenizerBase) -> EncodedAnswer:
    """As `encode`, of a row that has one side."""
    return _encoded(row.id, row.prompt, row.completion, tokenizer)


def _encoded(name: str, prompt: Messages, answer: Messages, tokenizer: PreTrainedTokenizerBase) -> EncodedAnswer:
    def ids(messages: Messages, **options) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **TEMPLATE_OPTIONS, **options)
        return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written <bos>

    before, whole = ids(prompt, add_generation_prompt=True), ids([*prompt, *answer])
    if whole[: len(before)] != before:
        raise CaiError(
            f"Row {name}: under the chat template the prompt is not the beginning of prompt and answer.",
            "Strip white space at the answer's start; if every row has this, the chat template does not suit DPO.",
        )
    return EncodedAnswer(before, whole[len(before) :])


def keep_fitting(rows: list[PreferenceRow], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Fitting:
    """The rows whose both sides fit whole: an answer cut at max_length would teach not to end.

    A system turn is folded into the first user turn where the template has no system role.

    Raises:
        CaiError: as `encode`.
    """
    if not accepts_system(tokenizer):
        rows = [row.model_copy(update={"prompt": fold_system(row.prompt)}) for row in rows]
    lengths = [encode(row, tokenizer).length for row in rows]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_length]
    longest = max((length for length in lengths if length <= max_length), default=0)
    return Fitting(kept, len(rows) - len(kept), longest)


def as_dataset(rows: list[PreferenceRow]) -> Dataset:
    """TRL's conversational form: message lists, so that TRL applies the chat template and adds nothing to the text."""
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected, **OF_EACH_ROW} for row in rows]
    )


def as_completions(rows: list[PreferenceRow]) -> Dataset:
    """TRL's conversational prompt and completion: the chosen answers, to be learned from as they are."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": row.prompt, "completion": row.chosen, **OF_EACH_ROW} for row in rows])


def revisions(fitting: Fitting) -> Fitting:
    """The rows whose chosen answer is a revision: the others' is what the model says already."""
    return fitting._replace(rows=[row for row in fitting.rows if row.chosen_side == "revised"])
