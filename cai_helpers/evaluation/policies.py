"""All policies on one base model in memory: two adapters, of which one at a time is active, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cai_helpers.evaluation.figures import AGAIN, BASE, STAGE2, STAGE3
from cai_helpers.models.language import LanguageModel, attach_adapter, load_base, load_tokenizer
from cai_helpers.sections import Evaluate, Models


class Policies:
    """The models that are compared."""

    def __init__(self, language_model: LanguageModel, has_stage2: bool) -> None:
        self._language_model = language_model
        self._has_stage2 = has_stage2

    @contextmanager
    def playing(self, policy: str) -> Iterator[LanguageModel]:
        """The model as `policy`. Without a Stage-2 adapter, Stage 2 is the base with no adapter active."""
        model = self._language_model.model
        if policy == BASE or (policy in (STAGE2, AGAIN) and not self._has_stage2):
            with model.disable_adapter():
                yield self._language_model
        else:
            model.set_adapter(STAGE3 if policy == STAGE3 else STAGE2)
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


def policies_of(models: Models, evaluate: Evaluate) -> list[str]:
    """Who answers the held-out prompts.

    Without a Stage-2 adapter the base is Stage 2. A greedy model says the same under any seed: there is no noise to measure.
    """
    base = [BASE] if models.adapter is not None else []
    return [*base, STAGE2, STAGE3, *([AGAIN] if evaluate.temperature > 0 else [])]
