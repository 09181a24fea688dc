"""Run all of Stage 3 on the embedded models and hash what comes out: the same code must give the same bytes.

    python tools/record_run.py            compare with what is recorded for these libraries on this kind of processor
    python tools/record_run.py --record   record it, when a change is meant; say in the commit what changed and why

The hashes stand in tests/recorded_run.json, one set for each set of libraries: another torch or trl may round in
another way. tests/test_recorded_run.py makes the same comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "recorded_run.json"
FILES = {
    "traces": "pairs/traces.jsonl",
    "pairs": "pairs/pairs.jsonl",
    "training rows": "dpo_dataset/train.jsonl",
    "held-out rows": "dpo_dataset/eval.jsonl",
    "dropped rows": "dpo_dataset/dropped.jsonl",
    "one-sided rows": "dpo_dataset/one_sided.jsonl",
    "adapter": "models/lora_adapters/adapter_model.safetensors",
    "answers": "evaluation/responses.jsonl",
}
_LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the hashes instead of comparing them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hashes = hashes_of_a_run(Path(folder))
    recorded = read_recorded()
    if arguments.record:
        recorded[library_set()] = hashes
        RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return print(f"recorded for {library_set()}")
    if library_set() not in recorded:
        sys.exit(f"nothing is recorded for {library_set()}\nRecord it on a state that is known to be right: --record")
    if differing := [name for name, digest in hashes.items() if recorded[library_set()].get(name) != digest]:
        sys.exit(f"another result than recorded: {', '.join(differing)}")
    print(f"the same bytes as recorded: {', '.join(hashes)}")


def library_set() -> str:
    """What the bytes may depend on besides the code."""
    import torch

    versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    return ", ".join([*versions, torch.backends.cpu.get_cpu_capability()])


def hashes_of_a_run(folder: Path) -> dict[str, str]:
    """sha256 of what the smoke preset leaves in `folder`, on one thread."""
    command = [sys.executable, "-m", "cai_helpers.cli", "run", "--preset", "smoke", "--workspace", str(folder)]
    # numpy's and torch's sums depend on the number of threads
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"the run failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return {name: hashlib.sha256((folder / path).read_bytes()).hexdigest() for name, path in FILES.items()}


def read_recorded() -> dict[str, dict[str, str]]:
    return json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}


if __name__ == "__main__":
    main()
