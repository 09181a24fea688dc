"""A model of real weights, a reward model trained from it, and one run that the tests of this folder share.

Without the models of tools/real_models.py these tests skip; with CAI_REAL_TESTS=required (make test-real) they fail.
Everything goes through the command line and the files it writes. CAI_REAL_THREADS: torch's threads, 2 if not set.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_run import PATIENCE, PROMPTS, ROOT, Run, environment, model_folder, threads, write_settings


@pytest.fixture(scope="session")
def real_base() -> Path:
    return model_folder("smollm2", "tools/real_models.py")


@pytest.fixture(scope="session")
def reward_training(real_base, tmp_path_factory) -> tuple[Path, str]:
    """A reward model that tools/train_reward_model.py makes in a few steps, and what the tool printed."""
    folder = tmp_path_factory.mktemp("reward") / "reward"
    command = [sys.executable, str(ROOT / "tools" / "train_reward_model.py"), str(real_base), str(folder), str(PROMPTS)]
    command += "--negatives 1 --steps 6 --batch-size 4 --lr 1e-4 --held-out 0.2 --max-length 192".split()
    command += ["--threads", str(threads())]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.fixture(scope="session")
def reward_model(reward_training) -> Path:
    return reward_training[0]


@pytest.fixture(scope="session")
def settings_file(real_base, reward_model, tmp_path_factory) -> Path:
    return write_settings(tmp_path_factory.mktemp("settings") / "real.yaml", real_base, reward_model)


@pytest.fixture(scope="session")
def bakeoff(settings_file, tmp_path_factory) -> tuple[Run, str]:
    """A run in which two protocols were compared, and what that printed."""
    run = Run(tmp_path_factory.mktemp("runs") / "run", settings_file)
    said = run("bakeoff", "--n", "3", "--protocol", "two_step/short", "--protocol", "two_step/full")
    return run, said


@pytest.fixture(scope="session")
def undisturbed(bakeoff) -> tuple[Run, str]:
    """The same run with its pairs generated without a break, and what that printed."""
    run, _ = bakeoff
    run.copy("to-be-killed")
    return run, run("generate")


@pytest.fixture(scope="session")
def scored(undisturbed) -> tuple[Run, str]:
    run, _ = undisturbed
    return run, run("score")


@pytest.fixture(scope="session")
def reward_of(reward_model) -> Callable[[list[dict], str], float]:
    """The reward model called by plain transformers, one text at a time: what every score is held against."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_model)

    def reward(messages: list[dict], answer: str) -> float:
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        with torch.inference_mode():
            return model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0].item()

    return reward
