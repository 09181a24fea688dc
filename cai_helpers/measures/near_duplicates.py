"""Which texts are nearly the same as an earlier one? Exact, and quick enough for a million prompts."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy

from cai_helpers.measures.normal import normalised

_SHINGLE = 3  # words; one changed word in a text of 20 leaves a similarity of 0.71, in one of 40 of 0.85
_NO_WORD = 0  # fills up a text of fewer words
_AT_ONCE = 1_000_000  # numbers looked up in one go


def near_copies(texts: Iterable[str], similarity: float) -> list[int | None]:
    """For each text the position of the earlier one it nearly repeats, or None.

    Two texts are near-duplicates when the Jaccard similarity of their sets of word 3-grams (Broder 1997, "On the
    resemblance and containment of documents") is at least `similarity`, in (0, 1]. Case and white space do not count.
    A text that is a copy is not compared with later ones: what is near a copy only stays.
    """
    numbers = WordNumbers()
    for text in texts:
        numbers.add(text)
    return near_copies_in(numbers, numpy.arange(len(numbers)), similarity)


class WordNumbers:
    """Texts as the numbers of their words: four bytes a word, and the texts need not stay."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._words = array("i")
        self._lengths = array("q")

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, text: str) -> None:
        number = self._number
        found = [number.setdefault(word, len(number) + 1) for word in normalised(text).split()]
        found += [_NO_WORD] * (_SHINGLE - len(found))
        self._words.extend(found)
        self._lengths.append(len(found))

    def words(self) -> numpy.ndarray:
        return numpy.frombuffer(self._words, dtype=numpy.int32)

    def lengths(self) -> numpy.ndarray:
        """Words of each text; it has at least a shingle's."""
        return numpy.frombuffer(self._lengths, dtype=numpy.int64)


def near_copies_in(texts: WordNumbers, order: numpy.ndarray, similarity: float) -> list[int | None]:
    """As `near_copies`, of the texts in another order: positions are those in `order`."""
    if not len(texts):
        return []
    sets = _shingle_sets(texts, order)
    holders: dict[int, list[int]] = defaultdict(list)
    earliest: list[int | None] = []
    for place in range(len(order)):
        shingles = sets.of(place)
        least = math.ceil(similarity * len(shingles))  # so many a near-duplicate has in common with this one
        # Prefix filter (Bayardo et al. 2007, "Scaling up all pairs similarity search"): of what two near-duplicates share,
        # the two rarest stand among so many rarest of each (one, where they may share but one), so few are compared.
        prefix = shingles[: len(shingles) - least + 2]
        shared = [shingle for shingle in prefix if shingle >= sets.first_shared]
        candidates = sorted(_candidates([holders[shingle] for shingle in shared if shingle in holders], least))
        own = set(shingles) if candidates else set()
        near = (earlier for earlier in candidates if _reaches(own, sets, earlier, similarity))
        earliest.append(next(near, None))
        if earliest[-1] is None:
            for shingle in shared:
                holders[shingle].append(place)
    return earliest


def _candidates(holding: list[list[int]], least: int) -> set[int]:
    """Texts that stand in two of the lists; in one, where one shingle in common can be enough."""
    once: set[int] = set()
    twice: set[int] = set()
    for places in holding:
        twice.update(once.intersection(places))
        once.update(places)
    return once if least < 2 else twice


class _ShingleSets(NamedTuple):
    """Each text's set of shingles as numbers, the rarest first. Numbers below `first_shared` stand in one text alone."""

    numbers: numpy.ndarray  # of all texts, one after the other
    starts: list[int]  # where a text's begin, and the end of the last
    first_shared: int

    def of(self, place: int) -> list[int]:
        return self.numbers[self.starts[place] : self.starts[place + 1]].tolist()

    def size(self, place: int) -> int:
        return self.starts[place + 1] - self.starts[place]


def _shingle_sets(texts: WordNumbers, order: numpy.ndarray) -> _ShingleSets:
    """As arrays of numbers: tuples of words would take ten times the memory of the texts."""
    words, lengths = texts.words(), texts.lengths()
    shingles = _numbered(_numbered(words[:-2], words[1:-1]), words[2:])
    within = numpy.ones(len(shingles), dtype=bool)
    ends = numpy.cumsum(lengths)[:-1]
    within[ends - 1] = within[ends - 2] = False  # windows that reach into the next text
    position = numpy.empty(len(order), dtype=numpy.int64)
    position[order] = numpy.arange(len(order))
    # text and shingle in one number, which is sorted quickly
    both = numpy.repeat(position, lengths - _SHINGLE + 1) << 32
    both |= shingles[within]
    both = _distinct(both)
    shingles = (both & 0xFFFFFFFF).astype(numpy.int32)
    frequency = numpy.bincount(shingles)
    rank = numpy.empty_like(frequency)
    rank[numpy.argsort(frequency, kind="stable")] = numpy.arange(len(frequency))
    both &= ~0xFFFFFFFF
    both |= rank[shingles]
    both.sort()
    starts = numpy.searchsorted(both, numpy.arange(len(order) + 1) << 32)
    return _ShingleSets((both & 0xFFFFFFFF).astype(numpy.int32), starts.tolist(), int((frequency < 2).sum()))


def _numbered(left: numpy.ndarray, right: numpy.ndarray) -> numpy.ndarray:
    """A number for each pair, equal for equal pairs; both sides are below 2**31."""
    both = left.astype(numpy.int64) << 32
    both |= right
    kinds = _distinct(both.copy())
    numbers = numpy.empty(len(both), dtype=numpy.int32)
    for start in range(0, len(both), _AT_ONCE):
        numbers[start : start + _AT_ONCE] = numpy.searchsorted(kinds, both[start : start + _AT_ONCE])
    return numbers


def _distinct(values: numpy.ndarray) -> numpy.ndarray:
    """Sorted, each once. They are sorted where they stand: numpy.unique would take ten times their memory."""
    values.sort()
    return values[numpy.concatenate([[True], values[1:] != values[:-1]])]


def _reaches(own: set[int], sets: _ShingleSets, earlier: int, similarity: float) -> bool:
    other = sets.size(earlier)
    if min(len(own), other) / max(len(own), other) < similarity:  # however much they share
        return False
    shared = len(own.intersection(sets.of(earlier)))
    return shared / (len(own) + other - shared) >= similarity
