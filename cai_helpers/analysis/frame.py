"""A file of scored pairs as one pandas frame, with everything about a row that can be told from the row alone."""

from __future__ import annotations

import math
import re
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from cai_helpers.critique.recognition import is_meta_commentary, leaks_template
from cai_helpers.errors import CaiError
from cai_helpers.measures.normal import normalised
from cai_helpers.measures.refusals import is_refusal
from cai_helpers.schema import TWO_SIDED, ScoredPair
from cai_helpers.store import read_jsonl, rows_at

COLUMNS = ("prompt", "base_response", "revised_response", "base_score", "revised_score", "chosen")

_ANSWERED = re.compile(r"(?:^|\n)\s*(?:assistant|ai|model)\s*:\s*\S", re.IGNORECASE)
_SPEAKERS = re.compile(r"^\s*(?:human|user)\s*:\s*|\n\s*assistant\s*:\s*$", re.IGNORECASE)
_BARE_WORDS = 2  # "Yeah." and "Tell me": without what came before nobody can answer
_FOLLOW_UP = re.compile(
    r"^\W*(?:yeah|yes|yep|yup|no|nope|ok|okay|sure|thanks|thank\syou|right|true|exactly|but|and|also|why\snot|"
    r"what\sabout|how\sabout|anything\selse|go\son|like\swhat)\b",
    re.IGNORECASE,
)
_FOLLOW_UP_WORDS = 8  # a longer one usually says what it is about


LARGEST_SCORE = 1e6  # rewards are logits; differences and sums of larger numbers overflow (and NaN is no smaller)
_NUMBERS = ("base_score", "revised_score", "delta", "base_words", "revised_words")
_FLAGS = ("compared", "identical", "base_refuses", "revised_refuses", "meta", "leak", "multi_turn", "context_free")


class PairFrame(NamedTuple):
    """A file of pairs without its texts, which are read again where they are wanted."""

    rows: pd.DataFrame  # see `FrameRows`
    read: Callable[[Collection[int]], dict[int, ScoredPair]]  # pairs by their places, the first 0


def read_frame(path: Path) -> PairFrame:
    """Every pair of a .jsonl or .jsonl.gz file.

    Raises:
        CaiError: the file is missing or empty, or a row is no scored pair; the message names row and column.
    """
    if not path.is_file():
        raise CaiError(f"There is no file {path}.", "Give the path of a .jsonl file of scored pairs.")
    rows = FrameRows()
    for pair in read_pairs(path):
        rows.add(pair)
    if not len(rows):
        raise CaiError(f"{path} holds no pairs.", "Run `cai generate` and `cai score`, or give another file.")
    return rows.frame(path)


def pair_frame(pairs: Iterable[ScoredPair]) -> PairFrame:
    """The frame of pairs that are in no file."""
    rows, held = FrameRows(), list(pairs)
    for pair in held:
        rows.add(pair)
    return PairFrame(rows.table(), lambda places: {place: held[place] for place in places})


class FrameRows:
    """Pairs as they come, about 120 bytes each, whatever the length of their texts. Of each its scores and names, and

    delta             reward of the revision minus reward of the draft; NaN where no revision was scored
    compared          there are two different texts with two scores
    identical         both texts are the same
    base_words, …     length in words
    base_refuses, …   the text declines the request
    meta              the row says, or its text tells, that the revision talks about a response
    leak              the revision holds text of a template
    multi_turn        the prompt has earlier turns
    context_free      the prompt is a follow-up whose earlier turns are gone
    prompt_key        equal for prompts that differ in case and white space alone
    """

    def __init__(self) -> None:
        self._numbers = {name: array("d") for name in _NUMBERS}
        self._flags = {name: bytearray() for name in _FLAGS}
        self._chosen: list[str | None] = []
        self._category: list[str] = []
        self._outcome: list[str] = []
        self._principle_ids: list[list[str]] = []
        self._prompt_key = array("q")
        self._same: dict[tuple[str, ...], list[str]] = {}  # the same principles are one list

    def __len__(self) -> int:
        return len(self._prompt_key)

    def add(self, pair: ScoredPair) -> None:
        for name, number in _numbers(pair).items():
            self._numbers[name].append(math.nan if number is None else number)
        for name, flag in _flags(pair).items():
            self._flags[name].append(flag)
        self._chosen.append(pair.chosen)
        self._category.append(sys.intern(pair.category))
        self._outcome.append(pair.outcome)
        self._principle_ids.append(self._same.setdefault(tuple(pair.principle_ids), pair.principle_ids))
        self._prompt_key.append(hash(normalised(pair.prompt)))

    def table(self) -> pd.DataFrame:
        names = {"chosen": self._chosen, "category": self._category, "outcome": self._outcome}
        # dtype object: pandas 3 would copy every name into Arrow's own strings, and back when one is looked at
        objects = {name: pd.Series(values, dtype=object) for name, values in names.items()}
        return pd.DataFrame(
            {name: np.frombuffer(values, dtype=float) for name, values in self._numbers.items()}
            | {name: np.frombuffer(values, dtype=bool) for name, values in self._flags.items()}
            | objects
            | {"principle_ids": pd.Series(self._principle_ids, dtype=object)}
            | {"prompt_key": np.frombuffer(self._prompt_key, dtype=np.int64)}
        )

    def frame(self, path: Path) -> PairFrame:
        """The frame of the file that the pairs came from."""
        return PairFrame(self.table(), partial(_read_again, path))


def _read_again(path: Path, places: Collection[int]) -> dict[int, ScoredPair]:
    return {place: ScoredPair.model_validate(row) for place, row in rows_at(path, frozenset(places))}


def read_pairs(path: Path) -> Iterator[ScoredPair]:
    """The pairs of a file one by one, validated; errors as `read_frame`."""
    for number, row in enumerate(read_jsonl(path), start=1):
        if missing := [name for name in COLUMNS if name not in row]:
            raise CaiError(
                f"{path}, row {number}: no column {', '.join(missing)}; it has {', '.join(map(str, row))}.",
                f"A file of scored pairs has the columns {', '.join(COLUMNS)}.",
            )
        try:
            pair = ScoredPair.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the row"
            raise CaiError(
                f"{path}, row {number}: {place}: {first['msg']} (it was {str(first['input'])[:80]!r}).",
                "Correct or remove that row.",
            ) from error
        if not all(abs(score) <= LARGEST_SCORE for score in (pair.base_score, pair.revised_score) if score is not None):
            raise CaiError(
                f"{path}, row {number}: a score is not a number that a reward model gives "
                f"({pair.base_score}, {pair.revised_score}).",
                "Score the file again; a reward model that gives NaN runs in too low a precision.",
            )
        yield pair


def _numbers(pair: ScoredPair) -> dict[str, float | None]:
    return {
        "base_score": pair.base_score,
        "revised_score": pair.revised_score,
        "delta": pair.delta,
        "base_words": len(pair.base_response.split()),
        "revised_words": len(pair.revised_response.split()),
    }


def _flags(pair: ScoredPair) -> dict[str, bool]:
    identical = pair.identical
    base_refuses = is_refusal(pair.base_response)
    multi_turn = len(pair.messages) > 1 or _ANSWERED.search(pair.prompt) is not None
    return {
        "compared": pair.delta is not None and not identical and pair.outcome in TWO_SIDED,
        "identical": identical,
        "base_refuses": base_refuses,
        "revised_refuses": base_refuses if identical else is_refusal(pair.revised_response),
        "meta": is_meta_commentary(pair),
        "leak": leaks_template(pair),
        "multi_turn": multi_turn,
        "context_free": not multi_turn and is_context_free(pair.prompt),
    }


def is_context_free(prompt: str) -> bool:
    """True for a single turn that only makes sense after something: "Yeah.", "What about a gun?"."""
    turn = _SPEAKERS.sub("", prompt)
    words = len(turn.split())
    return words <= _BARE_WORDS or (words <= _FOLLOW_UP_WORDS and _FOLLOW_UP.match(turn) is not None)
