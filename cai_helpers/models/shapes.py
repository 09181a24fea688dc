"""The shape of a model by its config.json, without its weights; of well-known models also where the Hub keeps it behind a wall."""

from __future__ import annotations

from typing import Any, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import from_hub, locate


def _shape(
    model_type: str, vocabulary: int, hidden: int, mlp: int, layers: int, heads: int, kv: int, tied: bool, **others: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type, "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": tied,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **others,
    }  # fmt: skip


def _gemma(model_type: str, vocabulary: int, hidden: int, mlp: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    return _shape(model_type, vocabulary, hidden, mlp, layers, heads, kv, True, head_dim=256)


# As in their published config.json.
KNOWN: dict[str, dict[str, Any]] = {
    "google/gemma-2b-it": _gemma("gemma", 256000, 2048, 16384, 18, 8, 1),
    "google/gemma-2-2b-it": _gemma("gemma2", 256000, 2304, 9216, 26, 8, 4),
    "google/gemma-3-270m-it": _gemma("gemma3_text", 262144, 640, 2048, 18, 4, 1),
    "google/gemma-3-1b-it": _gemma("gemma3_text", 262144, 1152, 6912, 26, 4, 1),
    "meta-llama/Llama-2-7b-chat-hf": _shape("llama", 32000, 4096, 11008, 32, 32, 32, False),
    "meta-llama/Llama-3.2-1B-Instruct": _shape("llama", 128256, 2048, 8192, 16, 32, 8, True, head_dim=64),
    "meta-llama/Llama-3.2-3B-Instruct": _shape("llama", 128256, 3072, 8192, 28, 24, 8, True, head_dim=128),
    "mistralai/Mistral-7B-Instruct-v0.3": _shape("mistral", 32768, 4096, 14336, 32, 32, 8, False),
    "Qwen/Qwen2.5-0.5B-Instruct": _shape("qwen2", 151936, 896, 4864, 24, 14, 2, True),
    "Qwen/Qwen2.5-1.5B-Instruct": _shape("qwen2", 151936, 1536, 8960, 28, 12, 2, True),
    "Qwen/Qwen2.5-3B-Instruct": _shape("qwen2", 151936, 2048, 11008, 36, 16, 2, True),
    "Qwen/Qwen3-0.6B": _shape("qwen3", 151936, 1024, 3072, 28, 16, 8, True, head_dim=128),
    "Qwen/Qwen3-1.7B": _shape("qwen3", 151936, 2048, 6144, 28, 16, 8, True, head_dim=128),
    "Qwen/Qwen3-4B-Instruct-2507": _shape("qwen3", 151936, 2560, 9728, 36, 32, 8, True, head_dim=128),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _shape("llama", 49152, 576, 1536, 30, 9, 3, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _shape("llama", 49152, 2048, 8192, 24, 32, 32, True),
    "HuggingFaceTB/SmolLM3-3B": _shape("smollm3", 128256, 2048, 11008, 36, 16, 4, True),
    "microsoft/Phi-3-mini-4k-instruct": _shape("phi3", 32064, 3072, 8192, 32, 32, 32, False),
    "microsoft/Phi-4-mini-instruct": _shape("phi3", 200064, 3072, 8192, 32, 24, 8, True),
    "OpenAssistant/reward-model-deberta-v3-large-v2": {
        "model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "type_vocab_size": 0, "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 256,
        "max_relative_positions": -1, "position_biased_input": False, "num_labels": 1,
    },
}  # fmt: skip


class Config(NamedTuple):
    config: Any  # of transformers
    known: bool  # True: its file was out of reach, and what is written here stands in


def config_of(name: str) -> Config:
    """The configuration of the model at `name`.

    Raises:
        CaiError: it is out of reach, and no well-known one.
    """
    from transformers import AutoConfig

    try:
        return Config(from_hub(lambda: AutoConfig.from_pretrained(locate(name), trust_remote_code=False), name), False)
    except CaiError:
        if name not in KNOWN:
            raise
        return Config(AutoConfig.for_model(**KNOWN[name]), True)


def attends_by_matrix(config: Any) -> bool:
    """Whether attention must be computed weight by weight: torch's kernels know no soft cap on the logits (Gemma 2)."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
