"""What a person decided about single pairs, and pairs of their own: pairs/overrides.jsonl, which is only appended to."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pydantic

from cai_helpers.errors import CaiError
from cai_helpers.schema import Messages, Record, transcript
from cai_helpers.store import JsonlStore, read_jsonl

Decision = Literal["revision", "draft", "drop", "edit", "undo"]


class OwnPair(Record):
    """Two answers that a person asked for and chose between, in `cai chat`: no stage made them, and nobody scored them."""

    messages: Messages  # the prompt, with all its turns
    base_response: str  # Stage 2's answer
    revised_response: str  # Stage 3's

    @property
    def key(self) -> str:
        return pair_key(transcript(self.messages), self.base_response, self.revised_response)


class Override(Record):
    """One decision about one pair.

    revision: the draft is worse; draft: it is better; drop: the pair teaches nothing; edit: `edited` is the better
    side, written by a person; undo: the last decision about this pair is taken back. Of a pair of a person's own the
    draft is Stage 2's answer and the revision Stage 3's.
    """

    key: str  # pair_key: the very texts that were judged; another revision of the same prompt is another pair
    id: str  # the prompt's, for people who read the file
    decision: Decision
    edited: str | None = None
    note: str = ""
    time: str  # UTC, ISO 8601
    pair: OwnPair | None = None  # the texts, where no file of pairs holds them

    @pydantic.model_validator(mode="after")
    def _an_edit_has_a_text(self) -> Override:
        if (self.decision == "edit") != bool(self.edited and self.edited.strip()):
            raise ValueError("the decision 'edit', and no other, comes with a text in 'edited'")
        return self


def pair_key(prompt: str, base_response: str, revised_response: str) -> str:
    """Names a pair by its texts: 16 hexadecimal digits of their sha256."""
    content = json.dumps([prompt, base_response, revised_response])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def append_override(
    path: Path,
    key: str,
    pair_id: str,
    decision: Decision,
    edited: str | None = None,
    note: str = "",
    pair: OwnPair | None = None,
) -> Override:
    """Add one decision to the file and return it; it is on disk then."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    override = Override(key=key, id=pair_id, decision=decision, edited=edited, note=note, time=time, pair=pair)
    JsonlStore(path).append([override.model_dump(exclude=None if pair else {"pair"})])
    return override


def read_overrides(path: Path) -> dict[str, Override]:
    """The decision that stands for each pair, by pair_key; an empty dictionary if there is no file.

    Raises:
        CaiError: a line is no decision; the message names it.
    """
    decisions: dict[str, list[Override]] = {}
    if not path.exists():
        return {}
    for number, row in enumerate(read_jsonl(path), start=1):
        override = _validated(row, path, number)
        made = decisions.setdefault(override.key, [])
        if override.decision == "undo":
            del made[-1:]
        else:
            made.append(override)
    return {key: made[-1] for key, made in decisions.items() if made}


def _validated(row: dict[str, Any], path: Path, number: int) -> Override:
    try:
        return Override.model_validate(row)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the row"
        raise CaiError(
            f"{path}, row {number}: {place}: {first['msg']}.", "Correct or remove that line; the inspector writes it."
        ) from error
