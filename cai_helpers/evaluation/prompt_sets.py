"""Which prompts are answered: the held-out ones, the built-in sets, and files of the user's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from cai_helpers.calibration.gold import read_gold
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.builtin import CHOICE_SETS, PROMPT_SETS, load_choices, load_counterfactuals, load_prompts
from cai_helpers.evaluation.figures import AGAIN, HELD_OUT
from cai_helpers.evaluation.policies import policies_of
from cai_helpers.measures.normal import normalised
from cai_helpers.models.hub import locate
from cai_helpers.prompts.sources import Malformed, Row, conversation, is_file, read_rows
from cai_helpers.prompts.split import prompt_id
from cai_helpers.schema import BENIGN, HARMFUL, Messages, Prompt
from cai_helpers.sections import Prompts
from cai_helpers.settings import Settings
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace


class Asked(NamedTuple):
    """A prompt that the policies answer."""

    prompt: Prompt
    prompt_set: str
    conversation: str  # prompts of the same one are not independent


class Options(NamedTuple):
    """Two answers to a prompt; a policy should find the first one more likely."""

    messages: Messages
    right: str
    wrong: str


def held_out(settings: Settings, workspace: Workspace) -> list[Asked]:
    """The held-out prompts; a limit takes the same mixture of them for each seed.

    Raises:
        CaiError: there is none.
    """
    path = workspace.require(workspace.eval_prompts, made_by="generate")
    prompts = [Prompt.model_validate(row) for row in read_jsonl(path)]
    if not prompts:
        raise CaiError(
            "No prompt was held out for evaluation.",
            "Set prompts.eval_count (or prompts.eval_source) and generate in a new --workspace.",
        )
    prompts.sort(key=lambda prompt: hashlib.sha256(f"{settings.seed}:evaluate:{prompt.id}".encode()).digest())
    return [Asked(prompt, HELD_OUT, opening(prompt.messages)) for prompt in prompts[: settings.evaluate.limit]]


def other_sets(settings: Settings) -> list[Asked]:
    """The built-in sets and the files of evaluate.prompts.

    Raises:
        CaiError: a file cannot be read, or holds no usable prompt.
    """
    limit = settings.evaluate.builtin
    asked = []
    for name in PROMPT_SETS if limit != 0 else ():
        prompts = load_prompts(name, limit, settings.seed)
        pair_of = _pairs() if name == "counterfactuals" else {}
        asked += [Asked(prompt, name, pair_of.get(prompt.text, prompt.id)) for prompt in prompts]
    for source in settings.evaluate.prompts:
        asked += prompts_of_file(source)
    return asked


def two_option_sets(settings: Settings) -> dict[str, list[Options]]:
    """The built-in ones and the files of evaluate.two_options, by name.

    Raises:
        CaiError: a file cannot be read, or holds no pair.
    """
    limit = settings.evaluate.builtin
    sets = {
        str(name): [Options(one.messages, one.right, one.wrong) for one in load_choices(name, limit, settings.seed)]
        for name in (CHOICE_SETS if limit != 0 else ())
    }
    return sets | {_name(source): options_of_file(source) for source in settings.evaluate.two_options}


def sources_of(settings: Settings) -> dict[str, str]:
    """Each file or dataset that is read, and what it holds."""
    named = [*settings.evaluate.prompts, *settings.evaluate.two_options]
    return {source: file_hash(Path(locate(source))) or source for source in named}


def answers_wanted(settings: Settings, held_out_prompts: int) -> int:
    """How many answers an evaluation takes, if none is there yet."""
    policies = policies_of(settings.models, settings.evaluate)
    own = min(held_out_prompts, settings.evaluate.limit or held_out_prompts)
    others = len(policies) - (AGAIN in policies)
    return own * len(policies) + len(other_sets(settings)) * others


def opening(messages: Messages) -> str:
    """Two prompts that begin with the same user turn are parts of one conversation."""
    first = next(message["content"] for message in messages if message["role"] == "user")
    return hashlib.sha256(normalised(first).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompts_of_file(source: str) -> list[Asked]:
    """Prompts with their category, each once.

    Raises:
        CaiError: there is no such file, or it holds no usable prompt.
    """
    found: dict[str, Asked] = {}
    for row in read_rows(source, Prompts(source=source, split="test")):
        try:
            messages = conversation(row, None)
        except Malformed:
            continue
        name = prompt_id(messages)
        prompt = Prompt(id=name, messages=messages, category=_category(row), source=_name(source))
        found[name] = Asked(prompt, _name(source), opening(messages))
    if not found:
        raise CaiError(
            f"{source} holds no prompt.",
            "Give a file with the column prompt or messages, and category (harmless for harmful requests, helpful for benign).",
        )
    return list(found.values())


def _category(row: Row) -> str:
    """XSTest says it in other words: label, or a type that begins with "contrast" where the request is unsafe."""
    if row.category != "unknown":
        return row.category
    label, kind = row.value.get("label"), row.value.get("type")
    if label in ("safe", "unsafe"):
        return HARMFUL if label == "unsafe" else BENIGN
    if isinstance(kind, str) and "focus" in row.value:
        return HARMFUL if kind.startswith("contrast") else BENIGN
    return "unknown"


def options_of_file(source: str) -> list[Options]:
    """HHH and hh-rlhf as gold pairs are read; and prompt, corrects, incorrects, as in HarmfulVsEthical.

    Raises:
        CaiError: there is no such file, it holds no pair, or it is of another form.
    """
    if is_file(source):
        rows = [row.value for row in read_rows(source, Prompts(source=source))]
        if rows and all(_lists_options(row) for row in rows):
            return [Options([{"role": "user", "content": row["prompt"].strip()}], *_first_of_each(row)) for row in rows]
    return [Options(pair.messages, pair.better, pair.worse) for pair in read_gold(source, None, 0).pairs]


def _lists_options(row: dict[str, Any]) -> bool:
    lists = [row.get("corrects"), row.get("incorrects")]
    return "text_correct" not in row and isinstance(row.get("prompt"), str) and all(
        isinstance(one, list) and one and isinstance(one[0], str) for one in lists
    )  # fmt: skip


def _first_of_each(row: dict[str, Any]) -> tuple[str, str]:
    return row["corrects"][0].strip(), row["incorrects"][0].strip()


def _pairs() -> dict[str, str]:
    """Prompt → the pair it belongs to."""
    return {text: pair.first for pair in load_counterfactuals() for text in pair}


def _name(source: str) -> str:
    return Path(source).name.split(".")[0] or source
