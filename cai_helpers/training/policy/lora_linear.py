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


def in_one_step(model: torch.nn.Module) -> LoraLayers:
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
        active = self.active_adapters
        parts: Any = self._modules  # and so on: attributes of modules take long to look up, seven times in every layer
        if args or kwargs or self._disable_adapters or self.merged_adapters or len(active) != 1:
            return super().forward(x, *args, **kwargs)
        (name,) = active
        if name not in parts["lora_A"]._modules:
            return super().forward(x)
        base = parts["base_layer"]._parameters
        lora_a, lora_b = (parts[matrix]._modules[name]._parameters["weight"] for matrix in ("lora_A", "lora_B"))
        device, weight = x.device.type, base["weight"]
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        elif x.dtype == weight.dtype == lora_a.dtype == lora_b.dtype:
            dtype = x.dtype
        else:  # a base in half precision without autocast: PEFT computes the LoRA in that of its own weights
            return super().forward(x)
        dropout = parts["lora_dropout"]._modules[name]
        rate = dropout.p if dropout.training and type(dropout) is torch.nn.Dropout else 0.0
        return _LoraLinear.apply(x, weight, base["bias"], lora_a, lora_b, self.scaling[name], rate, dtype)


class _LoraLinear(torch.autograd.Function):
    """x·Wᵀ + bias + scaling · dropout(x)·Aᵀ·Bᵀ (Hu et al. 2021, arXiv 2106.09685, section 4.1) with W and bias frozen.

    x: (…, in); W: out × in; A: r × in; B: out × r. The result: (…, out), in `dtype`, that of all products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
        rate: float,
        dtype: torch.dtype,
    ) -> Tensor:
        output = linear(x, weight, bias)
        a, b, mask, dropped = lora_a.to(dtype), lora_b.to(dtype), None, x
        if rate:
            dropped, mask = torch.native_dropout(x, rate, True)
        low = linear(dropped.flatten(0, -2), a)  # tokens × r
        flat = output.view(-1, output.shape[-1])
        torch.addmm(flat, low, b.t(), alpha=scaling, out=flat)  # in place; torch's FLOP counter does not know addmm_
        ctx.save_for_backward(x, weight, a, b, low, mask)
        ctx.scaling, ctx.kept, ctx.dtypes = scaling, 1 / (1 - rate) if rate < 1 else 0.0, (lora_a.dtype, lora_b.dtype)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low, mask = ctx.saved_tensors
        of_x, _, _, of_a, of_b = ctx.needs_input_grad[:5]
        scaling, dtype, of_lora_a, of_lora_b = ctx.scaling, gradient.dtype, None, None
        flat = gradient.reshape(-1, gradient.shape[-1])
        # beta=0: the product alone, scaled in the same kernel; what stands first gives its shape
        of_low = torch.addmm(low, flat, b, beta=0, alpha=scaling)
        if of_b:
            of_lora_b = torch.addmm(b, flat.t(), low, beta=0, alpha=scaling).to(ctx.dtypes[1])
        if of_a:
            dropped = x if mask is None else _dropout_backward(x, mask, ctx.kept)  # x · mask / (1 - rate), once more
            of_lora_a = of_low.t().mm(dropped.to(dtype).flatten(0, -2)).to(ctx.dtypes[0])
        of_input = None
        if of_x:
            of_input = flat.mm(weight.to(dtype))
            if mask is None:
                torch.addmm(of_input, of_low, a, out=of_input)
            else:
                of_input.addcmul_(of_low.mm(a), mask.flatten(0, -2), value=ctx.kept)
            of_input = of_input.view_as(x).to(x.dtype)
        return of_input, None, None, of_lora_a, of_lora_b, None, None, None
