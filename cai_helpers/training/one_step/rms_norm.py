"""RMSNorm with frozen weights as one operation of autograd.

transformers computes it in seven to nine operations, each with a place in the graph, and what waits for the backward pass is its
input in fp32. Here it is the input as it came. Importing this imports torch.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# classes whose weights are the scale, and those whose weights are what the scale has above 1
_PLAIN = tuple(f"{family}RMSNorm" for family in "Granite Llama Mistral Olmo2 Phi3 Qwen2 Qwen3 SmolLM3".split())
_ABOVE_ONE = tuple(f"{family}RMSNorm" for family in "Gemma Gemma2 Gemma3".split())


def norm_in_one_step(model: torch.nn.Module) -> None:
    """Have every RMSNorm of a known form computed by one operation, where its weights are not trained."""
    for norm in known_norms(model):
        norm.forward = MethodType(_forward, norm)


def known_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in (*_ABOVE_ONE, *_PLAIN)]


def _forward(norm: Any, x: Tensor) -> Tensor:
    if norm.weight.requires_grad:
        return type(norm).forward(norm, x)
    return _RmsNorm.apply(x, norm.weight, norm)


class _RmsNorm(torch.autograd.Function):
    """y = s · x / √(mean x² + ε) over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4), s the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, norm: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        ctx.above_one = type(norm).__name__ in _ABOVE_ONE
        return type(norm).forward(norm, x)  # the class's own: it rounds where the model was trained to

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With x̂ = y / s: ∂x = (s · ∂y − x̂ · mean(s · ∂y · x̂)) / √(mean x² + ε), in fp32 as the classes compute y."""
        x, weight = ctx.saved_tensors
        wide, scale = x.float(), weight.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + ctx.epsilon)
        of_normed = gradient.float() * (1 + scale if ctx.above_one else scale)
        normed = wide * inverse
        along = (of_normed * normed).mean(-1, keepdim=True)
        return of_normed.addcmul_(normed, along, value=-1).mul_(inverse).to(x.dtype), None, None
