"""Which texts are nearly the same as an earlier one? Exact, and quick enough for a million prompts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy

from cai_helpers.measures.normal import normalised

_SHINGLE = 3  # words; one changed word in a text of 20 leaves a similarity of 0.71, in one of 40 of 0.85
_NO_WORD = 0  # fills up a text of fewer words


def near_copies(texts: Sequence[str], similarity: float) -> list[int | None]:
    """For each text the position of the earlier one it nearly repeats, or None.

    Two texts are near-duplicates when the Jaccard similarity of their sets of word 3-grams (Broder 1997, "On the
    resemblance and containment of documents") is at least `similarity`, in (0, 1]. Case and white space do not count.
    A text that is a copy is not compared with later ones: what is near a copy only stays.
    """
    sets = _shingle_sets(texts)
    holders: dict[int, list[int]] = defaultdict(list)
    earliest: list[int | None] = []
    for place in range(len(texts)):
        shingles = sets.of(place)
        # Prefix filter (Bayardo et al. 2007, "Scaling up all pairs similarity search"): near-duplicates share at least
        # one of so many of their rarest shingles, hence only few candidates are compared.
        prefix = shingles[: len(shingles) - math.ceil(similarity * len(shingles)) + 1]
        shared = [shingle for shingle in prefix if shingle >= sets.first_shared]
        candidates = sorted({earlier for shingle in shared for earlier in holders.get(shingle, ())})
        own = set(shingles) if candidates else set()
        near = (earlier for earlier in candidates if _reaches(own, sets, earlier, similarity))
        earliest.append(next(near, None))
        if earliest[-1] is None:
            for shingle in shared:
                holders[shingle].append(place)
    return earliest


class _ShingleSets(NamedTuple):
    """Each text's set of shingles as numbers, the rarest first. Numbers below `first_shared` stand in one text alone."""

    numbers: numpy.ndarray  # of all texts, one after the other
    starts: list[int]  # where a text's begin, and the end of the last
    first_shared: int

    def of(self, place: int) -> list[int]:
        return self.numbers[self.starts[place] : self.starts[place + 1]].tolist()

    def size(self, place: int) -> int:
        return self.starts[place + 1] - self.starts[place]


def _shingle_sets(texts: Sequence[str]) -> _ShingleSets:
    """As arrays of numbers: tuples of words would take ten times the memory of the texts."""
    words, lengths = _numbered_words(texts)
    first = numpy.concatenate([[0], numpy.cumsum(lengths)[:-1]]) if len(lengths) else lengths
    shingles = _numbered(_numbered(words[:-2], words[1:-1]), words[2:]) if len(words) > 2 else words[:0]
    counts = lengths - _SHINGLE + 1
    text = numpy.repeat(numpy.arange(len(lengths)), counts)
    # a text's windows begin at its own words; those that reach into the next text are left out
    within = numpy.arange(len(text)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
    shingles = shingles[numpy.repeat(first, counts) + within]
    text, shingles = _distinct(text, shingles)
    frequency = numpy.bincount(shingles)
    rank = numpy.empty_like(frequency)
    rank[numpy.argsort(frequency, kind="stable")] = numpy.arange(len(frequency))
    text, shingles = _distinct(text, rank[shingles])
    starts = numpy.searchsorted(text, numpy.arange(len(lengths) + 1))
    return _ShingleSets(shingles.astype(numpy.int32), starts.tolist(), int((frequency < 2).sum()))


def _numbered_words(texts: Sequence[str]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(all words of all texts as numbers, how many of each text); a text has at least a shingle's."""
    number: dict[str, int] = {}
    words: list[numpy.ndarray] = []
    for text in texts:
        found = [number.setdefault(word, len(number) + 1) for word in normalised(text).split()]
        words.append(numpy.array(found + [_NO_WORD] * (_SHINGLE - len(found)), dtype=numpy.int32))
    lengths = numpy.array([len(found) for found in words], dtype=numpy.int64)
    return (numpy.concatenate(words) if words else numpy.zeros(0, dtype=numpy.int32)), lengths


def _numbered(left: numpy.ndarray, right: numpy.ndarray) -> numpy.ndarray:
    """A number for each pair, equal for equal pairs; both sides are below 2**31."""
    return numpy.unique(left.astype(numpy.int64) << 32 | right, return_inverse=True)[1].astype(numpy.int32)


def _distinct(text: numpy.ndarray, shingles: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Sorted by text and shingle, each once."""
    both = numpy.unique(text.astype(numpy.int64) << 32 | shingles)
    return both >> 32, both & 0xFFFFFFFF


def _reaches(own: set[int], sets: _ShingleSets, earlier: int, similarity: float) -> bool:
    other = sets.size(earlier)
    if min(len(own), other) / max(len(own), other) < similarity:  # however much they share
        return False
    shared = len(own.intersection(sets.of(earlier)))
    return shared / (len(own) + other - shared) >= similarity
