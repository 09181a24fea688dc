"""The adapter's weights as they lie in an archive."""

from __future__ import annotations

import json
import struct

from cai_helpers.errors import CaiError

_TRAIN_AGAIN = "Run `cai train --fresh`."


def count_finite_tensors(content: bytes) -> int:
    """How many tensors a safetensors file holds, all of them finite.

    Raises:
        CaiError: it is no such file, or a number is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except SafetensorError as error:
        raise CaiError(f"The adapter's weights cannot be read: {error}", _TRAIN_AGAIN) from error
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CaiError(f"The adapter holds values that are not finite, in {broken[0]}.", _TRAIN_AGAIN)
    return len(tensors)


def metadata_of(content: bytes) -> dict[str, str]:
    """The metadata in the head of a safetensors file; none where it is no such file."""
    if len(content) < 8:
        return {}
    (length,) = struct.unpack("<Q", content[:8])
    try:
        head = json.loads(content[8 : 8 + length])
    except ValueError:
        return {}
    return head.get("__metadata__", {}) if isinstance(head, dict) else {}
