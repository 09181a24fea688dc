# ruff: noqa: F811 - a fixture of another file is imported, and is an argument
"""The runtime is gone, its disk with it; what was kept on the drive makes the run end as if it never had been."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL
from oracles import conserved, ends_in_words, rows
from test_disks import disk, fill  # noqa: F401 - a fixture
from test_kills import same_run

TRACES, ANSWERS = "pairs/traces.jsonl", "evaluation/responses.jsonl"
OFTEN = """
from cai_helpers.keeping import keeper, places
begin = places.FolderPlace.__init__
def often(self, folder):
    begin(self, folder)
    self.pause = 0.2
places.FolderPlace.__init__, keeper._LOOK = often, 0.1
"""  # a run of half a minute has no minutes between two copies
SAVING = ("--set", "train.every_steps=2", "--set", "train.log_steps=1")

pytestmark = pytest.mark.faults


def some(file: str) -> Callable[[Path], bool]:
    return lambda place: (place / file).exists() and (place / file).read_bytes().count(b"\n") >= 5


def checkpoint(place: Path) -> bool:
    return any(place.glob("checkpoints/checkpoint-*/complete.json"))


@pytest.fixture(scope="module")
def whole(warm, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    root = tmp_path_factory.mktemp("whole") / "run"
    assert warm.cai("run", *SMALL, *SAVING, "--workspace", root).code == 0
    return root


MOMENTS = {"pairs": some(TRACES), "checkpoint": checkpoint, "answers": some("evaluation/answers.jsonl")}


@pytest.mark.parametrize("moment", MOMENTS)
def test_from_the_drive_alone_a_killed_run_ends_on_an_empty_machine_as_if_it_never_had_been(
    moment, warm, whole, tmp_path, ledger
):
    place = tmp_path / "drive" / "cai" / "first"
    place.parent.mkdir(parents=True)
    running = warm.start("run", *SMALL, *SAVING, "--workspace", tmp_path / "one", "--keep", place, prelude=OFTEN)
    while not MOMENTS[moment](place):
        assert not running.is_over(), running.text()[-2000:]
        time.sleep(0.02)
    running.kill(signal.SIGKILL)
    running.wait()
    kept = {name: rows(place / name) for name in (TRACES, ANSWERS)}
    shutil.rmtree(tmp_path / "one")
    ended = warm.cai("run", *SMALL, *SAVING, "--workspace", tmp_path / "two", "--keep", place)
    ends_in_words(ended)
    assert ended.code == 0, ended.err[-2000:]
    assert "brought back from" in ended.out + ended.err
    ledger.injected += 1
    lost = sum(conserved(kept[name], rows(tmp_path / "two" / name)) for name in kept)
    differing = same_run(whole, tmp_path / "two")
    ledger.rows_lost += lost
    ledger.bytes_lost += "adapter" in differing
    assert (lost, differing) == (0, [])
    assert same_run(whole, place) == []
    ledger.survived += 1


def test_a_drive_that_fills_up_stops_nothing_is_said_and_is_caught_up_once_there_is_room(warm, disk, tmp_path, ledger):
    place = disk / "cai" / "first"
    place.parent.mkdir()
    filler = fill(disk, leave=60_000)
    root = tmp_path / "run"
    ended = warm.cai("run", *SMALL, "--workspace", root, "--keep", place, prelude=OFTEN)
    ends_in_words(ended)
    assert ended.code == 1
    assert "NOT kept at" in ended.err
    assert "No space left on device" in ended.err
    assert (root / "export" / "stage3_constitutional.zip").exists()  # the run went on
    filler.unlink()
    ledger.injected += 1
    assert warm.cai("run", *SMALL, "--workspace", root, "--keep", place).code == 0
    assert same_run(root, place) == []
    ledger.survived += 1


def test_a_drive_that_is_unmounted_in_the_middle_stops_nothing_and_nothing_is_written_under_it(
    warm,
    disk,
    tmp_path,
    ledger,
):
    place = disk / "cai" / "first"
    place.parent.mkdir()
    running = warm.start("run", *SMALL, "--workspace", tmp_path / "run", "--keep", place, prelude=OFTEN)
    while not some(TRACES)(place):
        assert not running.is_over(), running.text()[-2000:]
        time.sleep(0.02)
    subprocess.run(["umount", "-l", disk], check=True)
    ended = running.wait(300)
    ledger.injected += 1
    ends_in_words(ended)
    assert ended.code == 1
    assert "NOT kept at" in ended.err
    assert list(disk.iterdir()) == []
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", disk], check=True)  # for the fixture to unmount
    ledger.survived += 1
