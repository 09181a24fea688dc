"""Both answers of a pair behind one prompt, which is computed once: the same log-probabilities for a part of the work.

A row is prompt, chosen, rejected; everything that a layer does to one token at a time is done to this row. For the attention
alone the row is taken apart into its two sides, each of which attends to itself as it would alone, without any mask: so
the kernels for causal attention serve, which are several times as fast as those that read one. Right where all layers
attend to all earlier tokens, and positions are those of position_ids. Importing this imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from cai_helpers.models.slot_cache import ARCHITECTURES, without_adapter_shell
from cai_helpers.training.rows.batches import Layout

_NAME = "cai_pairs"
_OF_A_TOKEN = ("log_probs", "entropy", "mean_logits", "is_top1")  # what TRL's loss and metrics ask of the head


def why_not_shared(model: Any) -> str | None:
    """Why pairs cannot share their prompt in `model`, as the end of a sentence that begins with its name; None: they can."""
    config = without_adapter_shell(model).config
    if config.model_type not in ARCHITECTURES:
        return f"is of the type {config.model_type}, with which that was not tested"
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) is not None or layers != {"full_attention"}:
        return "does not attend to all earlier tokens in every layer"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope"):
        return "has positions that depend on the longest row of a batch"
    if config._attn_implementation != "sdpa":
        return f"attends by {config._attn_implementation}"
    return None


class SharedPrompt:
    """Stands in for the model in TRL's loss: takes TRL's batch, of which it needs the labels alone, and gives what TRL
    expects of each side, having run the model on the layout."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self._model, self._layout = model, layout

    def __call__(self, *, labels: torch.Tensor, **_: Any) -> SimpleNamespace:
        """labels: 2B × L, those of the answers' tokens; -100 elsewhere. Each value of the result: 2B × (L - 1)."""
        layout, own = self._layout, _own(self._model)
        with attending_in_pairs(own), keeping(own.base_model, layout.sources):
            outputs = self._model(
                input_ids=layout.tokens,
                position_ids=layout.positions,
                of_sides=layout.of_sides,
                of_rows=layout.of_rows,
                shift_labels=layout.targets[None],
                use_cache=False,
                fused_lm_head=True,
            )
        answers = labels[:, 1:] != -100
        return SimpleNamespace(**{name: _spread(getattr(outputs, name), answers) for name in _OF_A_TOKEN})


@contextmanager
def attending_in_pairs(model: Any) -> Iterator[None]:
    """`model` with `pair_attention`, as long as the block runs: the forward pass, and the backward pass where that repeats
    the forward one."""
    AttentionInterface.register(_NAME, pair_attention)
    config = without_adapter_shell(model).config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def pair_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    of_sides: torch.Tensor,
    of_rows: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value: (B, heads, W, head size); of_sides, of_rows: as in Layout. Causal, side by side.

    The gradient of a prompt's keys is a sum of two terms, which is the same in any order: nothing is left to chance.
    """
    unknown = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"pair_attention has no {', '.join(unknown) or 'mask'}")
    query, key, value = (_taken(states, of_sides) for states in (query, key, value))
    grouped = key.shape[1] < query.shape[1] and _flash_takes_groups(query, key, value, dropout)
    if not grouped:
        key, value = (repeat_kv(states, query.shape[1] // states.shape[1]) for states in (key, value))
    output = scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return _taken(output, of_rows).transpose(1, 2), None


def _taken(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """states: (rows, heads, tokens, size). (rows of places, heads, tokens of places, size)."""
    flat = states.transpose(1, 2).flatten(0, 1)
    return flat.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def _flash_takes_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """Other kernels than flash's would compute query heads that share a key head by whole matrices of probabilities."""
    if not query.is_cuda:
        return False
    parameters = torch.backends.cuda.SDPAParams(query, key, value, None, dropout, True, True)
    return torch.backends.cuda.can_use_flash_attention(parameters)


@contextmanager
def keeping(backbone: torch.nn.Module, sources: torch.Tensor) -> Iterator[None]:
    """Of the backbone's hidden states only those at `sources` come to the head, as one row."""

    def keep(_: Any, __: Any, outputs: Any) -> Any:
        outputs.last_hidden_state = outputs.last_hidden_state.flatten(0, 1)[sources][None]
        return outputs

    hook = backbone.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


def _spread(values: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(answers.shape).masked_scatter(answers, values[0])


def _own(model: Any) -> Any:
    """The transformers model, without the shells that spread it over processes and put the adapter on it."""
    spread = isinstance(model, torch.nn.parallel.DistributedDataParallel)
    return without_adapter_shell(model.module if spread else model)
