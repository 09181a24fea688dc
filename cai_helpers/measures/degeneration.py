"""Is a text broken as text? Loops and empty answers, whatever they were meant to say."""

from __future__ import annotations

import re

# Share of repeated word 4-grams: people's text lies near 0.01, greedy loops near 0.44 (Welleck et al. 2020,
# arXiv 1908.04319).
DEGENERATE_REPETITION = 0.3
_RUN = 20  # times the same letter
_CHARACTER_RUN = re.compile(rf"([^\W_])\1{{{_RUN - 1},}}")


def is_degenerate(text: str) -> bool:
    """True of an empty text, and of one that repeats itself: see DEGENERATE_REPETITION."""
    words = text.split()
    if not words or repetition(text) > DEGENERATE_REPETITION:
        return True
    # only a long word holds a run; looking for one first is ten times as fast
    return max(map(len, words)) >= _RUN and _CHARACTER_RUN.search(text) is not None


def repetition(text: str, length: int = 4) -> float:
    """Share of word n-grams that occurred before (seq-rep-n of Welleck et al. 2020); 0 for a text shorter than one."""
    words = text.lower().split()
    count = len(words) - length + 1
    if count < 1:
        return 0.0
    return 1 - len(set(zip(*(words[start:] for start in range(length)), strict=False))) / count
