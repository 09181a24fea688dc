"""The benchmarks of plan, pipeline and growth work; how fast, they tell elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("plan", ["| gemma-2b |", "| SmolLM2-135M |", "| DeBERTa-v3-large |", "| gemma-2b, drawn | DPO"]),
        ("pipeline", ["| generate_pairs |", "| train_policy |", "| **all** |", "| cai --help |"]),
        ("growth", ["| 100 |", "| exponent |"]),
    ],
)
def test_a_benchmark_prints_its_table(name, rows):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for row in rows:
        assert row in done.stdout
