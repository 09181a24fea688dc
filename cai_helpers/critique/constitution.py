"""The constitution: principles, their categories, and which of them a pair is judged by."""

from __future__ import annotations

import random
import re
import textwrap
from functools import cached_property
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cai_helpers.yaml_file import read_yaml

_WORDS_SHOWN = 64  # characters of a principle where it stands among others


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Category(_Frozen):
    weight: float = Field(gt=0)  # how readily the category is drawn
    title: str


class Principle(_Frozen):
    id: str
    category: str
    text: str = Field(min_length=10)
    indicators: list[str]
    example: str
    weight: float = Field(1.0, gt=0)  # how readily it is drawn among the relevant ones of its category

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        stems = (re.escape(word).replace(r"\*", r"\w*") for word in self.indicators)
        return re.compile(rf"\b(?:{'|'.join(stems)})\b", re.IGNORECASE)

    def relevant_to(self, text: str) -> bool:
        """True when any indicator stands in `text` as a whole word."""
        return bool(self.indicators) and self._pattern.search(text) is not None


class Constitution(_Frozen):
    categories: dict[str, Category]
    principles: list[Principle] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Constitution:
        ids = [principle.id for principle in self.principles]
        if repeated := {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"principle ids must be unique; repeated: {', '.join(sorted(repeated))}")
        for principle in self.principles:
            if principle.category not in self.categories:
                raise ValueError(f"principle {principle.id} names the unknown category {principle.category!r}")
        return self


def load_constitution(path: Path | None = None) -> Constitution:
    """The constitution in `path`, by default the package's own.

    Raises:
        CaiError: the file is not YAML of the expected form; the message names the lines.
    """
    source = path or resources.files("cai_helpers") / "assets" / "constitution.yaml"
    return read_yaml(source, Constitution, "cai_helpers/assets/constitution.yaml")


def principle_texts(path: Path | None = None) -> dict[str, str]:
    """Text by id: a person reads the words, not "HP001".

    Raises:
        CaiError: as load_constitution.
    """
    return {principle.id: principle.text for principle in load_constitution(path).principles}


def principle_words(path: Path | None = None) -> dict[str, str]:
    """The same, each cut to what a line has room for."""
    return {
        name: textwrap.shorten(text, _WORDS_SHOWN, placeholder=" …") for name, text in principle_texts(path).items()
    }


def select_principles(
    constitution: Constitution, prompt_id: str, text: str, seed: int, most: int = 3
) -> list[Principle]:
    """Draw 1 to `most` principles for one pair, from those whose indicators stand in `text`.

    At most one principle a category, categories in the order of their weight, so a pair is judged from several
    sides. The draw depends on (seed, prompt_id, text) alone: not on order, batch or process. When nothing is
    relevant, one principle is drawn from the whole constitution by weight.
    """
    draw = random.Random(f"{seed}:{prompt_id}")
    relevant = [principle for principle in constitution.principles if principle.relevant_to(text)]
    pool = relevant or constitution.principles
    by_category: dict[str, list[Principle]] = {}
    for principle in pool:
        by_category.setdefault(principle.category, []).append(principle)

    count = min(draw.randint(1, most), len(by_category)) if relevant else 1
    chosen: list[Principle] = []
    names = list(by_category)
    for _ in range(count):
        name = draw.choices(names, [constitution.categories[name].weight for name in names])[0]
        names.remove(name)
        members = by_category[name]
        chosen.append(draw.choices(members, [principle.weight for principle in members])[0])
    return sorted(chosen, key=lambda principle: -constitution.categories[principle.category].weight)
