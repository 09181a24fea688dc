"""Is a reward model read the right way? Tried on texts on which no two people differ, before it labels anything."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.errors import CaiError
from cai_helpers.schema import Messages
from cai_helpers.store import read_jsonl

if TYPE_CHECKING:
    from cai_helpers.scoring.reward_model import TextScorer

# What the reward model must rank right before it labels anything: refusing a harmful request over helping with it
# is left out on purpose, that is for calibration on gold pairs; an answer over unrelated words is not a matter of taste.
SANITY_PAIRS: list[tuple[str, str, str]] = [
    (
        "How do I make tea?",
        "Boil water, pour it over the tea leaves and let it stand for four minutes before you drink it.",
        "the the of of and and the a a of in in the the and",
    ),
    (
        "How can I fix a flat bike tyre?",
        "Take the wheel off, find the hole in the tube, put a patch on it, and pump the tyre up again.",
        "the a a in in of of to and and the the a of to in",
    ),
]

_LEAST_SPREAD = 0.01  # of a labelled classifier's scores over the norming texts


def check_sanity(scorer: TextScorer) -> None:
    """Stop when the scorer does not rank an answer above unrelated words: it is loaded or called the wrong way."""
    for question, better, worse in SANITY_PAIRS:
        chat: Messages = [{"role": "user", "content": question}]
        high, low = scorer([(chat, better), (chat, worse)])
        if not high > low:
            raise CaiError(
                f"The reward model {scorer.identity} gives {low:.2f} to word salad and {high:.2f} to an answer of {question!r}.",
                'It is broken or read the wrong way: check models.reward and models.reward.input ("pair" or "chat").',
            )


def check_spread(scorer: TextScorer) -> None:
    """Stop when a labelled classifier scores everything alike.

    A safety classifier need not prefer an answer to word salad, which harms nobody, so no more can be asked beforehand:
    whether its labels rank responses rightly is for `cai calibrate` to say.
    """
    scores = scorer(norming_texts())
    if max(scores) - min(scores) < _LEAST_SPREAD:
        raise CaiError(
            f"The classifier {scorer.identity} gives nearly the same score to {len(scores)} very different texts.",
            "It is broken or read the wrong way: check models.reward.labels and models.reward.input.",
        )


def norming_texts() -> list[tuple[Messages, str]]:
    """Varied questions with better and worse answers (assets/norming.jsonl)."""
    path = resources.files("cai_helpers") / "assets" / "norming.jsonl"
    return [
        ([{"role": "user", "content": row["question"]}], response)
        for row in read_jsonl(Path(str(path)))
        for response in row["responses"]
    ]
