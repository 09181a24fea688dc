"""Answers to held-out prompts, kept by what they depend on: one that is on disk is not generated again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from cai_helpers.contents import file_hash
from cai_helpers.evaluation.figures import AGAIN
from cai_helpers.manifest import Fingerprint
from cai_helpers.models.generator import Generator
from cai_helpers.models.hub import locate
from cai_helpers.schema import Completion, Prompt
from cai_helpers.screen import Bar
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore

Answers = dict[tuple[str, str], Completion]  # (prompt id, policy) → what the model said


def basis_of(settings: Settings, adapter: str | None) -> Fingerprint:
    """What an answer depends on, besides its prompt."""
    return {
        "seed": settings.seed,
        "models.base": _content(settings.models.base),
        "adapter": _content(adapter),
        "models.dtype": settings.models.dtype,
        "evaluate.max_tokens": settings.evaluate.max_tokens,
        "evaluate.temperature": settings.evaluate.temperature,
        "evaluate.top_p": settings.evaluate.top_p,
    }


def _content(name: str | None) -> str | None:
    """A folder by what is in it and not by its path: a workspace that is moved or renamed keeps its answers."""
    return None if name is None else file_hash(Path(locate(name))) or name


def seeded(settings: Settings, policy: str) -> Settings:
    """The settings that `policy` answers with: Stage 2 again has the next seed."""
    return settings.model_copy(update={"seed": settings.seed + 1}) if policy == AGAIN else settings


def weights_of(settings: Settings, adapter: str | None) -> str:
    """Names the weights of a policy, in their precision."""
    content = [_content(settings.models.base), _content(adapter), settings.models.dtype]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def run_of(settings: Settings, adapter: str | None) -> str:
    """Names the answers of one policy under these settings."""
    return hashlib.sha256(json.dumps(basis_of(settings, adapter), sort_keys=True).encode()).hexdigest()[:12]


def known_answers(store: JsonlStore, prompts: list[Prompt], runs: dict[str, str]) -> Answers:
    """Those of `runs`, stage → run, that are on disk."""
    stored = {row["id"]: Completion.model_validate(row["completion"]) for row in store.rows()}
    wanted = {(prompt.id, stage): f"{run}/{prompt.id}" for prompt in prompts for stage, run in runs.items()}
    return {key: stored[name] for key, name in wanted.items() if name in stored}


class Keep(NamedTuple):
    """Where the answers of one policy go, and how many at once: waiting for the disk after each would cost minutes."""

    store: JsonlStore
    run: str
    stage: str
    size: int

    def write(self, completions: dict[str, Completion]) -> None:
        self.store.append(
            {"id": f"{self.run}/{name}", "stage": self.stage, "completion": completion.model_dump()}
            for name, completion in completions.items()
        )


def answer(settings: Settings, generator: Generator, prompts: list[Prompt], keep: Keep, bar: Bar) -> Answers:
    """The answers to `prompts`; those that were made before an error or a Ctrl-C are on disk as well."""
    from cai_helpers.models.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=settings.evaluate.max_tokens,
        temperature=settings.evaluate.temperature,
        top_p=settings.evaluate.top_p,
        seed=settings.seed,
    )
    chats = [prompt.messages for prompt in prompts]
    keys = [f"{prompt.id}/evaluate" for prompt in prompts]  # the same for all policies: one source of randomness
    answers: Answers = {}
    unwritten: dict[str, Completion] = {}
    try:
        for index, completion in generator.generate(chats, sampling, keys, keep.size):
            answers[prompts[index].id, keep.stage] = unwritten[prompts[index].id] = completion
            bar.update()
            if len(unwritten) == keep.size:
                keep.write(unwritten)
                unwritten = {}
    finally:
        keep.write(unwritten)
    return answers
