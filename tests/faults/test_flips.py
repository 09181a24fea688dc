"""One number is altered in each file of a finished run, one file at a time: it is noticed, or the result is what it was."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from oracles import Ledger, ends_in_words, no_negative_count
from safetensors.torch import load_file

pytestmark = pytest.mark.faults
NOT_A_RESULT = ("archive", "logs")  # what no later stage reads
NUMBER = re.compile(rb"(?<![\w.\-])[1-9](?=[\d.]*[,\s}\]])")


def alter(file: Path) -> bool:
    """Another first digit for the number in the middle of a text; one other byte in the middle of anything else."""
    content = bytearray(file.read_bytes())
    if not content:
        return False
    text = file.suffix in (".json", ".jsonl", ".html", ".md", ".jinja")
    places = [match.start() for match in NUMBER.finditer(bytes(content))] if text else [len(content) // 2]
    if not places:
        return False
    place = places[len(places) // 2]
    content[place] = ord("1") + (content[place] - ord("0")) % 9 if text else content[place] ^ 0x41
    file.write_bytes(bytes(content))
    return True


def verdict_of(root: Path) -> object:
    figures = json.loads((root / "metrics.json").read_text(encoding="utf-8"))["evaluate"]
    adapter = load_file(root / "models/lora_adapters/adapter_model.safetensors")
    return figures, {name: tensor.tolist() for name, tensor in adapter.items()}


def test_an_altered_number_in_any_file_is_noticed_or_changes_nothing(warm, finished_run, tmp_path, ledger: Ledger):
    expected = verdict_of(finished_run)
    names = sorted(
        path.relative_to(finished_run)
        for path in finished_run.rglob("*")
        if path.is_file() and path.relative_to(finished_run).parts[0] not in NOT_A_RESULT
    )
    wrong = []
    for name in names:
        root = tmp_path / "run"
        shutil.copytree(finished_run, root)
        if alter(root / name):
            ledger.injected += 1
            ended = warm.start("run", "--workspace", root).wait(300)
            ends_in_words(ended)
            if ended.code == 0 and name.name != "settings.json":  # other settings are another run, and it says so
                if verdict_of(root) != expected and "runs again" not in ended.out + ended.err:
                    wrong.append(str(name))
                no_negative_count(json.loads((root / "metrics.json").read_text(encoding="utf-8"))["evaluate"])
            ledger.survived += str(name) not in wrong
        shutil.rmtree(root)
    ledger.false_successes += len(wrong)
    assert wrong == []
