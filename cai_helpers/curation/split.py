"""Which prompts of the dataset are held out from training: by hash, the same whatever the order of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


def held_out_ids(ids: set[str], fraction: float, seed: int) -> set[str]:
    """A fixed share of the prompts, those with the lowest hashes."""
    order = sorted(ids, key=lambda name: split_hash(name, seed))
    return set(order[: round(len(order) * fraction)])


def held_out_rule(pair_ids: set[str], held_out: set[str], seed: int) -> Callable[[str], bool]:
    """Whether a prompt is held out, by the rule that split the pairs: those whose hash is among the lowest.

    The pairs stay split as they are; another prompt is held out where its hash lies below theirs.
    """
    border = max((split_hash(name, seed) for name in held_out), default=b"")

    def rule(name: str) -> bool:
        return name in held_out if name in pair_ids else split_hash(name, seed) < border

    return rule


def split_hash(name: str, seed: int) -> bytes:
    """Orders prompts for the split: the same whatever the order of the file."""
    return hashlib.sha256(f"{seed}:dpo eval:{name}".encode()).digest()
