"""The `cai` command as a person calls it, its settings for small runs on real weights, and what is looked at afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODELS = ROOT / "artifacts" / "real"
PROMPTS = HERE / "prompts.jsonl"
PATIENCE = 600  # seconds that any one command may take


class Run:
    """The `cai` command on one workspace with one settings file."""

    def __init__(self, root: Path, settings: Path) -> None:
        self.root, self.settings = root, settings

    def command(self, name: str, *arguments: str) -> list[str]:
        common = ["--preset", str(self.settings), "--workspace", str(self.root)]
        return [sys.executable, "-m", "cai_helpers.cli", name, *arguments, *common]

    def __call__(self, name: str, *arguments: str, code: int = 0, online: bool = False) -> str:
        """Run it to its end; what it printed. online: it may send requests to a server on this machine."""
        done = subprocess.run(
            self.command(name, *arguments), env=environment(online), capture_output=True, text=True, timeout=PATIENCE
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, f"cai {name} ended with {done.returncode} instead of {code}:\n{said}"
        return said

    def killed(self, name: str, *arguments: str, when: Callable[[], bool]) -> None:
        """Start it, and kill it with SIGKILL as soon as `when()` holds; fails if it ends before."""
        with started(self.command(name, *arguments), self.root.with_suffix(".log")) as process:
            wait_until(when, process)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL

    def rows(self, name: str) -> list[dict]:
        return read_rows(self.root / name)

    def copy(self, name: str) -> Run:
        shutil.copytree(self.root, self.root.with_name(name))
        return Run(self.root.with_name(name), self.settings)


def environment(online: bool = False) -> dict[str, str]:
    changes = {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    own = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "CAI_PRESET")}
    # huggingface_hub in offline mode sends no request at all, not to this machine either
    return own | changes | ({} if online else {"HF_HUB_OFFLINE": "1"})


class started:
    """A process that does not outlive its block; what it says goes to a file."""

    def __init__(self, command: list[str], log: Path, online: bool = False) -> None:
        self._command, self._log, self._online = command, log, online

    def __enter__(self) -> subprocess.Popen:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                self._command, env=environment(self._online), stdout=log, stderr=subprocess.STDOUT
            )
        self.process.said = lambda: self._log.read_text(errors="replace")
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns once `condition()` holds; fails when the process ends before, or after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode} before that:\n{process.said()}"
        assert time.monotonic() < end, f"it did not come to that in {PATIENCE} s:\n{process.said()}"
        time.sleep(0.05)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def written(path: Path) -> int:
    """Whole rows in a file that another process is writing; 0 while it does not exist."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def model_folder(name: str, made_by: str) -> Path:
    if not (MODELS / name / "made_from.json").exists():
        missing = f"artifacts/real/{name} is missing: python {made_by} makes it"
        if os.environ.get("CAI_REAL_TESTS") == "required":
            pytest.fail(f"The tests on real weights cannot run: {missing}", pytrace=False)
        pytest.skip(f"NO TEST ON REAL WEIGHTS RUNS HERE. {missing}")
    return MODELS / name


def write_settings(path: Path, base: Path, reward: Path) -> Path:
    """Small in every dimension but the model's."""
    values = {
        "threads": threads(),
        "models": {
            "base": str(base), "adapter": None, "reward": {"model": str(reward), "input": "chat"}, "dtype": "fp32",
        },
        "prompts": {"source": str(PROMPTS), "eval_source": None, "eval_count": 4, "limit": 10},
        "generate": {"protocol": "two_step/short", "draft_tokens": 32, "critic_tokens": 64, "batch_size": 3},
        "score": {"batch_size": 8},
        "calibrate": {"gold": None},
        "curate": {"min_pairs": 6, "eval_fraction": 0.2, "near_duplicates": None},
        "train": {
            "epochs": 1, "batch_size": 2, "accumulation": 1, "every_steps": 2, "max_length": 192, "log_steps": 1,
            "learning_rate": 1e-4, "lora_r": 8, "lora_alpha": 16, "gradient_checkpointing": False,
        },
        "evaluate": {"max_tokens": 32, "batch_size": 4, "builtin": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def threads() -> int:
    return int(os.environ.get("CAI_REAL_THREADS", min(2, os.cpu_count() or 1)))


def figure(said: str, name: str) -> str:
    """The value in the line of a report that begins with `name`."""
    match = re.search(rf"^  {re.escape(name)}  +(.*)$", said, re.MULTILINE)
    assert match, f"no line {name!r} in:\n{said}"
    return match[1]


def wilson(successes: int, total: int) -> tuple[float, float]:
    """The ends of Wilson's 95 % interval, by hand."""
    z, share = 1.959964, successes / total
    half = z * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5 / (1 + z**2 / total)
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    return centre - half, centre + half


def write_pairs_by_hand(run: Run, reward_of: Callable[[list[dict], str], float]) -> Path:
    """The eight columns of a file from elsewhere: the run's own drafts, and the answers written by hand in prompts.jsonl.

    reward_of: scores of the answers; those of the drafts are the run's.
    """
    answers = {row["messages"][0]["content"]: row["better"] for row in read_rows(PROMPTS)}
    rows = []
    for pair in run.rows("pairs/pairs.jsonl"):
        answer = answers[pair["prompt"]]
        score = reward_of(pair["messages"], answer)
        rows.append(
            {
                "prompt": pair["prompt"],
                "base_response": pair["base_response"],
                "revised_response": answer,
                "base_score": pair["base_score"],
                "revised_score": score,
                "chosen": "revised" if score > pair["base_score"] else "base",
                "critic_notes": "",
                "principle_ids": "",
            }
        )
    file = run.root.parent / f"{run.root.name}-by-hand.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
