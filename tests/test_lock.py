"""Two processes on one workspace, with real processes."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cai_helpers import lock
from cai_helpers.curation.overrides import append_override, read_overrides
from cai_helpers.errors import CaiError, StoppedByHand, WorkspaceInUse
from cai_helpers.store import read_jsonl, write_json
from cai_helpers.workspace import Workspace

GENERATE = ["generate", "--preset", "smoke", "--limit", "60"]
GENERATE += ["--set", "generate.batch_size=2", "--set", "threads=1", "--set", "generate.protocol=single/short"]
HOLD = "import sys, time; from cai_helpers.workspace import Workspace; w = Workspace(sys.argv[1])\n"
HOLD += "with w.held(): print('held', flush=True); time.sleep(float(sys.argv[2]))"


@contextmanager
def another_process(root: Path, seconds: float = 60):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root), str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def a_lock_of(root: Path, **changes) -> Path:
    """The lock of this process as another one would find it, with some entries changed."""
    with lock.hold(root):
        values = json.loads((root / lock.FILE).read_text())
    write_json(root / lock.FILE, values | {"token": "another"} | changes)
    return root / lock.FILE


def age(file: Path, seconds: float) -> None:
    os.utime(file, (time.time() - seconds,) * 2)


@pytest.mark.slow
def test_a_second_generate_is_refused_and_after_a_kill_the_next_one_goes_on(warm, workspace):
    command = [*GENERATE, "--workspace", str(workspace.root)]
    first = warm.start(*command)
    try:
        while not workspace.traces.exists() or workspace.traces.read_bytes().count(b"\n") < 3:
            assert not first.is_over(), first.text()
            time.sleep(0.05)
        second = warm.cai(*command)
        assert not first.is_over(), "it was through before the second one came"
    finally:
        first.kill()
    assert first.wait().code == -signal.SIGKILL
    assert second.code == 1
    assert f"process {first.pid} on {platform.node()}, since 20" in second.err
    third = warm.cai(*command)
    assert third.code == 0, third.err
    assert f"taken over from process {first.pid} on {platform.node()}, since 20" in third.out
    rows = [row["id"] for row in read_jsonl(workspace.traces)]
    assert (len(rows), len(set(rows))) == (60, 60)
    assert workspace.manifest("generate").report["pairs"] == 60
    assert not (workspace.root / lock.FILE).exists()


def test_every_stage_is_refused_while_another_process_writes(smoke, workspace):
    from cai_helpers.pipeline import run_stage3
    from cai_helpers.stages.analyze import analyze_pairs
    from cai_helpers.stages.bakeoff import compare_protocols
    from cai_helpers.stages.calibrate import calibrate_scorer
    from cai_helpers.stages.curate import curate_pairs
    from cai_helpers.stages.evaluate import evaluate_models
    from cai_helpers.stages.export import export_artifacts
    from cai_helpers.stages.generate import generate_pairs
    from cai_helpers.stages.preflight import check_path
    from cai_helpers.stages.score import score_pairs
    from cai_helpers.stages.train import train_policy
    from cai_helpers.sweep import sweep

    stages = [run_stage3, analyze_pairs, compare_protocols, calibrate_scorer, curate_pairs, evaluate_models]
    stages += [export_artifacts, generate_pairs, check_path, score_pairs, train_policy]
    with another_process(workspace.root) as other:
        for stage in stages:
            with pytest.raises(WorkspaceInUse, match=f"process {other.pid} on "):
                stage(smoke, workspace)
        with pytest.raises(WorkspaceInUse):
            sweep(smoke, workspace, "beta=0.1,0.2")
        assert [path.name for path in workspace.root.iterdir()] == [lock.FILE]


def test_a_person_decides_in_the_inspector_while_another_process_trains(workspace):
    with another_process(workspace.root):
        append_override(workspace.overrides, "k" * 16, "p", "drop")
    assert read_overrides(workspace.overrides)["k" * 16].decision == "drop"


def test_stages_call_stages_and_the_lock_goes_with_the_last(workspace):
    with workspace.held():
        with Workspace(workspace.root).held():
            pass
        assert (workspace.root / lock.FILE).exists()
        workspace.say("test", "something that stays")
    assert [path.name for path in workspace.root.iterdir()] == ["logs"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CaiError("what", "todo"), CaiError),
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), StoppedByHand),
        (OSError(28, "No space", "a.jsonl"), CaiError),
    ],
)
def test_the_lock_is_given_back_whatever_happens(workspace, error, told):
    with pytest.raises(told), workspace.held():
        raise error
    assert not workspace.root.exists()  # nothing was written, so nothing is left behind
    with workspace.held():
        pass


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it(workspace):
    parent = os.getppid()  # alive
    a_lock_of(workspace.root, pid=parent, began=lock._began(parent))
    with pytest.raises(WorkspaceInUse, match=f"process {parent} on"), lock.hold(workspace.root):
        pass
    (workspace.root / lock.FILE).unlink()
    a_lock_of(workspace.root, pid=parent, began="1")
    with lock.hold(workspace.root) as dead:
        assert (dead.pid, dead.began) == (parent, "1")


def test_a_lock_that_stayed_in_a_folder_that_was_away_is_ones_own(workspace):
    a_lock_of(workspace.root)
    with lock.hold(workspace.root) as dead:
        assert dead.pid == os.getpid()


def test_a_zombie_is_dead(workspace):
    with another_process(workspace.root) as other:
        os.kill(other.pid, signal.SIGKILL)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not waited for
        with lock.hold(workspace.root) as dead:
            assert dead.pid == other.pid


def test_an_owner_on_another_machine_is_dead_after_five_minutes_of_silence(workspace):
    file = a_lock_of(workspace.root, machine="elsewhere", host="colab-7")
    age(file, 280)
    with pytest.raises(WorkspaceInUse, match="on colab-7") as caught, lock.hold(workspace.root):
        pass
    assert "its last sign of life came 280 s ago" in caught.value.todo
    age(file, 320)
    with lock.hold(workspace.root) as dead:
        assert dead.host == "colab-7"


def test_a_lock_without_a_name_in_it_counts_by_its_age(workspace):
    workspace.root.mkdir()
    (workspace.root / lock.FILE).touch()
    with pytest.raises(WorkspaceInUse, match="has not written its name yet"), lock.hold(workspace.root):
        pass
    age(workspace.root / lock.FILE, 320)
    with lock.hold(workspace.root):
        assert json.loads((workspace.root / lock.FILE).read_text())["pid"] == os.getpid()


def test_an_owner_shows_that_it_lives(workspace, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.hold(workspace.root):
        age(workspace.root / lock.FILE, 1000)
        for _ in range(500):
            if lock._silence(workspace.root / lock.FILE) < 100:
                break
            time.sleep(0.02)
        assert lock._silence(workspace.root / lock.FILE) < 100


def test_an_owner_that_was_taken_for_dead_writes_no_more(workspace, monkeypatch):
    """A laptop that slept: meanwhile another machine took the workspace over."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with pytest.raises(WorkspaceInUse, match="process 7 on colab-7"), workspace.held():  # noqa: PT012
        values = json.loads((workspace.root / lock.FILE).read_text())
        others = values | {"host": "colab-7", "pid": 7, "machine": "elsewhere", "token": "another"}
        (workspace.root / lock.FILE).write_text(json.dumps(others))
        for _ in range(500):
            workspace.say("test", "still writing")
            time.sleep(0.02)
    assert json.loads((workspace.root / lock.FILE).read_text())["pid"] == 7, "the other one's lock stays"


def test_of_many_that_find_a_dead_owner_one_gets_the_lock(workspace):
    a_lock_of(workspace.root, pid=2**22 + 1, began="1")  # above the largest number there is
    command = [sys.executable, "-c", HOLD, str(workspace.root), "20"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen(command, **pipes) for _ in range(4)]
    try:
        deadline = time.monotonic() + 60
        while sum(rival.poll() is None for rival in rivals) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        refused = [rival for rival in rivals if rival.poll() is not None]
        assert len(refused) == 3
        assert all("WorkspaceInUse" in rival.stderr.read() for rival in refused)
    finally:
        for rival in rivals:
            rival.kill()
            rival.communicate()
