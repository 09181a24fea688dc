"""A run that is kept elsewhere comes back whole, and a place that fails is said, never believed."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai_helpers.cli import app
from cai_helpers.errors import CaiError, WorkspaceInUse
from cai_helpers.keeping.keeper import keep
from cai_helpers.keeping.listing import LIST, MARK
from cai_helpers.store import JsonlStore
from cai_helpers.workspace import Workspace


@pytest.fixture
def drive(tmp_path) -> Path:
    (tmp_path / "drive" / "cai").mkdir(parents=True)
    return tmp_path / "drive" / "cai" / "first"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    workspace = Workspace(tmp_path / "run")
    JsonlStore(workspace.traces).append([{"id": str(number), "text": "word " * 50} for number in range(20)])
    workspace.settings_file.write_text('{"preset": "smoke"}\n')
    return workspace


def content(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
        and path.name not in (LIST, MARK, "kept.before.json", "lock.json")
        and path.parent.name != "logs"
    }


def new_machine(tmp_path: Path, name: str = "elsewhere") -> Workspace:
    return Workspace(tmp_path / name)


def test_an_empty_machine_gets_all_that_was_kept_and_the_place_says_how_far_it_is(workspace, drive, tmp_path):
    with keep(workspace, str(drive)) as keeper:
        assert keeper.save()
        assert keeper.line().startswith(f"safe at {drive}: 20 pairs, 20")
    other = new_machine(tmp_path)
    with keep(other, str(drive)) as keeper:
        assert keeper.line().startswith(f"safe at {drive}: 20 pairs")
        assert content(other.root) == content(workspace.root)
    assert "brought back from" in other.run_log.read_text()


def test_rows_are_taken_up_to_the_last_whole_one_and_what_is_half_written_stays_here(workspace, drive, tmp_path):
    with workspace.traces.open("ab") as file:
        file.write(b'{"id": "half')
    (workspace.root / "weights.tmp").write_bytes(b"half")
    unsealed = workspace.checkpoints / "checkpoint-3"
    unsealed.mkdir(parents=True)
    (unsealed / "adapter_model.safetensors").write_bytes(b"half")
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    assert (drive / "pairs/traces.jsonl").read_bytes().count(b"\n") == 20
    assert (drive / "pairs/traces.jsonl").read_bytes().endswith(b"}\n")
    assert set(content(drive)) == {"pairs/traces.jsonl", "settings.json"}
    (unsealed / "complete.json").write_text("{}")
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
        assert "checkpoint 3" in keeper.line()
    assert "checkpoints/checkpoint-3/adapter_model.safetensors" in content(drive)


def test_what_is_removed_here_is_removed_there_once_the_new_state_is_whole(workspace, drive):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
        workspace.traces.unlink()
        (workspace.root / "new").write_bytes(b"new")
        keeper.save()
    assert set(content(drive)) == {"settings.json", "new"}
    assert not (drive / "pairs").exists()


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "removed"])
def test_a_file_that_the_drive_tore_is_left_out_and_said(workspace, drive, tmp_path, damage):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    file = drive / "pairs/traces.jsonl"
    whole = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes({"cut": whole[:-40], "emptied": b"", "flipped": whole[:99] + b"#" + whole[100:]}[damage])
    other = new_machine(tmp_path)
    with keep(other, str(drive)) as keeper:
        assert not other.traces.exists()
        assert (other.root / "settings.json").exists()
        assert "not whole at" in other.run_log.read_text()
        assert "pairs/traces.jsonl" in other.run_log.read_text()
        JsonlStore(other.traces).append([{"id": "again"}])
        assert keeper.save()
    assert (drive / "pairs/traces.jsonl").read_bytes() == other.traces.read_bytes()


def test_of_a_checkpoint_of_which_one_file_is_torn_none_comes_back(workspace, drive, tmp_path):
    folder = workspace.checkpoints / "checkpoint-6"
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "complete.json"):
        (folder / name).write_bytes(name.encode() * 9)
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    (drive / "checkpoints/checkpoint-6/optimizer.pt").write_bytes(b"")
    other = new_machine(tmp_path)
    with keep(other, str(drive)):
        assert not list(other.root.glob("checkpoints/checkpoint-6/*"))
        assert other.traces.exists()


def test_a_torn_list_gives_way_to_the_one_before(workspace, drive, tmp_path):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
        (workspace.root / "more").write_bytes(b"more")
        keeper.save()
    (drive / LIST).write_bytes((drive / LIST).read_bytes()[:50])
    other = new_machine(tmp_path)
    with keep(other, str(drive)):
        assert content(other.root) == content(workspace.root)


def test_a_kill_between_two_files_leaves_a_place_from_which_each_comes_back_as_the_old_or_the_new_one(
    workspace, drive, tmp_path, monkeypatch
):
    from cai_helpers.keeping import places

    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    old = content(workspace.root)
    workspace.settings_file.write_text('{"preset": "t4"}\n')
    JsonlStore(workspace.traces).append([{"id": "new"}])
    new = content(workspace.root)
    whole, copied = places.copy, []

    def dies_at_the_second(part, target):
        copied.append(target)
        if len(copied) == 2:
            raise OSError("killed")
        return whole(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(places, "copy", dies_at_the_second)
        keeper = keep(workspace, str(drive))
        assert not keeper.save()
        keeper._owned.close()  # as the system does with a process that is killed
        keeper._ended.set()
    other = new_machine(tmp_path)
    with keep(other, str(drive)):
        back = content(other.root)
        assert back["pairs/traces.jsonl"] == new["pairs/traces.jsonl"]
        assert back["settings.json"] == old["settings.json"]
    assert content(drive) == back
    shutil.rmtree(other.root)
    with keep(new_machine(tmp_path, "third"), str(drive)):
        assert content(tmp_path / "third") == back


def test_this_machine_wins_where_it_wrote_the_place_last(workspace, drive):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    JsonlStore(workspace.traces).append([{"id": "later"}])
    with keep(workspace, str(drive)) as keeper:
        assert workspace.traces.read_bytes().count(b"\n") == 21
        keeper.save()
    assert (drive / "pairs/traces.jsonl").read_bytes().count(b"\n") == 21


def test_a_machine_that_stood_still_takes_over_what_another_made_meanwhile(workspace, drive, tmp_path):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    other = new_machine(tmp_path)
    with keep(other, str(drive)):
        JsonlStore(other.traces).append([{"id": "elsewhere"}])
        other.settings_file.unlink()
    shutil.rmtree(workspace.logs, ignore_errors=True)
    with keep(workspace, str(drive)):
        assert workspace.traces.read_bytes().count(b"\n") == 21
        assert not workspace.settings_file.exists()


def test_where_both_went_on_nothing_is_overwritten_and_it_is_said(workspace, drive, tmp_path):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    other = new_machine(tmp_path)
    with keep(other, str(drive)):
        JsonlStore(other.traces).append([{"id": "elsewhere"}])
    JsonlStore(workspace.traces).append([{"id": "here"}])
    before = content(drive), content(workspace.root)
    with pytest.raises(CaiError, match="have both gone on"):
        keep(workspace, str(drive))
    assert (content(drive), content(workspace.root)) == before


def test_a_place_that_holds_something_else_is_refused(workspace, drive):
    drive.mkdir()
    (drive / "holiday.jpg").write_bytes(b"photo")
    with pytest.raises(CaiError, match="holds something, but no list of a kept run"):
        keep(workspace, str(drive))
    assert [path.name for path in drive.iterdir()] == ["holiday.jpg"]


def test_a_place_on_a_drive_that_is_not_mounted_is_refused_and_not_made(workspace, tmp_path):
    with pytest.raises(CaiError, match="There is no folder .*MyDrive"):
        keep(workspace, str(tmp_path / "MyDrive" / "cai" / "first"))
    assert not (tmp_path / "MyDrive").exists()


def test_a_second_process_is_refused_and_a_dead_one_is_taken_over(warm, workspace, drive, tmp_path):
    hold = (
        "import time; from cai_helpers.keeping.keeper import keep; from cai_helpers.workspace import Workspace\n"
        f"keeper = keep(Workspace({str(workspace.root)!r}), {str(drive)!r}); keeper.save(); print('held', flush=True); time.sleep(99)"
    )
    first = warm.start(prelude=hold)
    while "held" not in first.text():
        assert not first.is_over(), first.text()
        time.sleep(0.02)
    with pytest.raises(WorkspaceInUse, match=f"process {first.pid}"):
        keep(new_machine(tmp_path), str(drive))
    first.kill(signal.SIGKILL)
    first.wait()
    with keep(new_machine(tmp_path, "third"), str(drive)):
        assert content(tmp_path / "third") == content(workspace.root)


def test_a_drive_that_vanishes_is_said_and_not_made_again_and_one_that_comes_back_is_taken_up(workspace, drive):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
        drive.parent.rename(drive.parent.with_name("gone"))
        JsonlStore(workspace.traces).append([{"id": "alone"}])
        assert not keeper.save()
        assert keeper.line().startswith(f"NOT kept at {drive} since ")
        assert "20 pairs" in keeper.line()
        assert not drive.exists()
        shutil.copytree(drive.parent.with_name("gone"), drive.parent)  # mounted anew: other inodes
        assert keeper.save()
        assert "21 pairs" in keeper.line()
    assert (drive / "pairs/traces.jsonl").read_bytes() == workspace.traces.read_bytes()
    assert "WARNING: not kept at" in workspace.run_log.read_text()


def test_a_drive_that_comes_back_with_the_work_of_another_machine_is_not_overwritten(workspace, drive, tmp_path):
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
        gone = drive.parent.with_name("gone")
        drive.parent.rename(gone)
        (gone / "first" / "lock.json").unlink()  # grown old: the run was taken for dead
        with keep(new_machine(tmp_path), str(gone / "first")):
            JsonlStore(tmp_path / "elsewhere" / "pairs" / "traces.jsonl").append([{"id": "elsewhere"}])
        shutil.copytree(gone, drive.parent)
        theirs = content(drive)
        JsonlStore(workspace.traces).append([{"id": "here"}])
        assert not keeper.save()
        assert "another machine has written to" in keeper.line()
    assert content(drive) == theirs


def test_a_drive_that_hangs_does_not_keep_a_command_from_ending(workspace, drive, monkeypatch):
    from cai_helpers.keeping import keeper as keeping
    from cai_helpers.keeping import places

    released = threading.Event()
    keeper = keep(workspace, str(drive))
    monkeypatch.setattr(keeping, "_LONGEST", 0.2)
    monkeypatch.setattr(places, "copy", lambda part, target: released.wait(20))
    threading.Thread(target=keeper.save, daemon=True).start()
    keeper._thread = threading.Thread(target=released.wait, daemon=True)
    keeper._thread.start()
    assert not keeper.close()
    assert "it has not answered" in keeper.line()
    released.set()


def test_a_drive_that_is_slow_holds_nothing_up_and_has_all_of_it_in_the_end(workspace, drive, monkeypatch):
    from cai_helpers.keeping import keeper as keeping
    from cai_helpers.keeping import places

    whole, written_meanwhile = places.copy, []

    def slow(part, target):
        before = workspace.traces.stat().st_size
        time.sleep(0.4)
        written_meanwhile.append(workspace.traces.stat().st_size - before)
        return whole(part, target)

    def often(name):
        place = places.open_place(name)
        place.pause = 0.01  # a copy is always under way
        return place

    monkeypatch.setattr(places, "copy", slow)
    monkeypatch.setattr(keeping, "open_place", often)
    monkeypatch.setattr(keeping, "_LOOK", 0.01)
    store = JsonlStore(workspace.traces)
    with keep(workspace, str(drive)):
        for number in range(30):
            store.append([{"id": f"while it copies {number}"}])
            time.sleep(0.05)
    assert max(written_meanwhile) > 0
    assert content(drive) == content(workspace.root)


def test_a_command_that_could_not_keep_its_work_ends_with_exit_code_1_and_one_that_could_says_so(tmp_path, monkeypatch):
    from cai_helpers.keeping import places

    command = ["calibrate", "--preset", "smoke", "--set", "calibrate.limit=8", "--workspace", str(tmp_path / "run")]
    command += ["--keep", str(tmp_path / "drive" / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(
            places, "copy", lambda part, target: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 1
    assert "NOT kept at" in ended.output
    assert "No space left on device" in ended.output
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    assert f"kept     safe at {tmp_path}/drive/run" in ended.output
    assert "calibration/result.json" in content(tmp_path / "drive" / "run")


def test_no_file_of_a_workspace_says_where_it_is_kept(workspace, drive):
    """A workspace from a stranger must not send a person's work anywhere: the mark is compared, never followed."""
    with keep(workspace, str(drive)) as keeper:
        keeper.save()
    mark = json.loads((workspace.root / MARK).read_text())
    assert mark["where"] == str(drive)
    shutil.rmtree(drive)
    with keep(workspace, "") as keeper:
        assert keeper.save()
    assert not drive.exists()
