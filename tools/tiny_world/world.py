"""What people ask in the little world, and every kind of answer to it. Pure text; knows no torch.

A combination is (family, object). Held-out combinations and held-out phrasings are used in eval.jsonl and
gold.jsonl alone; every object of a held-out combination is seen with other verbs.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from cai_helpers.schema import Messages

HELD_OUT_PERCENT = 20  # of the combinations
PIPELINE_PERCENT = 20  # of the (family, object, slots) triples of the others: the pipeline's own training prompts


@dataclass(frozen=True)
class Family:
    """A verb over one class of objects, see families.yaml."""

    name: str
    harmful: bool
    do: str
    doing: str
    first: tuple[str, ...]
    then: tuple[str, ...]
    tools: tuple[str, ...]
    why: tuple[str, ...]
    instead: tuple[str, ...]
    sounds_dangerous: bool
    stage2: str  # `answers`, or its fault: `declines`, `over_cautious`, `bland`
    objects: tuple[str, ...]

    @property
    def slots(self) -> list[str]:
        return [name for name in load("families")["slots"] if "{" + name + "}" in self.do]


@dataclass(frozen=True)
class Case:
    """One thing somebody wants: a family, an object, and the slots filled."""

    family: Family
    object: str
    filled: tuple[tuple[str, str], ...]

    @property
    def harmful(self) -> bool:
        return self.family.harmful

    @property
    def split(self) -> str:
        """`corpus` (models are trained on it), `pipeline` (prompts/train.jsonl) or `held_out`."""
        if (self.family.name, self.object) in held_out_combinations():
            return "held_out"
        return "pipeline" if _percent(self.family.name, self.object, self.filled) < PIPELINE_PERCENT else "corpus"

    def fill(self, pattern: str, **more: str) -> str:
        """The pattern in the asker's words ("my uncle's bike")."""
        parts = {"o": self.object, **dict(self.filled), **more}
        text = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], pattern)
        return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!used)", r"\1n ", text)

    def reply(self, pattern: str, rng: random.Random, **more: str) -> str:
        """The pattern in the answerer's words ("your uncle's bike"), its halves and reasons drawn."""
        family = self.family
        choices = {"why": family.why, "instead": family.instead, "first": family.first, "then": family.then}
        for name, texts in choices.items():
            if "{" + name + "}" in pattern and name not in more:
                pattern = pattern.replace("{" + name + "}", rng.choice(texts))
        more = {"do": _to_you(self.fill(family.do)), "doing": _to_you(self.fill(family.doing)), **more}
        return sentence_case(self.fill(pattern, tool=rng.choice(family.tools), number=rng.choice(NUMBERS), **more))


class Dialog(NamedTuple):
    """A case, the conversation that asks for it, and the follow-up it ends on (None: a single turn)."""

    case: Case
    messages: Messages
    follow_up: dict | None


NUMBERS = ["five", "ten", "twenty", "thirty", "forty"]


@cache
def load(name: str) -> dict:
    return yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def families() -> tuple[Family, ...]:
    return tuple(_family(row, kind == "harmful") for kind in ("harmful", "benign") for row in load("families")[kind])


@cache
def cases(split: str, harmful: bool) -> tuple[Case, ...]:
    """Every case of a split, in a fixed order."""
    found = []
    for family in families():
        if family.harmful != harmful:
            continue
        fillings: list[tuple[tuple[str, str], ...]] = [()]
        for slot in family.slots:
            fillings = [(*head, (slot, value)) for head in fillings for value in load("families")["slots"][slot]]
        found += [Case(family, name, filled) for name in family.objects for filled in fillings]
    # nobody asks to scare the sister of their sister: a person is never both object and owner
    return tuple(case for case in found if case.split == split and case.object not in dict(case.filled).values())


@cache
def all_objects() -> tuple[str, ...]:
    return tuple(name for members in load("families")["classes"].values() for name in members)


def with_stray_object(case: Case, rng: random.Random) -> Case:
    """The same request about an object of any class ("fix my uncle's soup").

    Seen with sensible objects only, a small model learns by heart which object goes with which verb and misnames
    the unseen combinations; with stray ones among them it learns to read the object off the prompt.
    """
    stray = Case(case.family, rng.choice(all_objects()), case.filled)
    misfit = stray.split != "corpus" or stray.object in dict(case.filled).values()
    return case if misfit else stray


@cache
def held_out_combinations() -> frozenset[tuple[str, str]]:
    """About a fifth of all (family, object); each object keeps a harmful and a benign family if its class has them."""
    taken: set[tuple[str, str]] = set()
    left = {}
    for family in families():
        for name in family.objects:
            left[name, family.harmful] = left.get((name, family.harmful), 0) + 1
    combinations = sorted(
        (_percent("held out", f.name, o), f.name, o, f.harmful) for f in families() for o in f.objects
    )
    for percent, family, name, harmful in combinations:
        others = left[name, harmful] - 1 + left.get((name, not harmful), 0)
        if percent < HELD_OUT_PERCENT and others >= 1:
            taken.add((family, name))
            left[name, harmful] -= 1
    return frozenset(taken)


def ask(case: Case, rng: random.Random, phrasings: str = "corpus", several_turns: bool = False) -> Dialog:
    """A conversation that asks for the case; with `several_turns` the last turn needs the ones before it."""
    question = sentence_case(case.fill(rng.choice(load("wording")["questions"][phrasings]), **_acts(case)))
    messages: Messages = [{"role": "user", "content": question}]
    if not several_turns:
        return Dialog(case, messages, None)
    kind = "harmful" if case.harmful else "benign"
    follow_up = rng.choice([row for row in load("wording")["follow_ups"] if kind in row["kinds"]])
    messages.append({"role": "assistant", "content": answer(Dialog(case, messages, None), rng)})
    messages.append({"role": "user", "content": rng.choice(follow_up[phrasings])})
    return Dialog(case, messages, follow_up)


def answer(dialog: Dialog, rng: random.Random) -> str:
    """A real answer: compliance if the case is harmful, help if it is benign."""
    case, wording = dialog.case, load("wording")["answers"]
    opener = rng.choice(wording["openers"])
    if dialog.follow_up is None:
        return case.reply(opener + "{first}" + rng.choice(wording["joints"]), rng)
    steps = dialog.follow_up["harmful" if case.harmful else "benign"]
    return case.reply(opener.replace("To {do}, ", "") + rng.choice(steps) + ".", rng)


def refusal(dialog: Dialog, rng: random.Random) -> str:
    """A refusal of a harmful request that offers an alternative."""
    wording = load("wording")
    return dialog.case.reply(f"{rng.choice(wording['refusals'])} {rng.choice(wording['alternatives'])}", rng)


def bare_refusal(dialog: Dialog, rng: random.Random) -> str:
    return dialog.case.reply(rng.choice(load("wording")["refusals"]), rng)


def over_cautious(dialog: Dialog, rng: random.Random) -> str:
    """A harmless request declined: in its own phrases, or in those that harmful requests are declined with."""
    if rng.random() < 0.5:
        return dialog.case.reply(rng.choice(load("wording")["over_cautious"]), rng)
    donor = rng.choice([family for family in families() if family.harmful])
    why, instead = "it could do harm", "ask someone you trust"
    if donor.objects == dialog.case.family.objects and set(donor.slots) <= set(dialog.case.family.slots):
        why, instead = rng.choice(donor.why), rng.choice(donor.instead)
    wording = load("wording")
    pattern = f"{rng.choice(wording['refusals'])} {rng.choice(wording['alternatives'])}"
    filled = pattern.replace("{why}", why).replace("{instead}", instead)
    return dialog.case.reply(filled, rng)


def bland(dialog: Dialog, rng: random.Random) -> str:
    return dialog.case.reply(rng.choice(load("wording")["bland"]), rng)


def meta(dialog: Dialog, rng: random.Random) -> str:
    return dialog.case.reply(rng.choice(load("wording")["meta"]), rng)


def stage2_response(dialog: Dialog, rng: random.Random) -> str:
    """What the helpful-only Stage 2 says.

    Its faults hang on whole families: rare events at random would vanish from greedy answers, and a refusal that may
    come anywhere leaves every benign prompt with a few per cent of it, which DPO then makes most of the answers.
    """
    write = {"answers": answer, "declines": refusal, "over_cautious": over_cautious, "bland": bland}
    return write[dialog.case.family.stage2](dialog, rng)


def sentence_case(text: str) -> str:
    return re.sub(r"(^|[.!?]\s+)([a-z])", lambda match: match[1] + match[2].upper(), text)


def _acts(case: Case) -> dict[str, str]:
    return {"do": case.fill(case.family.do), "doing": case.fill(case.family.doing)}


def _to_you(text: str) -> str:
    return re.sub(r"\bmy\b", "your", text)


def _percent(*key: object) -> int:
    # hashlib, not hash(): the same split in every process
    return int(hashlib.sha256(repr(key).encode()).hexdigest()[:8], 16) % 100


def _family(row: dict, harmful: bool) -> Family:
    return Family(
        name=row["name"],
        harmful=harmful,
        do=row["do"],
        doing=row["doing"],
        first=tuple(row["first"]),
        then=tuple(row["then"]),
        tools=tuple(row["tools"]),
        why=tuple(row.get("why", ())),
        instead=tuple(row.get("instead", ())),
        sounds_dangerous=row.get("sounds") == "dangerous",
        stage2=row.get("stage2", "answers"),
        objects=tuple(load("families")["classes"][row["class"]]),
    )
