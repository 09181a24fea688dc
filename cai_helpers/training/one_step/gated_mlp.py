"""The gated MLP of a decoder layer with a LoRA on it, act(gate) · up and down's layer as one operation of autograd.

By itself torch keeps act(gate) and the product for the backward pass, beside gate and up, from which both follow in a moment:
of gemma-2b's layer, whose MLP is eight times as wide as its hidden states, a third of all that waits. Here they are computed
once more, to the same bits. Importing this imports torch and PEFT.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cai_helpers.training.one_step.lora_linear import Kept, OneStep, Operands, backward, forward

# classes whose forward is down(act(gate(x)) · up(x)) and no more, and those in which gate and up are one layer
_FAMILIES = "Gemma Gemma2 Gemma3 Granite Llama Mistral Olmo2 Qwen2 Qwen3 SmolLM3".split()
_APART, _JOINED = tuple(f"{family}MLP" for family in _FAMILIES), ("Phi3MLP",)


class _Activation(NamedTuple):
    value: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # (gradient of the value, input)


def _gelu(approximate: str) -> _Activation:
    return _Activation(
        partial(torch.nn.functional.gelu, approximate=approximate),
        partial(torch.ops.aten.gelu_backward.default, approximate=approximate),
    )


_ACTIVATIONS = {
    "SiLUActivation": _Activation(torch.nn.functional.silu, torch.ops.aten.silu_backward.default),
    "GELUTanh": _gelu("tanh"),
    "GELUActivation": _gelu("none"),
}


def mlp_in_one_step(model: torch.nn.Module) -> None:
    """Have each gated MLP of a known form, whose down layer is computed in one step, take its product into that step."""
    for mlp in gated_mlps(model):
        mlp.forward = MethodType(_forward, mlp)


def gated_mlps(model: torch.nn.Module) -> list[Any]:
    """Those of a known form."""
    of_form: list[Any] = [module for module in model.modules() if type(module).__name__ in (*_APART, *_JOINED)]
    return [mlp for mlp in of_form if type(_activation(mlp)).__name__ in _ACTIVATIONS]


def _activation(mlp: Any) -> Any:
    return mlp.activation_fn if type(mlp).__name__ in _JOINED else mlp.act_fn


def _forward(mlp: Any, x: Tensor) -> Tensor:
    if type(mlp).__name__ in _JOINED:
        gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
    else:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    act, down = _activation(mlp), mlp.down_proj
    operands = down.operands(gate) if type(down) is OneStep else None
    if operands is None or not gate.dtype == up.dtype == operands.dtype:
        return down(act(gate) * up)
    return _GatedDown.apply(gate, up, _ACTIVATIONS[type(act).__name__], *operands)


class _GatedDown(torch.autograd.Function):
    """The layer of `Operands` of act(gate) · up (Shazeer 2020, arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: _Activation, *given: Any) -> Tensor:
        operands = Operands(*given)
        output, kept = forward(activation.value(gate) * up, operands)
        ctx.save_for_backward(gate, up, *kept)
        ctx.activation, ctx.scaling, ctx.rate = activation, operands.scaling, operands.rate
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *kept = ctx.saved_tensors
        of_a, of_b = ctx.needs_input_grad[5:7]
        acted = ctx.activation.value(gate)
        of_product, of_a, of_b = backward(gradient, acted * up, Kept(*kept), ctx.scaling, ctx.rate, (True, of_a, of_b))
        assert of_product is not None  # it was asked for
        of_up = acted.mul_(of_product)
        of_gate = ctx.activation.backward(of_product.mul_(up), gate)
        return of_gate, of_up, None, None, None, of_a, of_b, None, None, None
