"""Stage 2 and Stage 3 on one base model in memory: two adapters, of which one at a time is active."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cai_helpers.models.language import (
    STAGE2,
    STAGE3,
    Generator,
    LanguageModel,
    attach_adapter,
    load_base,
    load_tokenizer,
)
from cai_helpers.sections import Models


class Policies:
    """The two models that are compared."""

    def __init__(self, language_model: LanguageModel, has_stage2: bool) -> None:
        self._language_model = language_model
        self._has_stage2 = has_stage2

    @contextmanager
    def playing(self, stage: str) -> Iterator[Generator]:
        """The model as `stage`. Without a Stage-2 adapter, Stage 2 is the base with no adapter active."""
        model = self._language_model.model
        if stage == STAGE2 and not self._has_stage2:
            with model.disable_adapter():
                yield self._language_model
        else:
            model.set_adapter(stage)
            yield self._language_model


def load_policies(models: Models, adapter: Path) -> Policies:
    """The base model with Stage 2's adapter, if there is one, and `adapter`, Stage 3's.

    Raises:
        CaiError: one of them cannot be loaded.
    """
    model = attach_adapter(load_base(models), str(adapter), STAGE3)
    if models.adapter is not None:
        model = attach_adapter(model, models.adapter, STAGE2)
    return Policies(LanguageModel(model, load_tokenizer(models.base)), models.adapter is not None)
