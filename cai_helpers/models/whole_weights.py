"""Every tensor of a file is in the model, and every tensor of the model came from a file; else its name is said.

What is missing is filled with random numbers, what has another name is left out, and neither is an error to the
libraries that load: a random reward head would score, and an adapter without its tensors would be the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cai_helpers.errors import CaiError

# Extra tensors that change nothing: buffers that older versions saved and newer ones compute, and the heads of the
# pre-training, which a classifier has replaced by its own (that one may not be missing).
_COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$")
_OLD_HEADS = re.compile(r"(^|\.)(lm_head|lm_predictions|mask_predictions|cls\.predictions)\.")


def require_whole(info: dict[str, Any], name: str, classifier: bool = False) -> None:
    """info: what `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)` says of the loading.

    Names that the model class itself declares as absent (a tied lm_head) are not in it.

    Raises:
        CaiError: a tensor is missing, left over, or of another shape.
    """
    extra = [key for key in info["unexpected_keys"] if not _COMPUTED.search(key)]
    if classifier:
        extra = [key for key in extra if not _OLD_HEADS.search(key)]
    reshaped = [
        f"{key} ({_shape(found)} in the file, {_shape(wanted)} in the model)"
        for key, found, wanted in info["mismatched_keys"]
    ]
    _require_none(
        f"The weights of {name} do not fit its config.json",
        {"missing": info["missing_keys"], "not part of the model": extra, "of another shape": reshaped},
        "It would run with random numbers in their place. Download it again, or take a model made for this task: "
        "a reward model is a sequence classifier with a trained head, not a language model.",
    )


def require_whole_adapter(model: Any, adapter_name: str, folder: str, name: str) -> None:
    """Compare the names of the tensors in the file with those of the adapter in the model.

    Raises:
        CaiError: one is missing or left over, or there is none at all.
    """
    from peft import get_peft_model_state_dict, load_peft_weights

    filed = load_peft_weights(folder, device="cpu").keys()
    loaded = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False).keys()
    # PEFT files the whole embeddings with an adapter on them, and loads them into the model's own
    extra = filed - loaded - model.state_dict().keys()
    todo = (
        "Train the adapter again, or copy its folder again: adapter_config.json and the weights must belong together."
    )
    if not filed:
        raise CaiError(f"The adapter {name} holds no tensor.", todo)
    _require_none(
        f"The adapter {name} is not what its adapter_config.json describes",
        {"missing": loaded - filed, "without a place in the base model": extra},
        todo,
    )


def _require_none(what: str, wrong: dict[str, Iterable[str]], todo: str) -> None:
    said = [f"{_listed(sorted(names))} {kind}" for kind, names in wrong.items() if names]
    if said:
        raise CaiError(f"{what}: {'; '.join(said)}.", todo)


def _listed(names: list[str]) -> str:
    """The first three by name, and how many there are."""
    if len(names) <= 3:
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
    return f"{', '.join(names[:3])} and {len(names) - 3} more are"


def _shape(size: Iterable[int]) -> str:
    return "×".join(map(str, size))
