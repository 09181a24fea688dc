"""What a decoder layer with a LoRA keeps of each token until its backward pass.

Counted, storage by storage, with a dropout's mask for every linear layer (tests/test_memory_plan.py counts again, family by
family); benchmarks/memory_plan.py has the peaks on a GPU beside it. Importing this imports torch.
"""

from __future__ import annotations

from typing import Any

import torch

from cai_helpers.models.shapes import attends_by_matrix
from cai_helpers.training.cut_up import layers_of
from cai_helpers.training.one_step.gated_mlp import gated_mlps
from cai_helpers.training.one_step.rms_norm import known_norms

_OF_HEADS = {"q_norm", "k_norm"}  # norms of queries and keys
_OF_MATRIX = 5  # values for each attention weight that is computed as such: their tanh, softmax in fp32 and cast


def kept_by_a_layer(model: Any, shared: bool, longest: int) -> float:
    """Values of the precision that is computed in (a mask is half of one), a token.

    model: of transformers, its weights need not be there. shared: pairs share their prompt, so that queries, keys and values
    are laid out by side once more. longest: tokens of a sequence, which count where attention is no kernel of its own.
    """
    config, layers = model.config.get_text_config(), layers_of(model)
    layer = layers[0] if layers else torch.nn.Module()  # a model that does not say what its layers are
    names = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
    hidden, mlp, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * size, groups * size
    norms = len(known_norms(layer)) - len(_OF_HEADS & names)

    kept = 6.6 * hidden  # two norms' inputs and results, and the masks of five layers
    kept += 2.5 * queries + 2 * keys  # attention's inputs and its result, with a mask
    kept += (2.5 if gated_mlps(layer) else 4.5) * mlp  # gate, up and a mask; else act(gate) and the product as well
    kept += (norms - 2) * hidden if norms else 2 * hidden  # one's input; where it is torch's, in fp32
    if names >= _OF_HEADS:
        kept += queries + keys
    if "qkv_proj" in names:  # one input instead of five, but its result stays whole as long as a part of it does
        kept -= 1.5 * hidden
        kept += 0 if shared else queries + 2 * keys
    if shared:
        kept += 2.3 * queries + (1.7 * queries if 1 < groups < heads else 0)
    if attends_by_matrix(config):
        kept += _OF_MATRIX * heads * longest
    return kept
