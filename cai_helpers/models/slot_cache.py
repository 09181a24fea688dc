"""The keys and values of a fixed number of rows, each at a position of its own, and the attention that reads them.

transformers' caches have one length for all rows. Here a row sits in a slot, and when it has ended the next one takes the
slot while its neighbours go on. The model is transformers' own: it meets the slots as its `Cache`, and as an attention
implementation registered by name, which is set only while a step runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import repeat_kv

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

# Held to `generate`, token for token, by tests/test_engine.py. A model that is not here is not guessed at.
ARCHITECTURES = ("gemma", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
_ROTARY = ("default", "linear", "llama3", "yarn")  # not those whose frequencies depend on the longest row of the batch
_NAME = "cai_slots"


@dataclass
class Place:
    """Where the keys and values of the running step go; shared by all layers."""

    rows: torch.Tensor  # (slots,) 0, 1, 2, …
    position: torch.Tensor  # (slots,) of the token that is being read
    reach: int  # tokens of a slot that decoding rows attend to: no row has more
    prefilled: torch.Tensor | None = None  # (rows,) slots of the prompts that are being read; None: decoding
    start: int = 0  # tokens that stand in those slots already, before what is being read
    noted: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # keys and values, by layer, instead of any slot


class SlotCache(Cache):
    """keys and values: (slots + 1, heads, capacity, head size) a layer. The last is a spare, where padding rows go.

    capacity: tokens of a row, prompt and answer together.
    """

    def __init__(self, config: PreTrainedConfig, position: torch.Tensor, capacity: int, dtype: torch.dtype) -> None:
        """position: (slots,) of the token that each row reads next; whoever hands it over moves it."""
        self.place = Place(torch.arange(len(position), device=position.device), position, capacity)
        shape = (len(position) + 1, config.num_key_value_heads, capacity, head_size(config))
        layers = [_SlotLayer(self.place, shape, dtype, position.device) for _ in range(config.num_hidden_layers)]
        super().__init__(layers=layers)

    @property
    def stored(self) -> int:
        """Bytes."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)

    def resize(self, position: torch.Tensor, capacity: int, kept: Sequence[int]) -> None:
        """As many slots as `position` has, no shorter than before, of which the first are the `kept` ones.

        Layer by layer, so that only one of them is there twice.
        """
        place = self.place
        place.rows, place.position, place.reach = (
            torch.arange(len(position), device=position.device),
            position,
            capacity,
        )
        for layer in self.layers:
            layer.resize(len(position), capacity, kept)

    @contextmanager
    def prefilling(self, slots: torch.Tensor, start: int) -> Iterator[None]:
        """What is read goes into `slots`, behind the `start` tokens that are there."""
        self.place.prefilled, self.place.start = slots, start
        try:
            yield
        finally:
            self.place.prefilled, self.place.start = None, 0

    @contextmanager
    def noting(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """What is read, of one row, goes into the list: (heads, tokens, head size) of each layer."""
        noted = self.place.noted = []
        try:
            yield noted
        finally:
            self.place.noted = None

    def copy_to(self, slots: torch.Tensor, noted: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Put what was noted at the beginning of `slots`."""
        for layer, (keys, values) in zip(self.layers, noted, strict=True):
            layer.keys[slots, :, : keys.shape[1]] = keys
            layer.values[slots, :, : values.shape[1]] = values


class _SlotLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, place: Place, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._place = place
        # zeros: what a mask hides is multiplied by 0, and garbage may hold NaN
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def resize(self, slots: int, capacity: int, kept: Sequence[int]) -> None:
        self.keys = self._resized(self.keys, slots, capacity, kept)
        self.values = self._resized(self.values, slots, capacity, kept)

    def _resized(self, stored: torch.Tensor, slots: int, capacity: int, kept: Sequence[int]) -> torch.Tensor:
        _, heads, before, size = stored.shape
        new = torch.zeros(slots + 1, heads, capacity, size, dtype=stored.dtype, device=stored.device)
        for slot, was in enumerate(kept):  # one by one: an indexed copy would make another
            new[slot, :, :before] = stored[was]
        return new

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts attend to themselves and their opening; a decoding row gets its whole slot."""
        place = self._place
        if place.noted is not None:
            place.noted.append((key_states[0].clone(), value_states[0].clone()))
            return key_states, value_states
        if place.prefilled is not None:
            return (
                self._prefill(self.keys, key_states, place.prefilled, place.start),
                self._prefill(self.values, value_states, place.prefilled, place.start),
            )
        slots = len(place.rows)
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            stored[place.rows, :, place.position] = new[:, :, 0]
        return self.keys[:slots, :, : place.reach], self.values[:slots, :, : place.reach]

    def _prefill(self, stored: torch.Tensor, new: torch.Tensor, slots: torch.Tensor, start: int) -> torch.Tensor:
        stored[slots, :, start : start + new.shape[2]] = new
        return torch.cat([stored[slots, :, :start], new], dim=2) if start else new

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: allocated from the start."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0  # has no meaning for rows at positions of their own, which the engine hands over

    def get_max_length(self) -> int:
        return self.keys.shape[2]


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """(rows, tokens, heads, head size). Without a mask: whole prompts, causal.

    Where each row has one token, as in decoding, the query heads that share a key head are laid side by side as if they
    were tokens. transformers copies the keys for each of them instead; for Gemma 2B that moves eight times the bytes.
    """
    unknown = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"slot_attention has no {', '.join(unknown)}")
    groups = query.shape[1] // key.shape[1]
    if attention_mask is None or query.shape[2] > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        causal = attention_mask is None
        output = scaled_dot_product_attention(query, key, value, attention_mask, is_causal=causal, scale=scaling)
        return output.transpose(1, 2).contiguous(), None
    rows, heads, _, size = query.shape
    packed = query.reshape(rows, key.shape[1], groups, size)
    output = scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, -1), None


@contextmanager
def attending_to_slots(model: PreTrainedModel) -> Iterator[None]:
    """`model` with `slot_attention`, as long as the block runs."""
    AttentionInterface.register(_NAME, slot_attention)
    before = model.config._attn_implementation
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def visible(position: torch.Tensor, capacity: int, dtype: torch.dtype) -> torch.Tensor:
    """(slots, 1, 1, capacity): 0 up to a row's position, minus infinity behind it.

    Additive, because a boolean mask would be turned into this one again in every layer.
    """
    columns = torch.arange(capacity, device=position.device)
    mask = torch.zeros(len(position), capacity, dtype=dtype, device=position.device)
    return mask.masked_fill_(columns > position.unsqueeze(1), -torch.inf)[:, None, None, :]


def causal(start: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(1, 1, width, start + width): each token sees the `start` tokens of the opening, itself, and those in between."""
    hidden = torch.full((width, start + width), -torch.inf, dtype=dtype, device=device)
    return hidden.triu_(start + 1)[None, None]


def head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def without_adapter_shell(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model; LoRA layers inside it stay active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def why_no_slots(model: PreTrainedModel | PeftModel) -> str | None:
    """Why `model` cannot run in slots, as the end of a sentence that begins with its name; None: it can."""
    config = without_adapter_shell(model).config
    window = getattr(config, "sliding_window", None)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "has an adapter that puts tokens of its own before the prompt"
    if config.model_type not in ARCHITECTURES:
        return f"is of the type {config.model_type}, which the slots were not tested with"
    if window is not None or layers != {"full_attention"}:
        return "does not attend to all earlier tokens in every layer"
    if getattr(config, "use_bidirectional_attention", None) or not getattr(config, "is_causal", True):
        return "attends to later tokens too"
    if rotary not in _ROTARY:
        return f"has positions ({rotary}) that depend on the longest row of a batch"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "is spread over several devices"
    return None
