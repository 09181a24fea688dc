"""Prompt sources → Prompt: every turn kept, duplicates removed, the evaluation prompts taken out first."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from typing import Any, NamedTuple

from cai_helpers import settings as settings_module
from cai_helpers.errors import CaiError
from cai_helpers.measures.normal import normalised
from cai_helpers.models.chat_format import ChatFormat
from cai_helpers.models.language import load_tokenizer
from cai_helpers.prompts.sources import Malformed, conversation, read_rows
from cai_helpers.schema import Messages, Prompt, StageReport
from cai_helpers.store import write_json, write_jsonl
from cai_helpers.workspace import Workspace

_ID = re.compile(r"[0-9a-f]{16}")  # as prompt_id makes it


class PromptSplit(NamedTuple):
    train: list[Prompt]
    eval: list[Prompt]
    summary: PromptSummary


class PromptSummary(StageReport):
    rows: int  # read from the source
    skipped: dict[str, int]  # reason → rows
    duplicates: int
    leaks: int  # training prompts removed because the evaluation set has them
    shortened: int  # prompts whose oldest turns were dropped to fit max_tokens
    train: int
    eval: int
    multi_turn: int  # of the training prompts
    categories: dict[str, int]  # of the training prompts
    sources: dict[str, int]

    def title(self) -> str:
        return "Prompts"

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("rows read", str(self.rows)),
            *((f"skipped: {reason}", str(count)) for reason, count in self.skipped.items()),
            ("duplicates removed", str(self.duplicates)),
            ("removed because held out for evaluation", str(self.leaks)),
            ("oldest turns dropped to fit", str(self.shortened)),
            ("training prompts", f"{self.train} ({self.multi_turn} with earlier turns)"),
            *((f"category {name}", str(count)) for name, count in self.categories.items()),
            *((f"from {name}", str(count)) for name, count in self.sources.items()),
            ("held-out evaluation prompts", str(self.eval)),
        ]


class _Tally:
    """What happened to the rows on their way."""

    def __init__(self) -> None:
        self.rows = self.duplicates = self.leaks = self.shortened = 0
        self.skipped: Counter[str] = Counter()


def load_prompts(settings: settings_module.Prompts, seed: int, count_tokens: Callable[[Messages], int]) -> PromptSplit:
    """Read the source, take the evaluation prompts out, then take training prompts up to the limit.

    count_tokens: tokens of a conversation under the model's chat template.
    Sources are mixed in equal parts, each in the order of a hash of (seed, id): a larger limit, or another run,
    sees the same prompts first.

    Raises:
        CaiError: the source cannot be read, or holds no usable prompt.
    """
    tally = _Tally()
    fitting = _fitting(_pool(settings.source, settings, seed, tally), settings.max_tokens, count_tokens, tally)
    if settings.eval_source is None:
        held_out = list(islice(fitting, settings.eval_count))
    else:
        eval_tally = _Tally()
        pool = _pool(settings.eval_source, settings, seed, eval_tally)
        held_out = list(_fitting(pool, settings.max_tokens, count_tokens, eval_tally))
    train = list(islice(_without(fitting, {prompt.id for prompt in held_out}, tally), settings.limit))
    if not train:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in tally.skipped.items())
        raise CaiError(
            f"No training prompt is left of {settings.source}: {tally.rows} rows read, {len(held_out)} held out for "
            f"evaluation{', ' + reasons if reasons else ''}.",
            "Give more prompts, lower prompts.eval_count, or name the column: --set prompts.column=NAME.",
        )
    return PromptSplit(train, held_out, _summary(tally, train, held_out))


def write_prompts(settings: settings_module.Settings, workspace: Workspace) -> PromptSplit:
    """Load and split the prompts of the settings, and keep them in the workspace.

    The evaluation prompts are taken out here, before anything is generated.
    """
    chat_format = ChatFormat(load_tokenizer(settings.models.base))
    chat_format.require_trainable()  # now, not after hours of generation
    split = load_prompts(settings.prompts, settings.seed, chat_format.count_tokens)
    for path, prompts in ((workspace.prompts, split.train), (workspace.eval_prompts, split.eval)):
        write_jsonl(
            path, ({**prompt.model_dump(), "messages": chat_format.fold(prompt.messages)} for prompt in prompts)
        )
    write_json(workspace.prompt_summary, split.summary.model_dump())
    return split


def prompt_id(messages: Messages) -> str:
    """A stable name: hash of the roles and the text, with case, white space and Unicode form levelled."""
    text = "\n".join(f"{message['role']}: {normalised(message['content'])}" for message in messages)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _pool(source: str, settings: settings_module.Prompts, seed: int, tally: _Tally) -> list[Prompt]:
    """Every well-formed conversation of the source once, sources mixed round-robin, so that any limit takes equal parts."""
    by_source: dict[str, list[Prompt]] = {}
    seen: set[str] = set()
    for row in read_rows(source, settings):
        tally.rows += 1
        try:
            messages = conversation(row, settings.column)
        except Malformed as reason:
            tally.skipped[str(reason)] += 1
            continue
        name = _kept_id(row.value) or prompt_id(messages)
        if name in seen:
            tally.duplicates += 1
            continue
        seen.add(name)
        prompt = Prompt(id=name, messages=messages, category=row.category, source=row.source)
        by_source.setdefault(row.source, []).append(prompt)
    for prompts in by_source.values():
        prompts.sort(key=lambda prompt: hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest())
    return [prompt for round_of in zip_longest(*by_source.values()) for prompt in round_of if prompt is not None]


def _kept_id(row: dict[str, Any]) -> str | None:
    """The id in a row that `write_prompts` wrote: its messages may be folded, and the id is of what they were."""
    written = row.keys() == Prompt.model_fields.keys() and isinstance(row["id"], str) and _ID.fullmatch(row["id"])
    return row["id"] if written else None


def _fitting(
    prompts: list[Prompt], max_tokens: int, count_tokens: Callable[[Messages], int], tally: _Tally
) -> Iterator[Prompt]:
    """The prompts cut to `max_tokens`, one at a time: of a large source only those that are used are tokenised."""
    for prompt in prompts:
        try:
            messages = _fit(prompt.messages, max_tokens, count_tokens)
        except Malformed as reason:
            tally.skipped[str(reason)] += 1
            continue
        tally.shortened += len(messages) < len(prompt.messages)
        yield prompt.model_copy(update={"messages": messages})


def _without(prompts: Iterable[Prompt], ids: set[str], tally: _Tally) -> Iterator[Prompt]:
    for prompt in prompts:
        if prompt.id in ids:
            tally.leaks += 1
        else:
            yield prompt


def _fit(messages: Messages, max_tokens: int, count_tokens: Callable[[Messages], int]) -> Messages:
    """Drop the oldest exchange until the prompt fits; a system turn stays."""
    system = [message for message in messages if message["role"] == "system"]
    turns = messages[len(system) :]
    if count_tokens([*system, *turns]) <= max_tokens:
        return [*system, *turns]
    exchanges = (len(turns) - 1) // 2  # that can be dropped
    # by halves: counting after each of a thousand exchanges would take minutes
    dropped = bisect_left(
        range(exchanges + 1), True, key=lambda count: count_tokens([*system, *turns[2 * count :]]) <= max_tokens
    )
    if dropped > exchanges:
        raise Malformed(f"the last turn alone is longer than {max_tokens} tokens")
    return [*system, *turns[2 * dropped :]]


def _summary(tally: _Tally, train: list[Prompt], held_out: list[Prompt]) -> PromptSummary:
    return PromptSummary(
        rows=tally.rows,
        skipped=dict(tally.skipped.most_common()),
        duplicates=tally.duplicates,
        leaks=tally.leaks,
        shortened=tally.shortened,
        train=len(train),
        eval=len(held_out),
        multi_turn=sum(len(prompt.messages) > 1 for prompt in train),
        categories=dict(Counter(prompt.category for prompt in train).most_common()),
        sources=dict(Counter(prompt.source for prompt in train).most_common()),
    )
