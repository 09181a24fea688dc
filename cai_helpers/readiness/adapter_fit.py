"""Does an adapter belong to a base? Told from the adapter's own file and the base's configuration, in a second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import hub_name, locate
from cai_helpers.models.language import without_weights
from cai_helpers.store import read_json

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's names in a file
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_COPY_AGAIN = "Copy its folder again, or train it again: its weights must be whole."
_OTHER_BASE = (
    "Set models.base to the model that the adapter was trained on (base_model_name_or_path in adapter_config.json), or "
    "name another adapter (--adapter none: start from the base model)."
)


class _Matrix(NamedTuple):
    """One of the two matrices of a LoRA: A is (rank, inputs), B is (outputs, rank)."""

    module: str  # its name in the base model
    side: str  # A or B
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.shape[0 if self.side == "A" else 1]

    @property
    def width(self) -> int:
        """Inputs of A, outputs of B."""
        return self.shape[1 if self.side == "A" else 0]


def adapter_fit(base: str, adapter: str, folder: Path) -> str:
    """What was found, for a person. `folder` is where `adapter` lies.

    Raises:
        CaiError: the adapter is no LoRA, is damaged, holds a number that is not finite, has another rank than its
            adapter_config.json says, or was made for a model of another shape.
    """
    config = read_json(folder / CONFIG_FILE, _COPY_AGAIN)
    if config.get("peft_type") != "LORA":
        raise CaiError(
            f"{adapter} is a {config.get('peft_type')} adapter; Stage 3 goes on with a LoRA.", "Name a LoRA adapter."
        )
    note = _other_name(config, base, adapter)
    if not (folder / WEIGHTS_FILE).is_file():
        if not (folder / "adapter_model.bin").is_file():
            raise CaiError(f"{adapter} has no {WEIGHTS_FILE}.", _COPY_AGAIN)
        return f"{adapter}, weights as a pickle: they are compared with the base when they are loaded{note}"
    matrices = _read_matrices(folder / WEIGHTS_FILE, adapter)
    _require_ranks(matrices, config, adapter)
    _require_shapes(matrices, config, base, adapter)
    return f"{adapter}, rank {config['r']}, {len(matrices)} matrices that fit {base}, all finite{note}"


def _other_name(config: dict[str, Any], base: str, adapter: str) -> str:
    """A warning where the adapter names its base by another path or owner.

    Raises:
        CaiError: it names another model of the Hub. Of the same shape it would load without a word, and be wrong.
    """
    named = config.get("base_model_name_or_path")
    if not named or named == base or Path(locate(named)).absolute() == Path(locate(base)).absolute():
        return ""
    said, ours = hub_name(named), hub_name(base)
    if said and ours and said.repository == ours.repository:
        return ""  # at another revision
    are_folders = Path(named).exists() or Path(base).exists()
    if said and ours and not are_folders and _model(said.repository) != _model(ours.repository):
        raise CaiError(
            f"The adapter {adapter} was trained on {named}, and the base model is {base}.",
            f"Set models.base to {named} (base_model in the form), or name an adapter of {base}. If both are the same model "
            f"under two names, write {base} as base_model_name_or_path into its {CONFIG_FILE}.",
        )
    return f"; WARNING: it names {named} as its base, and models.base is {base}"


def _model(name: str) -> str:
    """The name without its owner and what tells a quantised copy of the same weights."""
    return re.sub(r"(-unsloth)?(-bnb-4bit|-4bit|-gptq|-awq)$", "", name.split("/")[1].lower())


def _read_matrices(file: Path, adapter: str) -> list[_Matrix]:
    """The LoRA's matrices by shape; every tensor of the file is looked at."""
    from safetensors import SafetensorError, safe_open

    matrices = []
    try:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise CaiError(
                        f"The adapter {adapter} is broken: {name} holds a number that is not finite.", _COPY_AGAIN
                    )
                if (match := _MATRIX.fullmatch(name.removeprefix(_PREFIX))) is not None:
                    matrices.append(_Matrix(match["module"], match["side"], tuple(tensor.shape)))
    except SafetensorError as error:
        raise CaiError(f"The weights of the adapter {adapter} cannot be read: {error}", _COPY_AGAIN) from error
    if not matrices:
        raise CaiError(f"The adapter {adapter} holds no LoRA matrix.", _COPY_AGAIN)
    return matrices


def _require_ranks(matrices: list[_Matrix], config: dict[str, Any], adapter: str) -> None:
    patterns = config.get("rank_pattern") or {}
    for matrix in matrices:
        rank = next(
            (rank for pattern, rank in patterns.items() if re.match(rf"(.*\.)?({pattern})$", matrix.module)),
            config["r"],
        )
        if matrix.rank != rank:
            raise CaiError(
                f"The adapter {adapter} is not what its {CONFIG_FILE} describes: lora_{matrix.side} of {matrix.module} has "
                f"rank {matrix.rank}, and the file says {rank}.",
                "Copy its folder again, or train it again: adapter_config.json and the weights must belong together.",
            )


def _require_shapes(matrices: list[_Matrix], config: dict[str, Any], base: str, adapter: str) -> None:
    model = without_weights(base)
    modules = dict(model.named_modules())
    # PEFT maps names that transformers has changed since, and names of parameters that are no module's
    renamed = bool(getattr(model, "_checkpoint_conversion_mapping", None) or config.get("target_parameters"))
    for matrix in matrices:
        module = modules.get(matrix.module)
        if module is None:
            if renamed:
                continue
            raise CaiError(
                f"The adapter {adapter} does not fit the base model {base}, which has no layer {matrix.module}.",
                _OTHER_BASE,
            )
        width = _width(module, matrix.side)
        if width is not None and matrix.width != width:
            raise CaiError(
                f"The adapter {adapter} does not fit the base model {base}: at {matrix.module} it has {matrix.width} "
                f"{'inputs' if matrix.side == 'A' else 'outputs'}, and the base {width}.",
                _OTHER_BASE,
            )


def _width(module: nn.Module, side: str) -> int | None:
    """Inputs or outputs of a layer; None where PEFT shapes its matrices otherwise."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features if side == "A" else module.out_features
    if isinstance(module, Conv1D):  # GPT-2's: its weight is (inputs, outputs)
        return module.weight.shape[0 if side == "A" else 1]
    return None
