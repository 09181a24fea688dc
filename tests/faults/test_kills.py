"""A process that ends at any moment loses what it had not written, and nothing else: the run ends as if it never had."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL
from oracles import conserved, ends_in_words, rows
from safetensors.torch import load_file
from warm import Ended

from cai_helpers.store import read_json

ROWS = ("pairs/traces.jsonl", "evaluation/responses.jsonl")  # what takes long to make, row by row
SAME = ("pairs/traces.jsonl", "pairs/pairs.jsonl", "dpo_dataset/train.jsonl", "evaluation/responses.jsonl")
ADAPTER = "models/lora_adapters/adapter_model.safetensors"
OF_A_CALL = {"seconds", "generated_now", "notes"}  # figures of an evaluation that say how it was made
# All of them in `make test-faults CAI_KILLS=1`; `.ci/run` takes a share, so that the suite ends within a quarter of an hour.
SHARE = float(os.environ.get("CAI_KILLS", "1"))
KILLS = round(28 * SHARE)  # at random moments of a whole run, four times; besides those within a save
SAVES = round(22 * SHARE)
STOPS = round(30 * SHARE)
SOON = 5.0  # seconds within which Ctrl-C ends a command

pytestmark = pytest.mark.faults


def same_run(one: Path, two: Path) -> list[str]:
    """What differs between two finished workspaces, of what a run is for."""
    differing = [name for name in SAME if sorted(rows(one / name).items()) != sorted(rows(two / name).items())]
    ours, theirs = (load_file(root / ADAPTER) for root in (one, two))
    if ours.keys() != theirs.keys() or any(not ours[name].equal(theirs[name]) for name in ours):
        differing.append("adapter")
    ours, theirs = (read_json(root / "metrics.json", "")["evaluate"] for root in (one, two))
    figures = ours.keys() | theirs.keys()
    return differing + [name for name in sorted(figures - OF_A_CALL) if ours.get(name) != theirs.get(name)]


def kept_rows(root: Path) -> dict[str, dict[str, dict]]:
    return {name: rows(root / name) for name in ROWS}


@pytest.mark.parametrize("part", range(4))  # so that two processes share them
def test_killed_again_and_again_a_run_ends_as_if_it_never_had_been(part, warm, finished_run, tmp_path, ledger):
    moments, killed, number = random.Random(part), 0, 0
    while killed < KILLS:
        root, before = tmp_path / f"run-{number}", {name: {} for name in ROWS}
        number += 1
        patience = 0.5
        while True:
            running = warm.start("run", *SMALL, "--workspace", root)
            time.sleep(moments.uniform(0.05, 1.0) * patience)
            if not running.is_over():
                running.kill(signal.SIGKILL)
            ended = running.wait()
            after = kept_rows(root)
            ledger.rows_lost += (lost := sum(conserved(before[name], after[name]) for name in ROWS))
            assert lost == 0
            before = after
            if ended.code != -signal.SIGKILL:
                break
            killed += 1
            ledger.injected += 1
            patience = min(patience * 1.15, 20)  # it has to come through at last
        ends_in_words(ended)
        assert ended.code == 0, ended.err[-2000:]
        differing = same_run(root, finished_run)
        ledger.bytes_lost += "adapter" in differing
        ledger.false_successes += bool(differing)
        assert differing == []
        shutil.rmtree(root)
    ledger.survived += killed


def test_killed_within_saves_training_ends_with_the_same_bits(warm, finished_run, tmp_path, ledger):
    """Every step is saved; the process dies while files of a checkpoint are being written."""
    options = ("--set", "train.every_steps=1", "--set", "train.epochs=4")
    undisturbed = untrained(finished_run, tmp_path / "undisturbed")
    assert warm.cai("train", *options, "--workspace", undisturbed).code == 0
    moments, killed, number = random.Random(1), 0, 0
    while killed < SAVES:
        root, before = untrained(finished_run, tmp_path / f"killed-{number}"), killed
        number += 1
        while (ended := killed_within_a_save(warm, root, options, moments)).code != 0:
            assert ended.code == -signal.SIGKILL, ended.err[-2000:]
            killed += 1
            ledger.injected += 1
        ours, theirs = (load_file(path / ADAPTER) for path in (root, undisturbed))
        differing = [name for name in theirs if not ours[name].equal(theirs[name])]
        ledger.bytes_lost += sum(theirs[name].nbytes for name in differing)
        assert differing == []
        assert killed > before + 3, "the kills did not hit the saves"
        shutil.rmtree(root)
    ledger.survived += killed


def untrained(finished: Path, root: Path) -> Path:
    shutil.copytree(finished, root)
    shutil.rmtree(root / "checkpoints")
    shutil.rmtree(root / "models")
    for mark in root.glob("manifests/train*"):
        mark.unlink()
    return root


def killed_within_a_save(warm, root: Path, options: tuple[str, ...], moments: random.Random) -> Ended:
    """Train until the first or second checkpoint of this call is being written, and kill it there; or to the end."""

    def saves() -> set[str]:
        return {path.name for path in (root / "checkpoints").glob("*checkpoint*")}

    seen, wanted = saves(), moments.randint(1, 2)
    running = warm.start("train", *options, "--workspace", root)
    while not running.is_over():
        if len(saves() - seen) >= wanted:
            time.sleep(moments.uniform(0, 0.03))
            if not running.is_over():
                running.kill(signal.SIGKILL)
            break
        time.sleep(0.0005)
    return running.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stopped_at_any_moment_a_run_says_so_with_130_and_goes_on_later(number, warm, finished_run, tmp_path, ledger):
    moments, stopped, patience = random.Random(int(number)), 0, 1.0
    root, before = tmp_path / "run", {name: {} for name in ROWS}
    while stopped < STOPS // 2:
        running = warm.start("run", *SMALL, "--workspace", root)
        time.sleep(moments.uniform(0.1, 1.0) * patience)
        if not running.is_over():
            running.kill(number)
        pressed = time.monotonic()
        ended = running.wait()
        ends_in_words(ended)
        after = kept_rows(root)
        ledger.rows_lost += (lost := sum(conserved(before[name], after[name]) for name in ROWS))
        assert lost == 0
        before = after
        if ended.code == 0:
            assert same_run(root, finished_run) == []
            shutil.rmtree(root)
            before, patience = {name: {} for name in ROWS}, 1.0
            continue
        assert ended.code == 130
        assert time.monotonic() - pressed < SOON
        assert "topped" in ended.said, ended.err[-500:]
        stopped += 1
        ledger.injected += 1
        ledger.survived += 1
        patience *= 1.15


def heeding_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in a shell's background


@pytest.mark.parametrize("after", [0.15, 0.4, 0.8, 1.5, 2.5])
def test_stopped_while_it_imports_it_says_so_too(after, tmp_path, ledger):
    """A real start, not a warm one."""
    command = [sys.executable, "-m", "cai_helpers", "run", *SMALL, "--workspace", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_ctrl_c
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    ledger.injected += 1
    assert process.returncode in (130, -signal.SIGINT)
    if process.returncode == 130 and err:  # Python itself ends without a word, or by the signal, while it starts
        assert "topped" in err
        assert "Traceback" not in err
    ledger.survived += 1
