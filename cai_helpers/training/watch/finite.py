"""A number that is not finite stops training before it can spoil a checkpoint."""

from __future__ import annotations

from cai_helpers.errors import CaiError


def not_finite(what: str, step: int) -> CaiError:
    return CaiError(
        f"The {what} is not finite at step {step}; training stopped before it could spoil a checkpoint.",
        "Halve train.learning_rate; on a card with compute capability 8.0 or higher set models.dtype=bf16. "
        "Then `cai train --fresh`.",
    )
