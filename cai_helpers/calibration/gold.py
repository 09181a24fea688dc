"""Gold pairs: two responses to one conversation, of which people said which is better. Read from files and the Hub."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, GoldUnreachable
from cai_helpers.models.hub import locate
from cai_helpers.prompts.sources import Malformed, Row, as_prompt_messages, is_file, parse_transcript, read_rows
from cai_helpers.schema import Messages
from cai_helpers.sections import Calibrate, Prompts

# Columns of the better and of the worse one. Transcripts end on the response; our own form has `messages` beside.
_TRANSCRIPTS = (("text_correct", "text_incorrect"), ("chosen", "rejected"))  # HHH; hh-rlhf
_OWN = ("messages", "better", "worse")
_HUB = Prompts(split="test")  # both subsets of hh-rlhf, of the part that reward models are not trained on


class GoldPair(NamedTuple):
    messages: Messages  # ends on a user turn
    better: str
    worse: str
    category: str


class Gold(NamedTuple):
    pairs: list[GoldPair]
    rows: int  # there were, before any was left out
    left_out: dict[str, int]  # reason → rows


def read_gold(source: str, limit: int | None, seed: int) -> Gold:
    """Gold pairs of a file, a folder, or a Hub dataset; the form is told by the columns.

    Read are HHH (text_correct / text_incorrect), hh-rlhf (chosen / rejected), and our own (messages, better, worse,
    and category if there is one). limit: so many, the same sample for the same seed whatever the order of the rows.

    Raises:
        GoldUnreachable: a Hub dataset cannot be loaded.
        CaiError: there is no such file, it holds no pair, or a row is malformed; the message names the row.
    """
    pairs: dict[str, GoldPair] = {}
    left_out: Counter[str] = Counter()
    number = 0
    for number, row in enumerate(_rows(source), start=1):
        pair = _pair(row, f"{source}, row {number}")
        if isinstance(pair, str):
            left_out[pair] += 1
        elif (key := _key(pair, seed)) in pairs:
            left_out["the same pair again"] += 1  # counted twice, it would make the interval too narrow
        else:
            pairs[key] = pair
    if not pairs:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in left_out.items()) or "it is empty"
        raise CaiError(f"{source} holds no gold pair ({reasons}).", "Give a file with at least a few dozen pairs.")
    return Gold([pairs[key] for key in sorted(pairs)[:limit]], number, dict(left_out))


def gold_source(settings: Calibrate, named: str | None) -> str:
    """The gold pairs that were named just now, or those of the settings.

    Raises:
        CaiError: neither names any.
    """
    source = named or settings.gold
    if source is None:
        raise CaiError(
            "No gold pairs are named.", "Set calibrate.gold to a file or a Hub dataset, or give --gold FILE."
        )
    return source


def gold_identity(source: str) -> str:
    """What `source` stands for: a file or folder by its content, a Hub dataset by its name."""
    path = Path(locate(source))
    return f"{source} ({file_hash(path)})" if path.exists() else source


def _rows(source: str) -> Iterator[Row]:
    if is_file(source):
        yield from read_rows(source, _HUB)
        return
    try:
        yield from read_rows(source, _HUB)
    except CaiError as error:
        raise GoldUnreachable(error.what, error.todo) from error


def _pair(row: Row, place: str) -> GoldPair | str:
    """The pair of a row, or the reason to leave it out: the real files hold a few rows with broken conversations."""
    try:
        pair = _read(row)
    except Malformed as error:
        return str(error)
    if pair is None:
        raise CaiError(
            f"{place}: its columns are {', '.join(row.value) or 'none'}.",
            "Expected are text_correct and text_incorrect, or chosen and rejected (transcripts or message lists), "
            "or messages, better and worse.",
        )
    return pair


def _read(row: Row) -> GoldPair | str | None:
    value = row.value
    for better, worse in _TRANSCRIPTS:
        if better in value and worse in value:
            category = "hhh" if better == "text_correct" and row.category == "unknown" else row.category
            return _of_transcripts(value[better], value[worse], category)
    if all(name in value for name in _OWN):
        better, worse = value["better"], value["worse"]
        if not isinstance(better, str) or not isinstance(worse, str):
            raise Malformed("better and worse must be texts")
        return _checked(as_prompt_messages(value["messages"]), better.strip(), worse.strip(), row.category)
    return None


def _of_transcripts(better: object, worse: object, category: str) -> GoldPair | str:
    better_turns, worse_turns = _turns(better), _turns(worse)
    if better_turns[-1]["role"] != "assistant" or worse_turns[-1]["role"] != "assistant":
        return "does not end on a response"
    if better_turns[:-1] != worse_turns[:-1]:  # then the responses do not answer the same question
        return "the two prompts differ"
    return _checked(
        as_prompt_messages(better_turns[:-1]), better_turns[-1]["content"], worse_turns[-1]["content"], category
    )


def _turns(value: object) -> Messages:
    if isinstance(value, str):
        return parse_transcript(value)
    if (
        isinstance(value, list)
        and value
        and all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value)
    ):
        return [{"role": turn["role"], "content": str(turn["content"]).strip()} for turn in value]
    raise Malformed("neither a transcript nor a message list")


def _checked(messages: Messages, better: str, worse: str, category: str) -> GoldPair | str:
    if not better or not worse:
        return "an empty response"
    if better == worse:
        return "the two responses are the same"
    return GoldPair(messages, better, worse, category)


def _key(pair: GoldPair, seed: int) -> str:
    content = json.dumps([seed, "gold", pair.messages, pair.better, pair.worse])
    return hashlib.sha256(content.encode()).hexdigest()
