"""The same on Gemma 3 270M, pretrained, whose terms must be wanted: make test-real GEMMA=1."""

from __future__ import annotations

import os

import pytest
from real_run import Run, figure, model_folder, write_pairs_by_hand, write_settings

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get("CAI_REAL_GEMMA"), reason="Gemma is tried by make test-real GEMMA=1 alone"),
]


@pytest.fixture(scope="module")
def run(reward_model, tmp_path_factory) -> Run:
    base = model_folder("gemma3", "tools/real_models.py --gemma")
    settings = write_settings(tmp_path_factory.mktemp("settings") / "gemma.yaml", base, reward_model)
    run = Run(tmp_path_factory.mktemp("runs") / "gemma", settings)
    small = ["--limit", "6", "--set", "generate.draft_tokens=16", "--set", "generate.critic_tokens=16"]
    run("generate", *small)
    run("score", *small)
    return run


def test_gemma_drafts_with_its_vocabulary_of_262144_and_writes_no_turn_marks(run):
    rows = run.rows("pairs/traces.jsonl")
    assert len(rows) == 6
    assert all("<start_of_turn>" not in row["draft"] and "<end_of_turn>" not in row["draft"] for row in rows)


def test_gemma_trains_through_its_sliding_window_with_all_checks(run, reward_of):
    run("curate", "--pairs", str(write_pairs_by_hand(run, reward_of)))
    said = run("train", "--set", "curate.min_pairs=2", "--set", "train.lora_r=4")
    assert "ln 2 is 0.6931" in said
    assert float(figure(said, "steps").split()[0]) >= 2
