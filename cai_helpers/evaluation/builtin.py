"""The evaluation sets that come with the package, written for it: assets/evaluation/*.jsonl."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from cai_helpers.prompts.split import prompt_id
from cai_helpers.schema import BENIGN, HARMFUL, Message, Messages, Prompt

# Prompts that every policy answers. unsafe: nobody should comply; scary: harmless, but worded so that a careless filter
# stumbles; helpfulness: everyday requests; premises: each takes something false for granted; counterfactuals: pairs
# that differ in one word for a group of people.
PromptSet = Literal["unsafe", "scary", "helpfulness", "premises", "counterfactuals"]
# Two answers a prompt, of which the policy should find the first more likely.
ChoiceSet = Literal["questions", "premises", "options"]
PROMPT_SETS: tuple[PromptSet, ...] = get_args(PromptSet)
CHOICE_SETS: tuple[ChoiceSet, ...] = get_args(ChoiceSet)

SET_MEANING: dict[str, str] = {
    "unsafe": "unsafe requests",
    "scary": "safe requests that sound unsafe",
    "helpfulness": "everyday requests",
    "premises": "questions with a false premise",
    "counterfactuals": "pairs that differ in one word for a group",
    "questions": "questions with a known answer",
    "options": "a fair and an unfair answer",
}

_Item = TypeVar("_Item")


class Choice(NamedTuple):
    """A prompt with a right (or fair) and a wrong (or unfair) answer."""

    prompt: str
    right: str
    wrong: str

    @property
    def messages(self) -> Messages:
        return [Message(role="user", content=self.prompt)]


class Premise(NamedTuple):
    """A question that takes something false for granted."""

    choice: Choice
    names: list[str]  # an answer that holds one of these words, or their beginning, names the premise

    def is_named_in(self, answer: str) -> bool:
        """Whether `answer` says that the premise is false, by the words that only such an answer needs."""
        plain = " ".join(answer.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
        return any(re.search(rf"\b{re.escape(name)}(?!\d)", plain) for name in self.names)


class Counterfactual(NamedTuple):
    """One request about two groups of people, between which no difference should be made."""

    first: str
    second: str


def load_prompts(name: PromptSet, limit: int | None = None, seed: int = 0) -> list[Prompt]:
    """The prompts of a set; a limit draws so many by the seed, and whole pairs of the counterfactuals.

    `category` is harmless (harmful requests) in the unsafe set and helpful (benign ones) in all others.
    """
    category = HARMFUL if name == "unsafe" else BENIGN
    if name == "counterfactuals":
        pairs = load_counterfactuals(None if limit is None else max(1, limit // 2), seed)
        texts = [text for pair in pairs for text in pair]
    else:
        texts = _drawn([row["prompt"] for row in _rows(name)], limit, f"{seed}:{name}")
    return [_prompt(text, category, name) for text in texts]


def load_choices(name: ChoiceSet, limit: int | None = None, seed: int = 0) -> list[Choice]:
    choices = [_choice(row) for row in _rows(name)]
    return _drawn(choices, limit, f"{seed}:{name}")


def load_premises() -> dict[str, Premise]:
    """All of them, by prompt id."""
    return {id_of(row["prompt"]): Premise(_choice(row), row["names"]) for row in _rows("premises")}


def load_counterfactuals(limit: int | None = None, seed: int = 0) -> list[Counterfactual]:
    pairs = [
        Counterfactual(*(row["prompt"].replace("{group}", group) for group in row["groups"]))
        for row in _rows("counterfactuals")
    ]
    return _drawn(pairs, limit, f"{seed}:counterfactuals")


def id_of(text: str) -> str:
    """The prompt id of a single user turn."""
    return prompt_id([Message(role="user", content=text)])


def _prompt(text: str, category: str, name: str) -> Prompt:
    messages = [Message(role="user", content=text)]
    return Prompt(id=prompt_id(messages), messages=messages, category=category, source=f"built-in: {name}")


def _choice(row: dict[str, Any]) -> Choice:
    return Choice(row["prompt"], row["right"], row["wrong"])


def _rows(name: str) -> list[dict[str, Any]]:
    file = resources.files("cai_helpers") / "assets" / "evaluation" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _drawn(items: Sequence[_Item], limit: int | None, salt: str) -> list[_Item]:
    """`limit` of them, in an order that the salt alone decides: a larger limit keeps those of a smaller one."""
    if limit is None:
        return list(items)
    return random.Random(salt).sample(list(items), len(items))[:limit]
