"""How many texts a second does a reward model score? Every variant in one process, on DeBERTa-v3-large's shape.

    python benchmarks/scoring.py           # needs an NVIDIA GPU; a minute on an H100; nothing is fetched
    python benchmarks/scoring.py --tiny    # that it works, on a CPU: figures without meaning, in seconds

Random weights; 512 texts of log-normal lengths, question and answer together 190 tokens on average and 512 at most. Every
variant is warmed up and timed three times; the median counts. Slow ones get the first 64 texts. "full" is the share of the
tokens of all batches that are no padding.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from cai_helpers.machine.hardware import GIB
from cai_helpers.models.batches import in_batches, in_token_batches

GIB_OF_A_T4, LONGEST, AVERAGE, AT_ONCE = 14.5, 512, 190, 16
SHAPE = DebertaV2Config(  # of microsoft/deberta-v3-large
    vocab_size=128_100, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
    max_position_embeddings=512, type_vocab_size=0, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm",
    share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, max_relative_positions=-1, num_labels=1,
)  # fmt: skip
TINY = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY |= {"pooler_hidden_size": 32}

Batches = Callable[[Sequence[int], Callable[[list[int]], list]], Any]  # (sizes, work) → (rows, result) …


class Variant(NamedTuple):
    name: str
    batches: Batches
    dtype: torch.dtype
    texts: int


def one_by_one(sizes: Sequence[int], work: Callable[[list[int]], list]) -> Any:
    return in_batches([*range(len(sizes))], 1, work)


def in_order(sizes: Sequence[int], work: Callable[[list[int]], list]) -> Any:
    return in_batches([*range(len(sizes))], AT_ONCE, work)


def sorted_by_length(sizes: Sequence[int], work: Callable[[list[int]], list]) -> Any:
    return in_batches(sorted(range(len(sizes)), key=lambda row: -sizes[row]), AT_ONCE, work)


def by_tokens(sizes: Sequence[int], work: Callable[[list[int]], list]) -> Any:
    return in_token_batches(sizes, AT_ONCE * LONGEST, work)


VARIANTS = [
    Variant("one by one, fp32", one_by_one, torch.float32, 64),
    Variant(f"batches of {AT_ONCE}, fp32", in_order, torch.float32, 512),
    Variant(f"batches of {AT_ONCE}, sorted by length, fp32", sorted_by_length, torch.float32, 512),
    Variant(f"the same, fp16 (the package before, {AT_ONCE} at once)", sorted_by_length, torch.float16, 512),
    Variant("**sorted, by tokens, fp16 (`cai score`)**", by_tokens, torch.float16, 512),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model on a CPU")
    parser.add_argument("--gib", type=float, default=GIB_OF_A_T4, help="memory this process may use")
    options = parser.parse_args()
    where, device = "CPU", "cpu"
    torch.set_num_threads(1)
    if not options.tiny:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * GIB / total))
        where, device = f"{torch.cuda.get_device_name(0)}, held to {options.gib} GiB", "cuda"
    print(f"{where}, torch {torch.__version__}, transformers {transformers.__version__}\n", flush=True)
    print(run(device, options.tiny))


def run(device: str, tiny: bool) -> str:
    torch.manual_seed(0)
    config = DebertaV2Config.from_dict(SHAPE.to_dict() | (TINY if tiny else {}))
    with torch.device(device):
        model = DebertaV2ForSequenceClassification(config).eval()
    texts = made_up(config.vocab_size, 24 if tiny else 512)
    lines = ["| variant | texts/s | × one by one | full | peak GiB |", "|---|---|---|---|---|"]
    first = 0.0
    for variant in VARIANTS:
        half = variant.dtype == torch.float16 and not tiny
        model = model.half() if half else model.float()
        rate, full, peak = measure(model, texts[: variant.texts], variant.batches, device)
        first = first or rate
        lines.append(f"| {variant.name} | {rate:.0f} | {rate / first:.1f} | {full:.0%} | {peak:.1f} |")
    return "\n".join(lines)


def made_up(vocabulary: int, count: int) -> list[list[int]]:
    draw = random.Random(0)
    lengths = [min(LONGEST, max(12, round(draw.lognormvariate(0, 0.6) / 1.17 * AVERAGE))) for _ in range(count)]
    return [[draw.randrange(5, vocabulary) for _ in range(length)] for length in lengths]


def measure(model: Any, texts: list[list[int]], batches: Batches, device: str) -> tuple[float, float, float]:
    """Texts a second, share of tokens that are no padding, GiB."""
    sizes, held = [len(text) for text in texts], []

    def score(rows: list[int]) -> list[float]:
        width = max(sizes[row] for row in rows)
        held.append(width * len(rows))
        ids = torch.tensor([texts[row] + [0] * (width - sizes[row]) for row in rows])
        mask = torch.tensor([[1] * sizes[row] + [0] * (width - sizes[row]) for row in rows])
        with torch.inference_mode():
            return model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float().tolist()

    def whole() -> float:
        started = time.perf_counter()
        for _ in batches(sizes, score):
            pass
        return time.perf_counter() - started  # scores are on the host: nothing is under way

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole()
    full = sum(sizes) / sum(held)
    seconds = statistics.median(whole() for _ in range(3))
    peak = torch.cuda.max_memory_allocated() / GIB if device == "cuda" else 0.0
    return len(texts) / seconds, full, peak


if __name__ == "__main__":
    main()
