"""A file of scored pairs as one pandas frame, with everything about a row that can be told from the row alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from cai_helpers.critique.recognition import is_meta_commentary, leaks_template
from cai_helpers.errors import CaiError
from cai_helpers.measures.normal import normalised
from cai_helpers.measures.refusals import is_refusal
from cai_helpers.schema import TWO_SIDED, ScoredPair
from cai_helpers.store import read_jsonl

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


def read_frame(path: Path) -> pd.DataFrame:
    """Every pair of a .jsonl or .jsonl.gz file, as `pair_frame` gives them.

    Raises:
        CaiError: the file is missing or empty, or a row is no scored pair; the message names row and column.
    """
    if not path.is_file():
        raise CaiError(f"There is no file {path}.", "Give the path of a .jsonl file of scored pairs.")
    frame = pair_frame(read_pairs(path))
    if frame.empty:
        raise CaiError(f"{path} holds no pairs.", "Run `cai generate` and `cai score`, or give another file.")
    return frame


def pair_frame(pairs: Iterable[ScoredPair]) -> pd.DataFrame:
    """One row a pair: its columns, and

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
    parts = [_typed(chunk) for chunk in _in_chunks(_row(number, pair) for number, pair in enumerate(pairs))]
    return pd.concat(parts, ignore_index=True) if parts else _typed([])


def _typed(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    # dtype object: pandas 3 would copy every text into Arrow's own strings, and back when one is looked at
    frame = pd.DataFrame(rows, columns=_ROW_COLUMNS, dtype=object)
    return frame.astype(dict.fromkeys(_NUMBERS, float) | dict.fromkeys(_FLAGS, bool))


def _in_chunks(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


LARGEST_SCORE = 1e6  # rewards are logits; differences and sums of larger numbers overflow (and NaN is no smaller)
_CHUNK = 5000  # rows held twice, as tuples and as a frame, while the frame grows
_NUMBERS = ("base_score", "revised_score", "delta", "base_words", "revised_words")
_FLAGS = ("compared", "identical", "base_refuses", "revised_refuses", "meta", "leak", "multi_turn", "context_free")
_ROW_COLUMNS = [
    *("id", "prompt", "base_response", "revised_response", "critic_notes", "base_score", "revised_score", "chosen"),
    *("category", "outcome", "principle_ids", "delta", "compared", "identical", "base_words", "revised_words"),
    *("base_refuses", "revised_refuses", "meta", "leak", "multi_turn", "context_free", "prompt_key"),
]


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


def _row(number: int, pair: ScoredPair) -> tuple[Any, ...]:
    identical = pair.identical
    compared = pair.delta is not None and not identical and pair.outcome in TWO_SIDED
    base_refuses = is_refusal(pair.base_response)
    base_words = len(pair.base_response.split())
    multi_turn = len(pair.messages) > 1 or _ANSWERED.search(pair.prompt) is not None
    return (
        pair.id or f"row {number + 1}",
        pair.prompt,
        pair.base_response,
        pair.revised_response,
        pair.critic_notes,
        pair.base_score,
        pair.revised_score,
        pair.chosen,
        pair.category,
        pair.outcome,
        pair.principle_ids,
        pair.delta,
        compared,
        identical,
        base_words,
        base_words if identical else len(pair.revised_response.split()),
        base_refuses,
        base_refuses if identical else is_refusal(pair.revised_response),
        is_meta_commentary(pair),
        leaks_template(pair),
        multi_turn,
        not multi_turn and is_context_free(pair.prompt),
        hash(normalised(pair.prompt)),
    )


def is_context_free(prompt: str) -> bool:
    """True for a single turn that only makes sense after something: "Yeah.", "What about a gun?"."""
    turn = _SPEAKERS.sub("", prompt)
    words = len(turn.split())
    return words <= _BARE_WORDS or (words <= _FOLLOW_UP_WORDS and _FOLLOW_UP.match(turn) is not None)
