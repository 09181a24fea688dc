"""Where prompts come from: files and Hub datasets → rows, and rows → conversations that end on a user turn."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import EMBEDDED, from_hub, locate
from cai_helpers.schema import BENIGN, HARMFUL, Message, Messages, Role
from cai_helpers.settings import Prompts
from cai_helpers.store import is_text, read_jsonl, read_text

# Where a conversation stands, in the order of preference. `chosen` and `rejected` end on a response, which is cut off.
_COLUMNS = ("messages", "conversations", "conversation", "prompt", "chosen", "question", "instruction", "text")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
_CATEGORY_OF_NAME = {"harmless": HARMFUL, "red-team": HARMFUL, "helpful": BENIGN}


class Malformed(ValueError):
    """A row that is no usable conversation; the text is the reason it is counted under."""


class Row(NamedTuple):
    value: dict[str, Any]
    category: str
    source: str


def read_rows(source: str, settings: Prompts) -> Iterator[Row]:
    """Rows of a file (.jsonl, .jsonl.gz, .parquet, .csv, .txt), of a folder of such files, or of a Hub dataset.

    Raises:
        CaiError: there is no such file or dataset, or it is of another kind.
    """
    path = Path(locate(source))
    if path.is_file():
        yield from _read_file(path, source if source.startswith(EMBEDDED) else path.name, settings)
    elif path.is_dir() or not (source.startswith((EMBEDDED, ".", "/", "~")) or path.suffix):
        yield from _read_dataset(source, settings)
    else:
        raise CaiError(f"There is no file {path}.", "Check the path, or name a Hub dataset such as Anthropic/hh-rlhf.")


def is_file(source: str) -> bool:
    """Whether `source` names something on this machine, and not a dataset of the Hub."""
    path = Path(locate(source))
    return path.exists() or source.startswith((EMBEDDED, ".", "/", "~")) or bool(path.suffix)


def conversation(row: Row, column: str | None) -> Messages:
    """The conversation of a row, from `column` or the first column with a usual name.

    Raises:
        Malformed: with the reason.
    """
    for name in [column] if column else _COLUMNS:
        if row.value.get(name) is not None:
            return as_prompt_messages(row.value[name])
    raise Malformed(f"no column {column!r}" if column else "no known conversation column")


def _read_file(path: Path, name: str, settings: Prompts) -> Iterator[Row]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        values = read_jsonl(path)
    elif path.suffix == ".parquet":
        values = _read_parquet(path)
    elif path.suffix == ".txt":
        lines = read_text(path).split("\n")  # not splitlines: it also splits inside a line
        values = ({"prompt": line} for line in lines if line.strip())
    elif path.suffix == ".csv":
        values = iter(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    else:
        raise CaiError(
            f"{path.name}: this kind of file is not read.", "Give .jsonl, .jsonl.gz, .parquet, .csv or .txt."
        )
    for value in values:
        yield _row(value, path.name, name, settings)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:  # OSError: pages that cannot be unpacked
        reason = str(error).splitlines()[0]
        raise CaiError(f"{path.name} is no whole Parquet file: {reason}", "Download or write it again.") from error


def _read_dataset(source: str, settings: Prompts) -> Iterator[Row]:
    """A dataset of the Hub, or a folder laid out like one; subsets are its sub-folders, as in Anthropic/hh-rlhf."""
    from datasets import load_dataset

    for subset in settings.subsets if source.endswith("hh-rlhf") else [None]:
        load = partial(load_dataset, locate(source), data_dir=subset, split=settings.split)
        dataset = from_hub(load, source)
        name = f"{source}/{subset}" if subset else source
        for value in dataset:
            yield _row(value, name, name, settings)


def _row(value: dict[str, Any], hint: str, source: str, settings: Prompts) -> Row:
    """`hint`: a file or subset name, which tells the category of rows that do not."""
    category = value.get(settings.category_column)
    if not isinstance(category, str):
        category = next((name for key, name in _CATEGORY_OF_NAME.items() if key in hint), "unknown")
    return Row(value, category, source)


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
    if not messages or messages[-1]["role"] != "user":
        raise Malformed("no user turn")
    if any(not message["content"] for message in messages):
        raise Malformed("an empty turn")
    if not all(is_text(message["content"]) for message in messages):
        raise Malformed("a broken character (half of a surrogate pair)")
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
