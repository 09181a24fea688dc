"""USE.md in a stranger's hands: a new virtual environment with transformers and peft, and each block pasted as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import install
import pytest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment that knows nothing of this project. Packages come from where pip finds them."""
    environment = tmp_path_factory.mktemp("stranger") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install.install_torch(environment)
    install.pip(environment, "install", "transformers", "peft")
    return install.python_of(environment)


@pytest.fixture(scope="module")
def folder(small_run, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    with zipfile.ZipFile(small_run.export_dir / "stage3_constitutional.zip") as archive:
        archive.extractall(home)
    return home / "stage3_constitutional"


def pasted(python: Path, folder: Path, heading: str) -> str:
    """What the block below a heading of USE.md prints."""
    code = (folder / "USE.md").read_text().split(f"## {heading}\n")[1].split("```python\n")[1].split("```")[0]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def promised(folder: Path) -> str:
    text = (folder / "USE.md").read_text().split("the answer to this held-out question was:\n\n")[1].split("\n\n## ")[0]
    return "\n".join(line.removeprefix("> ") for line in text.strip().split("\n"))


def test_there_is_nothing_of_this_project_in_the_environment(python):
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    names = {package["name"].lower().replace("_", "-") for package in json.loads(listed.stdout)}
    assert {"torch", "transformers", "peft"} <= names
    assert names.isdisjoint({"cai-helpers", "trl", "datasets"})


def test_a_stranger_who_pastes_use_md_gets_the_answer_that_the_trained_policy_gave(python, folder):
    assert pasted(python, folder, "Chat").strip() == promised(folder)


def test_the_merged_model_is_saved_and_answers_as_the_policy_did(python, folder):
    pasted(python, folder, "Merge and save")
    chat = (folder / "USE.md").read_text().split("## Chat\n")[1].split("```python\n")[1].split("```")[0]
    alone = "\n".join(line for line in chat.split("\n") if "PeftModel" not in line and "from peft" not in line)
    alone = alone.replace('"models/base"', '"merged"').replace('"models/lora_adapters"', '"merged"')
    answered = subprocess.run([python, "-c", alone], cwd=folder, capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip() == promised(folder)


def test_trl_trains_on_from_the_adapter(python, folder):
    install.pip(python.parent.parent, "install", "trl>=1.15")
    printed = pasted(python, folder, "Continue training")
    assert "'eval_rewards/margins'" in printed
    before = (folder / "models/lora_adapters/adapter_model.safetensors").read_bytes()
    after = (folder / "continued/adapter/adapter_model.safetensors").read_bytes()
    assert len(after) > 0.9 * len(before)
    assert after != before
