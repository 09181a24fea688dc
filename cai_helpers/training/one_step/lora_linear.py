"""A linear layer and its LoRA computed as one operation of autograd: the same values in a third of the nodes.

PEFT computes base, cast, dropout, cast, A, B, scaling and sum as operations of their own, each with a place in the graph,
and keeps a dropped-out copy of the input for each layer; queries, keys and values have the same input, as have gate and up.
Here that input is kept as it is, once for all that read it, and of each dropout its mask. What is not the plain case
(DoRA, a quantised base, a LoRA with biases, …) stays PEFT's own. Importing this imports torch and PEFT.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_dropout_backward = torch.ops.aten.native_dropout_backward.default


class LoraLayers(NamedTuple):
    """How many layers with a LoRA a model has, and how many of them are computed in one step."""

    in_one_step: int
    all: int
    reason: str | None  # why a layer is not, of the first of these

    def line(self) -> str | None:
        """None: all are."""
        if self.reason is None:
            return None
        return (
            f"{self.in_one_step} of {self.all} LoRA layers computed in one step; the others by PEFT, which is slower: "
            f"{self.reason}"
        )


def lora_in_one_step(model: torch.nn.Module) -> LoraLayers:
    """Have every plain LoRA layer of `model`, with all its adapters, computed by `OneStep`; the others stay as they are."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    reasons = []
    for name, layer in layers:
        if (reason := _why_not(layer)) is None:
            layer.__class__ = OneStep  # a forward of its own; names, weights and merging are Linear's
        else:
            reasons.append(f"{name} {reason}")
    return LoraLayers(len(layers) - len(reasons), len(layers), reasons[0] if reasons else None)


def _why_not(layer: Any) -> str | None:
    """Why a layer is not the plain case, as the end of a sentence that begins with its name."""
    if type(layer) not in (Linear, OneStep):
        return f"is a {type(layer).__name__} layer"
    parts = [layer.base_layer, *layer.lora_A.values(), *layer.lora_B.values()]
    for part in parts:
        if type(part) is not torch.nn.Linear:
            return f"is built on {type(part).__name__}"
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            return "has a hook in it"
    if layer.base_layer.weight.requires_grad or not layer.base_layer.weight.is_floating_point():
        return "has a base that is trained" if layer.base_layer.weight.requires_grad else "has a quantised base"
    if layer.lora_variant:
        return f"is a {type(next(iter(layer.lora_variant.values()))).__name__}"
    if any(part.bias is not None for part in parts[1:]):
        return "has a LoRA with biases"
    if any(type(part) not in (torch.nn.Dropout, torch.nn.Identity) for part in layer.lora_dropout.values()):
        return "has a dropout of another kind"
    return None


class OneStep(Linear):
    """PEFT's Linear; where one adapter is active and unmerged, by one operation."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or (operands := self.operands(x)) is None:
            return super().forward(x, *args, **kwargs)
        return _LoraLinear.apply(x, *operands)

    def operands(self, x: Tensor) -> Operands | None:
        """What is computed with `x`, whose precision counts; None: it is not the plain case, and PEFT's own to compute."""
        active = self.active_adapters
        parts: Any = self._modules  # and so on: attributes of modules take long to look up, seven times in every layer
        if self._disable_adapters or self.merged_adapters or len(active) != 1:
            return None
        (name,) = active
        if name not in parts["lora_A"]._modules:
            return None
        base = parts["base_layer"]._parameters
        lora_a, lora_b = (parts[matrix]._modules[name]._parameters["weight"] for matrix in ("lora_A", "lora_B"))
        device, weight = x.device.type, base["weight"]
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif x.dtype == weight.dtype == lora_a.dtype == lora_b.dtype:
            dtype = x.dtype
        else:  # a base in half precision without autocast: PEFT computes the LoRA in that of its own weights
            return None
        dropout = parts["lora_dropout"]._modules[name]
        rate = dropout.p if dropout.training and type(dropout) is torch.nn.Dropout else 0.0
        return Operands(weight, base["bias"], lora_a, lora_b, self.scaling[name], rate, dtype)


class Operands(NamedTuple):
    """Of x·Wᵀ + bias + scaling · dropout(x)·Aᵀ·Bᵀ (Hu et al. 2021, arXiv 2106.09685, section 4.1), W and bias frozen.

    x: (…, in); the result: (…, out), in `dtype`, that of all products.
    """

    weight: Tensor  # out × in
    bias: Tensor | None
    lora_a: Tensor  # r × in
    lora_b: Tensor  # out × r
    scaling: float
    rate: float  # of the dropout
    dtype: torch.dtype


class Kept(NamedTuple):
    """Of a forward pass, beside the input, for the backward pass."""

    weight: Tensor
    a: Tensor  # in the precision of the products
    b: Tensor
    low: Tensor  # dropout(x)·Aᵀ: tokens × r
    mask: Tensor | None


def forward(x: Tensor, operands: Operands) -> tuple[Tensor, Kept]:
    weight, bias, lora_a, lora_b, scaling, rate, dtype = operands
    output = linear(x, weight, bias)
    a, b, mask, dropped = lora_a.to(dtype), lora_b.to(dtype), None, x
    if rate:
        dropped, mask = torch.native_dropout(x, rate, True)
    low = linear(dropped.flatten(0, -2), a)
    flat = output.view(-1, output.shape[-1])
    torch.addmm(flat, low, b.t(), alpha=scaling, out=flat)  # in place; torch's FLOP counter does not know addmm_
    return output, Kept(weight, a, b, low, mask)


def backward(
    gradient: Tensor, x: Tensor, kept: Kept, scaling: float, rate: float, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, A and B, where they are `wanted`, in the precision of the products: autograd casts them."""
    weight, a, b, low, mask = kept
    undropped = 1 / (1 - rate) if rate < 1 else 0.0
    of_x = of_a = of_b = None
    flat = gradient.reshape(-1, gradient.shape[-1])
    # beta=0: the product alone, scaled in the same kernel; what stands first gives its shape
    of_low = torch.addmm(low, flat, b, beta=0, alpha=scaling)
    if wanted[2]:
        of_b = torch.addmm(b, flat.t(), low, beta=0, alpha=scaling)
    if wanted[1]:
        dropped = x if mask is None else _dropout_backward(x, mask, undropped)  # x · mask / (1 - rate), once more
        of_a = of_low.t().mm(dropped.to(gradient.dtype).flatten(0, -2))
        del dropped
    if wanted[0]:
        of_x = flat.mm(weight.to(gradient.dtype))
        if mask is None:
            torch.addmm(of_x, of_low, a, out=of_x)
        else:
            of_x.addcmul_(of_low.mm(a), mask.flatten(0, -2), value=undropped)
        of_x = of_x.view_as(x)
    return of_x, of_a, of_b


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        operands = Operands(*given)
        output, kept = forward(x, operands)
        ctx.save_for_backward(x, *kept)
        ctx.scaling, ctx.rate = operands.scaling, operands.rate
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        of_x, _, _, of_a, of_b = ctx.needs_input_grad[:5]
        of_x, of_a, of_b = backward(gradient, x, Kept(*kept), ctx.scaling, ctx.rate, (of_x, of_a, of_b))
        return of_x, None, None, of_a, of_b, None, None, None
