"""Is the memory plan right? Peaks of DPO steps on models of random weights, beside what memory_plan.py says beforehand.

    python benchmarks/memory_plan.py     # needs an NVIDIA GPU of 40 GiB or more, three minutes; nothing is fetched

fp16, three shapes (gemma-2b, a Llama of 1.2B, a Qwen2 of 0.5B), with and without gradient checkpointing, several batches
and lengths. `measured` is torch's peak of allocated memory over loading, reference, two steps and an evaluation.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_limits import GEMMA_2B, GIB, write_long_rows, write_model
from transformers import GemmaConfig, LlamaConfig, PretrainedConfig, Qwen2Config

from cai_helpers.hardware import this_machine
from cai_helpers.memory_plan import plan_memory
from cai_helpers.models import release_memory
from cai_helpers.settings import load_settings
from cai_helpers.stages.train import train_dpo
from cai_helpers.workspace import Workspace

SHAPES: dict[str, PretrainedConfig] = {
    "gemma-2b": GemmaConfig(**GEMMA_2B),
    "llama-1.2b": LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    ),
    "qwen2-0.5b": Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
}  # fmt: skip
CASES = [  # pairs a batch, tokens a side, gradient checkpointing
    (1, 508, True), (2, 508, True), (8, 508, True), (2, 1020, True), (1, 508, False), (2, 508, False), (4, 252, False),
]  # fmt: skip


def main() -> None:
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}\n")
    print("shape        batch  tokens  checkpointing  planned  measured  ratio")
    with tempfile.TemporaryDirectory() as folder:
        for name, config in SHAPES.items():
            base = write_model(Path(folder) / name, config)
            for number, (batch, length, thrifty) in enumerate(CASES):
                planned, measured, longest = compare(Path(folder) / f"{name}-{number}", base, batch, length, thrifty)
                print(
                    f"{name:12} {batch:5} {longest:7} {thrifty!s:>14} {planned:8.2f} {measured:9.2f} {planned / measured:6.2f}",
                    flush=True,
                )


def compare(folder: Path, base: str, batch: int, length: int, thrifty: bool) -> tuple[float, float, int]:
    """GiB planned, GiB measured, tokens of the longest side."""
    settings = load_settings(
        "t4",
        [
            f"models.base={base}", "models.dtype=fp16", "train.epochs=1", f"train.batch_size={batch}", "train.accumulation=1",
            f"train.gradient_checkpointing={str(thrifty).lower()}", "curate.min_pairs=2", "train.max_length=2048",
        ],
    )  # fmt: skip
    workspace = Workspace(folder)
    write_long_rows(workspace, base, tokens=length, train=2 * batch, held_out=batch)
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    report = train_dpo(settings, workspace)
    measured = torch.cuda.max_memory_allocated() / GIB
    plan = plan_memory(settings, "fp16", this_machine(), report.longest)
    return plan.total / GIB, measured, report.longest


if __name__ == "__main__":
    main()
