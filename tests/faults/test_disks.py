"""A disk that is full or read-only: said with the file's name, nothing that was written is lost, and it goes on later."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL
from oracles import conserved, ends_in_words, rows

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk"),
]
MIB = 1024**2
TRACES, ANSWERS = "pairs/traces.jsonl", "evaluation/responses.jsonl"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, large enough for what the commands ask for before they begin."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path, leave: int) -> Path:
    """A file that leaves so many bytes."""
    filler = place / "filler"
    with filler.open("wb") as file:
        for size in (MIB, 4096):
            while shutil.disk_usage(place).free > leave + size:
                file.write(bytes(size))
                file.flush()
    return filler


@pytest.mark.parametrize("leave", [0, 30_000, 400_000])
@pytest.mark.parametrize("begun", ["generate", "train", "evaluate"])
def test_a_disk_that_fills_up_in_the_middle_loses_no_row_and_the_run_goes_on(begun, leave, warm, disk, ledger):
    root = disk / "run"
    running = warm.start("run", *SMALL, "--workspace", root)
    waiting_for = {"generate": TRACES, "train": "checkpoints", "evaluate": "models/lora_adapters"}[begun]
    while not (root / waiting_for).exists() and not running.is_over():
        time.sleep(0.005)
    filler = fill(disk, leave)
    ended = running.wait(300)
    ledger.injected += 1
    ends_in_words(ended)
    before = {name: rows(root / name) for name in (TRACES, ANSWERS)}
    if ended.code:
        assert "no space left" in ended.said or "GiB are needed" in ended.said, ended.said
    filler.unlink()
    again = warm.start("run", *SMALL, "--workspace", root).wait(300)
    assert again.code == 0, again.err[-1500:]
    for name, earlier in before.items():
        ledger.rows_lost += (lost := conserved(earlier, rows(root / name)))
        assert lost == 0
    ledger.survived += 1


@pytest.mark.parametrize("command", ["run", "generate", "score", "curate", "analyze", "train", "evaluate", "export"])
def test_a_read_only_disk_is_named_by_every_command(command, warm, disk, finished_run, ledger):
    root = disk / "run"
    shutil.copytree(finished_run, root)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ended = warm.cai(command, "--workspace", root)
    ledger.injected += 1
    ends_in_words(ended)
    assert ended.code == 1
    assert "is read-only" in ended.said
    assert str(root) in ended.said
    ledger.survived += 1
