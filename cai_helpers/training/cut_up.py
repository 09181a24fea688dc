"""A base that fits no single card, cut up over the processes of a launch (FSDP); the LoRA stays whole in each.

Of each decoder layer, every process keeps its part, and all gather the whole while it computes, forward and backward (torch's
fully_shard; Zhao et al. 2023, arXiv 2304.11277). Embeddings, head and last norm stay whole: a step needs them from its beginning
to its end. What is trained, checked and saved is never cut up, so DDP averages its gradients as ever, and every file is
that of one process. But the processes meet at each layer: all must compute as many passes as the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, this_machine

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_GATHERED = 3  # layers: the one at work, the next on its way, and the buffer that it comes in


def layers_of(model: Any) -> list[Any]:
    """The decoder layers of a transformers model, as its own class names them."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def parameters_held(model: Any, processes: int) -> int:
    """Of a base, by one process at its peak."""
    of_layers = [sum(weights.numel() for weights in layer.parameters()) for layer in layers_of(model)]
    whole = sum(weights.numel() for weights in model.parameters())
    return whole - sum(of_layers) + sum(of_layers) // processes + _GATHERED * max(of_layers, default=0)


def mesh_of_all() -> DeviceMesh:
    """All processes, which make it together."""
    import torch.distributed
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(this_machine().device, (torch.distributed.get_world_size(),))


def cut_up(model: Any, mesh: DeviceMesh) -> Any:
    """`model`, which is on the CPU, with or without a LoRA: layer by layer, this process's part comes to its device, then the rest.

    No process waits for another here.

    Raises:
        CaiError: the installed torch cannot leave out the LoRA, or the model names no layers.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = layers_of(base)
    if "ignored_params" not in inspect.signature(fully_shard).parameters or not layers:
        raise CaiError(
            f"{type(base).__name__} cannot be cut up over cards: "
            + ("the installed torch is too old for it." if layers else "it does not say what its layers are."),
            "Install torch 2.11 or newer." if layers else "Take a larger card, or another models.base.",
        )
    for name, weights in base.named_parameters():
        weights.requires_grad_(weights.requires_grad and "lora_" in name)
    for layer in layers:
        lora = {weights for name, weights in layer.named_parameters() if "lora_" in name}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=lora)
    # a root with nothing of its own: it lets each layer be gathered while the one before it computes
    whole = {weights for weights in base.base_model.parameters() if not isinstance(weights, DTensor)}
    fully_shard(base.base_model, mesh=mesh, ignored_params=whole)
    return model.to(this_machine().device)


def leave_to_fsdp(model: Any) -> None:
    """DDP, which is put around `model` later, takes care of what is trained alone."""
    from torch.nn.parallel import DistributedDataParallel

    frozen = [name for name, weights in model.named_parameters() if not weights.requires_grad]
    buffers = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*frozen, *buffers])


def held(model: Any) -> str:
    """What this process holds of the base, measured."""
    from torch.distributed.tensor import DTensor

    base = [weights for name, weights in model.named_parameters() if "lora_" not in name]
    cut = [weights for weights in base if isinstance(weights, DTensor)]
    parts, of_layers, of_all = _bytes([weights.to_local() for weights in cut]), _bytes(cut), _bytes(base)
    here = of_all - of_layers + parts
    return f"{here / GIB:.2f} of {of_all / GIB:.2f} GiB are here: {parts:,} of {of_layers:,} bytes of its layers, and the rest whole"


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def unhashed() -> Iterator[None]:
    """TRL names its own cache of the reference by a hash of all weights, which no process has; ours is kept elsewhere."""
    from trl.trainer import dpo_trainer

    hashing = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda model: "cut up"
    try:
        yield
    finally:
        dpo_trainer.hash_module = hashing


@contextmanager
def taken_by_ddp() -> Iterator[None]:
    """On GPUs accelerate gives DDP no model that is cut up, whatever DDP is told to leave alone (`leave_to_fsdp`)."""
    import accelerate.accelerator

    asked = accelerate.accelerator.model_has_dtensor
    accelerate.accelerator.model_has_dtensor = lambda model: False
    try:
        yield
    finally:
        accelerate.accelerator.model_has_dtensor = asked
