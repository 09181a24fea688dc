"""What is counted of a model: parameters, and the values that each token brings along."""

from __future__ import annotations

from typing import Any, NamedTuple

from cai_helpers.models.shapes import config_of


class Shape(NamedTuple):
    """Sizes in values, not in bytes."""

    config: Any
    known: bool  # its config.json was out of reach, and the published one stands in
    parameters: int  # all, the embeddings as well
    linear: int  # weights that every token is multiplied with, without the head
    head: int  # weights of the head
    layers: int
    hidden: int
    mlp: int
    attention: int  # width of all query heads together
    cached: int  # keys and values of a token, in all layers
    vocabulary: int
    in_slots: bool  # generates in slots; else in batches
    shares_prompts: bool  # trains with a pair's prompt computed once


def shape_of(name: str, classifier: bool = False) -> Shape:
    """The model at `name`, built on torch's meta device: all its layers, and no memory behind them.

    Raises:
        CaiError: its config.json is out of reach, and it is no well-known model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config, known = config_of(name)
    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=False)
    return count(model, known)


def count(model: Any, known: bool = False) -> Shape:
    """The same of a model that is built already."""
    import torch

    from cai_helpers.models.slot_cache import head_size, why_no_slots
    from cai_helpers.training.policy.shared_prompt import why_not_shared

    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    heads = config.num_attention_heads
    return Shape(
        config=config,
        known=known,
        parameters=sum(weights.numel() for weights in model.parameters()),
        linear=sum(part.weight.numel() for part in linear),
        head=0 if head is None else head.weight.numel(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        mlp=config.intermediate_size,
        attention=heads * head_size(config),
        cached=2
        * config.num_hidden_layers
        * (getattr(config, "num_key_value_heads", None) or heads)
        * head_size(config),
        vocabulary=config.vocab_size,
        in_slots=why_no_slots(model) is None,
        shares_prompts=why_not_shared(model) is None,
    )
