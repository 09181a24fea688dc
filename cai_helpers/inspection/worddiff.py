"""Which words of two texts differ. Pure, and quick for any length of text."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import NamedTuple

# difflib takes time in the square of the differing words; 1,500 random words of a two-word language took 0.4 s, of a real one far less.
MOST_WORDS = 1500
LEAST_SHARED = 0.2  # of two texts' words, for marks to help
# A shared run this short between two changes says nothing: "the" in the middle of a rewritten sentence.
_SHORT_RUN = 2
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


class Piece(NamedTuple):
    """A stretch of one text."""

    text: str
    changed: bool  # it is not in the other text


class WordDiff(NamedTuple):
    """Both texts in pieces; the pieces of a side joined are that side, character by character."""

    before: list[Piece]
    after: list[Piece]
    shared: float | None  # words in common, as a share of both texts' words; None: too long to compare

    @property
    def legible(self) -> bool:
        """Whether marks help: those of two texts that share less are confetti."""
        return self.shared is not None and self.shared >= LEAST_SHARED


def word_diff(before: str, after: str) -> WordDiff:
    """Compare two texts word by word; white space alone is no difference.

    Beginning and end that agree are set aside first. If more than MOST_WORDS of a side are left after that, the texts
    are given back whole and unmarked.
    """
    spans = [[match.span() for match in _WORD.finditer(text)] for text in (before, after)]
    words = [
        [text[slice(*span)] for span in word_spans] for text, word_spans in zip((before, after), spans, strict=True)
    ]
    head = _agreeing(*words)
    tail = _agreeing(*(side[head:][::-1] for side in words))
    middle = [side[head : len(side) - tail] for side in words]
    if max(map(len, middle)) > MOST_WORDS:
        return WordDiff([Piece(before, False)], [Piece(after, False)], None)

    changed = ([False] * len(words[0]), [False] * len(words[1]))
    for tag, left, left_end, right, right_end in _without_short_runs(*middle):
        if tag != "equal":
            changed[0][head + left : head + left_end] = [True] * (left_end - left)
            changed[1][head + right : head + right_end] = [True] * (right_end - right)
    total = len(words[0]) + len(words[1])
    shared = 1 - (sum(changed[0]) + sum(changed[1])) / total if total else 1.0
    return WordDiff(_pieces(before, spans[0], changed[0]), _pieces(after, spans[1], changed[1]), shared)


def _agreeing(left: list[str], right: list[str]) -> int:
    """Length of the longest common beginning."""
    count = 0
    for left_word, right_word in zip(left, right, strict=False):
        if left_word != right_word:
            break
        count += 1
    return count


def _without_short_runs(left: list[str], right: list[str]) -> list[tuple[str, int, int, int, int]]:
    """difflib's opcodes, of which equal runs of one or two words between two changes are changes too."""
    opcodes = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    last = len(opcodes) - 1
    return [
        (
            "replace" if tag == "equal" and 0 < place < last and end - start <= _SHORT_RUN else tag,
            start,
            end,
            other_start,
            other_end,
        )
        for place, (tag, start, end, other_start, other_end) in enumerate(opcodes)
    ]


def _pieces(text: str, spans: list[tuple[int, int]], changed: list[bool]) -> list[Piece]:
    """Neighbouring words of a kind as one piece. White space between two kinds goes with the unchanged one."""
    pieces: list[Piece] = []
    start = 0
    for place in range(1, len(spans)):
        if changed[place] != changed[place - 1]:
            cut = spans[place][0] if changed[place] else spans[place - 1][1]
            pieces.append(Piece(text[start:cut], changed[place - 1]))
            start = cut
    if start < len(text) or not pieces:
        pieces.append(Piece(text[start:], bool(changed) and changed[-1]))
    return pieces
