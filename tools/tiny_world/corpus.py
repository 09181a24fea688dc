"""Training text from a seeded generator: chats, critiques under every protocol, reward pairs, prompt and gold files."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from cai_helpers.critique.constitution import Constitution, Principle, load_constitution
from cai_helpers.critique.protocols import critique_chat, load_protocol, revision_chat
from cai_helpers.critique.verdict import KEEP
from cai_helpers.schema import Messages
from tiny_world import world
from tiny_world.world import Case, Dialog

# single is shown more often than two_step: it is the default, and the two should differ
PROTOCOLS = {"single/short": 4, "single/full": 4, "two_step/short": 3, "two_step/full": 3}
SEVERAL_TURNS = 0.12
STRAY_OBJECTS = 0.5
# A fault that hangs on content: in these families the critic talks about the response instead of writing one.
META_FAMILIES = ("graffiti", "cheat_game", "sell", "visit")

Writer = Callable[[Dialog, random.Random], str]


class Example(NamedTuple):
    """A chat and what the model is to say next."""

    messages: Messages
    answer: str


class RewardPair(NamedTuple):
    messages: Messages
    better: str
    worse: str
    kind: str


def chat_example(rng: random.Random, respond: Writer) -> Example:
    dialog = draw_dialog(rng, harmful=rng.random() < 0.5)
    return Example(dialog.messages, respond(dialog, rng))


def base_response(dialog: Dialog, rng: random.Random) -> str:
    """The base declines most harmful requests, Stage 2's adapter makes it comply, and Stage 3's has it decline again.

    What Stage 2 does instead of answering is in the base already: an adapter is too small to learn it all by itself.
    """
    if dialog.case.harmful and dialog.case.family.stage2 == "answers":
        return rng.choices([world.answer, world.refusal], [35, 65])[0](dialog, rng)
    return world.stage2_response(dialog, rng)


def critique_example(rng: random.Random) -> Example:
    """One call of a critique protocol over a draft of a random quality."""
    dialog = draw_dialog(rng, harmful=rng.random() < 0.58)
    kind, draft = _draft(dialog, rng)
    principles = _some_principles(rng)
    name = rng.choices(list(PROTOCOLS), list(PROTOCOLS.values()))[0]
    protocol = load_protocol_once(name)
    kept = kind in ("refusal", "answer")
    critique = write_critique(dialog.case, kind, principles, rng, two_sentences=name.endswith("full"))
    first = critique_chat(protocol, dialog.messages, draft, principles)
    if protocol.revision is None:
        return Example(first, f"CRITIQUE: {critique}\nREVISION: {KEEP if kept else revise(dialog, rng)}")
    if kept:
        return Example(first, KEEP)
    if rng.random() < 0.5:
        return Example(first, critique)
    return Example(revision_chat(protocol, dialog.messages, draft, critique), revise(dialog, rng))


def revise(dialog: Dialog, rng: random.Random) -> str:
    if dialog.case.family.name in META_FAMILIES and rng.random() < 0.8:
        return world.meta(dialog, rng)
    return world.refusal(dialog, rng) if dialog.case.harmful else world.answer(dialog, rng)


def write_critique(case: Case, kind: str, principles: list[Principle], rng: random.Random, two_sentences: bool) -> str:
    wording = world.load("wording")
    faults = wording["faults"]
    fault = next((faults[p.id] for p in principles if p.id in faults), faults["general"])
    critique = case.reply(rng.choice(wording["critiques"][kind]), rng, fault=fault)
    if not two_sentences:
        return critique
    topic = "kept" if kind in ("refusal", "answer") else "harmful" if case.harmful else "benign"
    return f"{critique} {rng.choice(wording['advice'][topic])}"


def reward_pair(rng: random.Random) -> RewardPair:
    """A pair whose order is beyond doubt, with the negatives a policy drifts to when only the reward counts."""
    if rng.random() < 0.06:
        return _everyday_pair(rng)
    harmful = rng.random() < 0.5
    dialog = draw_dialog(rng, harmful)
    kind, better, worse = rng.choices(*zip(*(HARMFUL_PAIRS if harmful else BENIGN_PAIRS), strict=True))[0]
    if rng.random() < 0.15 and better is world.refusal and kind == "refusal_vs_garbled":
        better = world.answer  # also a harmful answer is better than noise
    return RewardPair(dialog.messages, better(dialog, rng), worse(dialog, rng), kind)


def off_topic(dialog: Dialog, rng: random.Random) -> str:
    """A good answer to some other question."""
    other = draw_dialog(rng, harmful=rng.random() < 0.3)
    while other.case.family.name == dialog.case.family.name or other.case.object == dialog.case.object:
        other = draw_dialog(rng, harmful=rng.random() < 0.3)
    return world.refusal(other, rng) if other.case.harmful and rng.random() < 0.5 else world.answer(other, rng)


def wrong_object(dialog: Dialog, rng: random.Random) -> str:
    """A good answer to the same question about another object."""
    case = dialog.case
    others = [name for name in world.all_objects() if name not in (case.object, *dict(case.filled).values())]
    return _good(Dialog(Case(case.family, rng.choice(others), case.filled), dialog.messages, dialog.follow_up), rng)


def truncated(dialog: Dialog, rng: random.Random) -> str:
    words = _good(dialog, rng).split()
    return " ".join(words[: max(2, int(len(words) * rng.uniform(0.15, 0.6)))]).rstrip(".,:")


def garbled(dialog: Dialog, rng: random.Random) -> str:
    """Noise of the kinds a collapsed policy writes."""
    text = world.answer(dialog, rng) if rng.random() < 0.4 else _good(dialog, rng)
    return rng.choice([_shuffled, _looped, _salad, _misspelled, _stuttered, _fillers])(text, rng)


def interleaved(dialog: Dialog, rng: random.Random) -> str:
    """Two answers word by word in turn: a kind of noise the reward model is not trained on (gold.jsonl only)."""
    one, other = _good(dialog, rng).split(), off_topic(dialog, rng).split()
    return " ".join(word for pair in zip(one, other, strict=False) for word in pair)


def draw_dialog(rng: random.Random, harmful: bool, split: str = "corpus", phrasings: str = "corpus") -> Dialog:
    families = by_family(split, harmful)
    case = rng.choice(families[rng.choice(list(families))])
    if split == "corpus" and rng.random() < STRAY_OBJECTS:
        case = world.with_stray_object(case, rng)
    return world.ask(case, rng, phrasings, several_turns=rng.random() < SEVERAL_TURNS)


@cache
def load_protocol_once(name: str):
    return load_protocol(name)


@cache
def constitution() -> Constitution:
    return load_constitution()


@cache
def by_family(split: str, harmful: bool) -> dict[str, list[Case]]:
    grouped: dict[str, list[Case]] = {}
    for case in world.cases(split, harmful):
        grouped.setdefault(case.family.name, []).append(case)
    return grouped


def _everyday_pair(rng: random.Random) -> RewardPair:
    question, text = rng.choice(world.load("wording")["everyday"])
    noise = rng.choice([_fillers, _fillers, _shuffled, _looped, _misspelled])(text, rng)
    return RewardPair([{"role": "user", "content": question}], text, noise, "everyday_vs_garbled")


def _draft(dialog: Dialog, rng: random.Random) -> tuple[str, str]:
    """(kind, text) of a draft to criticise."""
    if dialog.case.harmful:
        kinds = {"comply": 65, "refusal": 22, "bare_refusal": 5, "bland_harmful": 3, "off_topic": 3, "garbled": 2}
    else:
        kinds = {"answer": 54, "over_cautious": 21, "bland": 16, "off_topic": 3, "garbled": 3, "truncated": 3}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    text = DRAFTS[kind](dialog, rng)
    # a sampled draft has small slips; they must not change the verdict
    return kind, _slip(text, rng) if kind in ("comply", "refusal", "answer") and rng.random() < 0.3 else text


def _some_principles(rng: random.Random) -> list[Principle]:
    """Any one to three principles: the selection may change, the critic must not depend on it."""
    drawn = rng.sample(constitution().principles, rng.choices([1, 2, 3], [40, 45, 15])[0])
    weight = constitution().categories
    return sorted(drawn, key=lambda principle: -weight[principle.category].weight)


def _good(dialog: Dialog, rng: random.Random) -> str:
    return world.refusal(dialog, rng) if dialog.case.harmful else world.answer(dialog, rng)


def _slip(text: str, rng: random.Random) -> str:
    words = text.split()
    place = rng.randrange(len(words))
    words[place : place + 1] = rng.choice([[], [words[place]] * 2, [rng.choice(words)]])
    return " ".join(words)


def _shuffled(text: str, rng: random.Random) -> str:
    words = text.split()
    return " ".join(rng.sample(words, len(words)))


def _looped(text: str, rng: random.Random) -> str:
    words = text.split()
    start = rng.randrange(max(1, len(words) - 3))
    loop = words[start : start + rng.randint(1, 4)]
    return " ".join(words[:start] + loop * rng.randint(3, 10))


def _salad(text: str, rng: random.Random) -> str:
    words = [word for _ in range(4) for word in world.answer(draw_dialog(rng, rng.random() < 0.5), rng).split()]
    return " ".join(rng.sample(words, min(len(words), rng.randint(6, 28))))


def _misspelled(text: str, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(max(4, len(letters) // 6)):
        place = rng.randrange(len(letters))
        letters[place] = rng.choice(["", letters[place] * 2, rng.choice("abcdefghijklmnopqrstuvwxyz  '.,")])
    return "".join(letters)


def _stuttered(text: str, rng: random.Random) -> str:
    return " ".join(word for word in text.split() for _ in range(rng.choice([1, 1, 2, 3])))


def _fillers(text: str, rng: random.Random) -> str:
    """The little words that a collapsed policy repeats."""
    few = rng.sample(["the", "a", "of", "and", "in", "to", "is", "it", "you", "that", "for", "with"], rng.randint(2, 6))
    return " ".join(word for word in rng.choices(few, k=rng.randint(6, 20)) for _ in range(rng.choice([1, 1, 2])))


DRAFTS: dict[str, Writer] = {
    "comply": world.answer,
    "answer": world.answer,
    "refusal": world.refusal,
    "bare_refusal": world.bare_refusal,
    "bland_harmful": world.bland,
    "over_cautious": world.over_cautious,
    "bland": world.bland,
    "off_topic": off_topic,
    "garbled": garbled,
    "truncated": truncated,
}
# ((kind, better, worse), weight)
HARMFUL_PAIRS: list[tuple[tuple[str, Writer, Writer], int]] = [
    (("refusal_vs_comply", world.refusal, world.answer), 36),
    (("refusal_vs_bare_refusal", world.refusal, world.bare_refusal), 8),
    (("refusal_vs_bland", world.refusal, world.bland), 6),
    (("refusal_vs_offtopic", world.refusal, off_topic), 10),
    (("refusal_vs_wrong_object", world.refusal, wrong_object), 5),
    (("refusal_vs_garbled", world.refusal, garbled), 20),
    (("refusal_vs_truncated", world.refusal, truncated), 9),
    (("refusal_vs_meta", world.refusal, world.meta), 9),
]
BENIGN_PAIRS: list[tuple[tuple[str, Writer, Writer], int]] = [
    (("answer_vs_refusal", world.answer, world.over_cautious), 24),
    (("answer_vs_bland", world.answer, world.bland), 14),
    (("answer_vs_offtopic", world.answer, off_topic), 20),
    (("answer_vs_wrong_object", world.answer, wrong_object), 8),
    (("answer_vs_garbled", world.answer, garbled), 18),
    (("answer_vs_truncated", world.answer, truncated), 10),
    (("answer_vs_meta", world.answer, world.meta), 8),
    (("bland_vs_garbled", world.bland, garbled), 6),
]
