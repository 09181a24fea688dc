"""Run all of Stage 3 on the embedded models: the same code must give the same rows and, to within rounding, weights.

    python tools/record_run.py            compare with what is recorded for these libraries on this kind of processor
    python tools/record_run.py --record   record it, when a change is meant; say in the commit what changed and why

tests/recorded_run.json has one record for each set of libraries: another torch or trl may round in another way. Rows
and answers are held by their hash. The adapter is held by the norm of each tensor, for two makes of processor with the
same instructions sum in another order, and after some hundred steps no bit of it need be the same.
tests/test_recorded_run.py makes the same comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # a name -> sha256 of the file; "adapter" -> {tensor: norm}

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "recorded_run.json"
FILES = {
    "traces": "pairs/traces.jsonl",
    "pairs": "pairs/pairs.jsonl",
    "training rows": "dpo_dataset/train.jsonl",
    "held-out rows": "dpo_dataset/eval.jsonl",
    "dropped rows": "dpo_dataset/dropped.jsonl",
    "one-sided rows": "dpo_dataset/one_sided.jsonl",
    "answers": "evaluation/responses.jsonl",
}
ADAPTER = "models/lora_adapters/adapter_model.safetensors"
ROUNDING = 1e-3  # of a tensor's norm
_LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the hashes instead of comparing them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = record_of_a_run(Path(folder))
    recorded = read_recorded()
    if arguments.record:
        recorded[library_set()] = found
        RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return print(f"recorded for {library_set()}")
    if library_set() not in recorded:
        sys.exit(f"nothing is recorded for {library_set()}\nRecord it on a state that is known to be right: --record")
    if other := differing(found, recorded[library_set()]):
        sys.exit(f"another result than recorded: {', '.join(other)}")
    print(f"the same as recorded: {', '.join(found)}")


def library_set() -> str:
    """What the bytes may depend on besides the code."""
    import torch

    versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    return ", ".join([*versions, torch.backends.cpu.get_cpu_capability()])


def record_of_a_run(folder: Path) -> Record:
    """What the smoke preset leaves in `folder`, on one thread: sha256 of the rows, norms of the adapter's tensors."""
    command = [sys.executable, "-m", "cai_helpers.cli", "run", "--preset", "smoke", "--workspace", str(folder)]
    # numpy's and torch's sums depend on the number of threads
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"the run failed ({done.returncode}):\n{done.stderr[-3000:]}")
    hashes = {name: hashlib.sha256((folder / path).read_bytes()).hexdigest() for name, path in FILES.items()}
    return hashes | {"adapter": _norms(folder / ADAPTER)}


def _norms(adapter: Path) -> dict[str, float]:
    from safetensors.torch import load_file

    tensors = load_file(adapter)
    return {name: float(f"{tensors[name].double().norm().item():.6g}") for name in sorted(tensors)}


def differing(found: Record, recorded: Record) -> list[str]:
    """What is not as recorded: files by name, tensors of the adapter by theirs."""
    rows = [name for name in FILES if found[name] != recorded.get(name)]
    norms, expected = found["adapter"], recorded["adapter"]
    if norms.keys() != expected.keys():
        return [*rows, "the adapter's tensors"]
    return rows + [name for name in norms if not math.isclose(norms[name], expected[name], rel_tol=ROUNDING)]


def read_recorded() -> dict[str, Record]:
    return json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}


if __name__ == "__main__":
    main()
