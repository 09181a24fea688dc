"""Does an answer speak of what was asked? Fluent text about something else passes every other check."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

from cai_helpers.measures.intervals import Interval, proportion

_WORD = re.compile(r"\w{3,}")
_STEM = 5  # letters: "steal", "steals" and "stealing" count as one word, in any language with endings
_OTHERS = 4  # strangers' prompts an answer is held against
_ROWS = 5000  # looked at; more sharpen nothing


def topic_fit(prompts: Sequence[str], answers: Sequence[str]) -> Interval | None:
    """Share of answers that have more in common with their own prompt than with another one; chance is 50 %.

    What they have in common: the words that stand in both, rare ones counting more (inverse document frequency); a
    tie counts half. A lexical measure, good for comparing and for alarms: near 50 %, answers ignore the prompts.
    Leave refusals out: "I can't help with that" has nothing in common with any prompt. None of fewer than two rows.
    """
    if len(prompts) < 2:
        return None
    fits = answer_fits(prompts, answers)
    return proportion(sum(fits), len(fits))


def looked_at(rows: int) -> list[int]:
    """Places of the rows that are enough for `topic_fit`, in a fixed order: all, or so many drawn from them."""
    return random.Random(0).sample(range(rows), min(rows, _ROWS))


def answer_fits(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """For each answer the share of strangers' prompts with which it has less in common than with its own."""
    asked = [_words(prompt) for prompt in prompts]
    frequency = Counter(word for words in asked for word in words)
    weight = {word: math.log(len(asked) / count) for word, count in frequency.items()}
    return [_fit(place, _words(answer), asked, weight) for place, answer in enumerate(answers)]


def _fit(place: int, answer: set[str], asked: list[set[str]], weight: dict[str, float]) -> float:
    own = _in_common(answer, asked[place], weight)
    others = [asked[(place + step) % len(asked)] for step in range(1, min(_OTHERS, len(asked) - 1) + 1)]
    strangers = [_in_common(answer, words, weight) for words in others]
    if not strangers:
        return 0.5
    return sum((own > stranger) + (own == stranger) / 2 for stranger in strangers) / len(strangers)


def _in_common(answer: set[str], prompt: set[str], weight: dict[str, float]) -> float:
    return sum(weight[word] for word in sorted(answer & prompt))


def _words(text: str) -> set[str]:
    return {word[:_STEM] for word in _WORD.findall(text.lower())}
