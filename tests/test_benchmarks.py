"""The benchmarks work; how fast things are, they tell elsewhere."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TABLES = {
    "dpo": ["\n| SmolLM2-135M | drawn | **cut batches, prompts shared (`cai train`)** |"],
    "flops": ["\n| **the same, prompts shared (`cai train`)** |"],
    "flow": ["| flow |", "| flow, opening read once |"],
    "generation": ["slots: 64 | 12 |"],
    "growth": ["| 100 |", "| exponent |"],
    "pipeline": ["| generate_pairs |", "| train_policy |", "| **all** |", "| cai --help |"],
    "plan": ["| SmolLM2-135M |", "| DeBERTa-v3-large |"],
    "scoring": ["\n| **sorted, by tokens, fp16 (`cai score`)** |"],
}
OF_SHAPES = {"dpo", "flow", "generation"}  # one shape is enough to see that they work


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_a_benchmark_prints_its_table(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)  # they import each other
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(
        sys, "argv", [f"{name}.py", "--tiny", *(["--shape", "SmolLM2-135M"] if name in OF_SHAPES else [])]
    )
    benchmark.main()
    printed = capsys.readouterr().out
    for part in TABLES[name]:
        assert part in printed
    assert "Error" not in printed
