"""Prompt sources → Prompt: every turn kept, duplicates removed, the evaluation prompts taken out first."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from cai_helpers import settings as settings_module
from cai_helpers.errors import CaiError
from cai_helpers.models import EMBEDDED, from_hub, locate
from cai_helpers.schema import Message, Messages, Prompt, StageReport
from cai_helpers.store import read_jsonl

# Where a conversation stands, in the order of preference. `chosen` and `rejected` end on a response, which is cut off.
_COLUMNS = ("messages", "conversations", "conversation", "prompt", "chosen", "question", "instruction", "text")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_ROLES = {"human": "user", "user": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_CATEGORY_OF_SUBSET = {"harmless": "harmless", "red-team": "harmless", "helpful": "helpful"}


class Malformed(ValueError):
    """A row that is no usable conversation; the text is the reason it is counted under."""


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


def prompt_id(messages: Messages) -> str:
    """A stable name: hash of the roles and the text, with case, white space and Unicode form levelled."""
    text = "\n".join(f"{message['role']}: {normalised(message['content'])}" for message in messages)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def parse_transcript(text: str) -> Messages:
    """Turns of an "\\n\\nHuman: … \\n\\nAssistant: …" transcript. "Human:" inside a line is text, not a turn.

    Raises:
        Malformed: no turns, or text before the first one.
    """
    text = text.strip()
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise Malformed("no Human/Assistant turns")
    return [
        {"role": _ROLES[speaker.lower()], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def as_prompt_messages(value: Any) -> Messages:
    """A conversation that ends on a user turn, from a message list, a transcript or plain text.

    A closing assistant turn is cut off: it is the response, not the prompt.

    Raises:
        Malformed: with the reason.
    """
    if isinstance(value, list):
        messages = [_message(item) for item in value]
    elif isinstance(value, str) and _TURN.match(value.strip()):
        messages = parse_transcript(value)
    elif isinstance(value, str):
        messages = [Message(role="user", content=value.strip())]
    else:
        raise Malformed("neither text nor a list of messages")
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise Malformed("no user turn")
    if any(not message["content"] for message in messages):
        raise Malformed("an empty turn")
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if roles[::2] != ["user"] * len(roles[::2]) or roles[1::2] != ["assistant"] * len(roles[1::2]):
        raise Malformed("user and assistant do not alternate")
    if any(message["role"] == "system" for message in messages[1:]):
        raise Malformed("a system turn after the first")
    return messages


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise Malformed("a message is not an object")
    role = _ROLES.get(str(item.get("role", item.get("from", ""))).lower())
    content = item.get("content", item.get("value"))
    if role is None or not isinstance(content, str):
        raise Malformed("a message without role or text")
    return Message(role=role, content=content.strip())


class _Row(NamedTuple):
    value: dict[str, Any]
    category: str
    source: str


def _read(source: str, settings: settings_module.Prompts, tally: _Tally) -> Iterator[_Row]:
    path = Path(locate(source))
    if path.is_file():
        rows = _read_file(path, source if source.startswith(EMBEDDED) else path.name)
    elif source.startswith((EMBEDDED, ".", "/", "~")) or path.suffix:
        raise CaiError(f"There is no file {path}.", "Check the path, or name a Hub dataset such as Anthropic/hh-rlhf.")
    else:
        rows = _read_hub(source, settings)
    for row in rows:
        tally.rows += 1
        yield row


def _read_file(path: Path, name: str) -> Iterator[_Row]:
    category = next((value for key, value in _CATEGORY_OF_SUBSET.items() if key in path.name), "unknown")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for value in read_jsonl(path):
            yield _Row(value, value.get("category") or category, name)
    elif path.suffix == ".txt":
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                yield _Row({"prompt": line}, category, name)
    else:
        raise CaiError(f"{path.name}: this kind of file is not read.", "Give .jsonl, .jsonl.gz or .txt.")


def _read_hub(source: str, settings: settings_module.Prompts) -> Iterator[_Row]:
    from datasets import load_dataset

    subsets = settings.subsets if source == "Anthropic/hh-rlhf" else [None]
    for subset in subsets:
        dataset = from_hub(lambda subset=subset: load_dataset(source, data_dir=subset, split=settings.split), source)
        name = f"{source}/{subset}" if subset else source
        category = next((value for key, value in _CATEGORY_OF_SUBSET.items() if key in name), "unknown")
        for value in dataset:
            yield _Row(value, value.get("category") or category, name)


def _pool(source: str, settings: settings_module.Prompts, seed: int, tally: _Tally) -> list[Prompt]:
    """Every well-formed conversation of the source once, sources mixed round-robin, so that any limit takes equal parts."""
    by_source: dict[str, list[Prompt]] = {}
    seen: set[str] = set()
    for row in _read(source, settings, tally):
        try:
            messages = as_prompt_messages(_conversation(row.value, settings.column))
        except Malformed as reason:
            tally.skipped[str(reason)] += 1
            continue
        name = prompt_id(messages)
        if name in seen:
            tally.duplicates += 1
            continue
        seen.add(name)
        prompt = Prompt(id=name, messages=messages, category=row.category, source=row.source)
        by_source.setdefault(row.source, []).append(prompt)
    for prompts in by_source.values():
        prompts.sort(key=lambda prompt: hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest())
    return [prompt for one_each in zip_longest(*by_source.values()) for prompt in one_each if prompt is not None]


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


def _conversation(row: dict[str, Any], column: str | None) -> Any:
    for name in [column] if column else _COLUMNS:
        if row.get(name) is not None:
            return row[name]
    raise Malformed(f"no column {column!r}" if column else "no known conversation column")


def _fit(messages: Messages, max_tokens: int, count_tokens: Callable[[Messages], int]) -> Messages:
    """Drop the oldest exchange until the prompt fits; a system turn stays."""
    system = [message for message in messages if message["role"] == "system"]
    turns = messages[len(system) :]
    while count_tokens([*system, *turns]) > max_tokens:
        if len(turns) < 3:
            raise Malformed(f"the last turn alone is longer than {max_tokens} tokens")
        turns = turns[2:]
    return [*system, *turns]


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
