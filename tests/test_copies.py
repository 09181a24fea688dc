"""Copies of checkpoints: whole or not at all, found again by the same run alone, and never the end of a training.

The Hub's side is the real code against a stand-in for the network: a folder behind huggingface_hub's functions.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

from cai_helpers.contents import hashes_below
from cai_helpers.errors import CaiError
from cai_helpers.store import write_jsonl
from cai_helpers.training.policy.reference_store import reference_of
from cai_helpers.training.watch import checkpoints, copies
from cai_helpers.training.watch.copies import RunFiles
from cai_helpers.workspace import Workspace

TRUE_API, TRUE_DOWNLOAD = huggingface_hub.HfApi, huggingface_hub.snapshot_download
FINGERPRINT = {"train.beta": 0.1, "input train rows": "abc"}


def checkpoint(workspace: Workspace, step: int) -> Path:
    folder = checkpoints.at_step(workspace.checkpoints, step)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights %d" % step)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 20}))
    checkpoints.seal(folder)
    write_jsonl(workspace.history, [{"step": number} for number in range(step + 1)])
    reference_of(workspace, "k", pytest.fail).write("train", {"ref_logps": [-1.0, -2.0]})
    return folder


def files_of(workspace: Workspace) -> RunFiles:
    return RunFiles(workspace.checkpoints, workspace.history, workspace)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """A folder in place of the Hub. Files whose name ends in .safetensors are large there, others are small."""
    root = tmp_path / "hub"

    class LocalApi:
        def create_repo(self, repo_id, private, exist_ok):
            assert private
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def create_commit(self, repo_id, operations, commit_message):
            for operation in operations:
                target = root / repo_id / operation.path_in_repo
                if isinstance(operation, huggingface_hub.CommitOperationDelete):
                    shutil.rmtree(target)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(operation.path_or_fileobj, target)

        def get_paths_info(self, repo_id, paths):
            for path in paths:
                content = (root / repo_id / path).read_bytes()
                large = path.endswith(".safetensors")
                lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if large else None
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                yield SimpleNamespace(path=path, lfs=lfs, blob_id=blob)

        def list_repo_tree(self, repo_id, path_in_repo):
            folder = root / repo_id / path_in_repo
            if not folder.is_dir():
                raise EntryNotFoundError("404")
            return [SimpleNamespace(path=f"{path_in_repo}/{item.name}") for item in folder.iterdir()]

        def delete_folder(self, path_in_repo, repo_id, commit_message):
            shutil.rmtree(root / repo_id / path_in_repo)

    def snapshot_download(repo_id, allow_patterns, local_dir):
        folder = allow_patterns.removesuffix("/*")
        shutil.copytree(root / repo_id / folder, Path(local_dir) / folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", LocalApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


@pytest.fixture(params=["folder", "hub"])
def target(request, tmp_path, hub) -> str:
    return str(tmp_path / "drive") if request.param == "folder" else "hub:me/runs"


def open_copies(target: str, said: list[str], fingerprint: dict = FINGERPRINT) -> copies.Copies:
    return copies.open_copies(target, fingerprint, said.append)


def test_an_empty_workspace_gets_back_what_the_same_run_has_copied_out(tmp_path, target):
    said: list[str] = []
    first = Workspace(tmp_path / "first")
    out = open_copies(target, said)
    for step in (5, 10):
        out.put(files_of(first), checkpoint(first, step))
    checkpoints.rotate(first.checkpoints, best=None, keep=1)
    out.put(files_of(first), checkpoint(first, 15))  # 5 is gone here, so it goes there as well
    assert (out.made, out.failed) == (3, 0)
    assert said[-1].endswith("every file compared")

    second = Workspace(tmp_path / "second")
    open_copies(target, said).fetch(files_of(second))
    assert [folder.name for folder in checkpoints.in_order(second.checkpoints)] == ["checkpoint-10", "checkpoint-15"]
    assert checkpoints.newest_good(second.checkpoints, pytest.fail).name == "checkpoint-15"
    assert hashes_below(second.checkpoints) == hashes_below(first.checkpoints)
    assert second.history.read_bytes() == first.history.read_bytes()
    assert reference_of(second, "k", pytest.fail).read("train") == {"ref_logps": [-1.0, -2.0]}


def test_another_run_and_a_run_that_starts_over_find_nothing(tmp_path, target):
    said: list[str] = []
    workspace = Workspace(tmp_path / "first")
    open_copies(target, said).put(files_of(workspace), checkpoint(workspace, 5))
    open_copies(target, said, {**FINGERPRINT, "train.beta": 0.3}).fetch(files_of(Workspace(tmp_path / "other")))
    open_copies(target, said).set_aside()
    open_copies(target, said).fetch(files_of(Workspace(tmp_path / "fresh")))
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "fresh").exists()


def test_what_lies_in_a_folder_is_kept_when_a_run_starts_over(tmp_path):
    workspace = Workspace(tmp_path / "first")
    out = open_copies(str(tmp_path / "drive"), [])
    out.put(files_of(workspace), checkpoint(workspace, 5))
    out.set_aside()
    [kept] = (tmp_path / "drive").iterdir()
    assert "-until-" in kept.name
    assert checkpoints.fault(kept / "checkpoint-5") is None


def test_a_damaged_copy_is_not_brought_back(tmp_path):
    said: list[str] = []
    workspace = Workspace(tmp_path / "first")
    out = open_copies(str(tmp_path / "drive"), said)
    for step in (5, 10):
        out.put(files_of(workspace), checkpoint(workspace, step))
    next((tmp_path / "drive").glob("*/checkpoint-10/adapter_model.safetensors")).write_bytes(b"weights 11")
    empty = Workspace(tmp_path / "second")
    out.fetch(files_of(empty))
    assert [folder.name for folder in checkpoints.in_order(empty.checkpoints)] == ["checkpoint-5"]
    assert any("checkpoint-10" in line and "is not what was written" in line for line in said)


def test_an_altered_copy_of_the_reference_is_not_brought_back(tmp_path, target, hub):
    said: list[str] = []
    workspace = Workspace(tmp_path / "first")
    out = open_copies(target, said)
    out.put(files_of(workspace), checkpoint(workspace, 5))
    copy = next(tmp_path.glob("drive/*/reference/train.json"), None) or next(hub.rglob("reference/train.json"))
    copy.write_text(copy.read_text().replace("-2.0", "-2.5"))

    empty = Workspace(tmp_path / "second")
    out.fetch(files_of(empty))
    assert checkpoints.newest_good(empty.checkpoints, pytest.fail).name == "checkpoint-5"
    assert reference_of(empty, "k", pytest.fail).read("train") is None
    assert any("copy of the reference's log-probabilities" in one and "not what was written" in one for one in said)


def test_altered_values_are_not_copied_out(tmp_path):
    said: list[str] = []
    workspace = Workspace(tmp_path / "first")
    sealed = checkpoint(workspace, 5)
    (workspace.checkpoints / "reference" / "train.json").write_text("{}")
    open_copies(str(tmp_path / "drive"), said).put(files_of(workspace), sealed)
    assert not list((tmp_path / "drive").rglob("reference*"))
    assert said[0] == ("WARNING: the reference's log-probabilities are not copied: train.json is not what was written")


def test_a_copy_that_fails_is_a_loud_warning_and_no_error(tmp_path, monkeypatch):
    said: list[str] = []
    workspace = Workspace(tmp_path / "first")
    (tmp_path / "drive").write_text("a file where a folder should be")
    out = open_copies(str(tmp_path / "drive"), said)
    out.put(files_of(workspace), checkpoint(workspace, 5))
    assert (out.made, out.failed) == (0, 1)
    assert said[0].startswith("WARNING: checkpoint-5 was not copied to")
    assert out.line().endswith("1 FAILED")


@pytest.mark.parametrize("moment", ["while it is read", "while it is written"])
def test_a_checkpoint_that_changes_on_its_way_is_no_copy_and_the_one_before_it_stays(tmp_path, monkeypatch, moment):
    said: list[str] = []
    workspace = Workspace(tmp_path / "first")
    out = open_copies(str(tmp_path / "drive"), said)
    out.put(files_of(workspace), checkpoint(workspace, 5))
    sealed, copytree = checkpoint(workspace, 10), shutil.copytree

    def torn(source, target, **options):
        copytree(source, target, **options)
        if (
            Path(target).name
            == {"while it is read": "checkpoint-10", "while it is written": "partial-checkpoint-10"}[moment]
        ):
            (Path(target) / "adapter_model.safetensors").write_bytes(b"weights 11")

    monkeypatch.setattr(copies.shutil, "copytree", torn)
    out.put(files_of(workspace), sealed)
    assert (out.made, out.failed) == (1, 1)
    assert said[-1].startswith("WARNING: checkpoint-10 was not copied to")
    reason = {
        "while it is read": "damaged while it was read: adapter_model.safetensors is not what was written",
        "while it is written": "checkpoint-10 is not what was written when it is read back",
    }
    assert reason[moment] in said[-1]
    assert checkpoints.fault(next((tmp_path / "drive").glob("*/checkpoint-5"))) is None
    assert not list((tmp_path / "drive").glob("*/checkpoint-10"))


def test_bytes_that_the_hub_did_not_keep_are_noticed(tmp_path, hub, monkeypatch):
    said: list[str] = []
    workspace = Workspace(tmp_path / "first")
    true_commit = huggingface_hub.HfApi.create_commit

    def torn(self, repo_id, operations, commit_message):
        true_commit(self, repo_id, operations, commit_message)
        next((hub / repo_id).rglob("trainer_state.json")).write_text("{}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", torn)
    open_copies("hub:me/runs", said).put(files_of(workspace), checkpoint(workspace, 5))
    assert "trainer_state.json on the Hub is not what was sent" in said[0]


def test_the_stand_in_is_called_as_the_installed_huggingface_hub_can_be(hub):
    def names(function) -> list[str]:
        return list(inspect.signature(function).parameters)

    for name in ("create_repo", "create_commit", "get_paths_info", "list_repo_tree", "delete_folder"):
        assert set(names(getattr(huggingface_hub.HfApi, name))) <= set(names(getattr(TRUE_API, name)))
    assert set(names(huggingface_hub.snapshot_download)) <= set(names(TRUE_DOWNLOAD))
    assert names(TRUE_API.delete_folder)[1:3] == ["path_in_repo", "repo_id"]  # given by position
    assert names(TRUE_API.list_repo_tree)[1:3] == ["repo_id", "path_in_repo"]


def test_without_the_setting_nothing_is_copied():
    assert copies.open_copies(None, FINGERPRINT, pytest.fail) is None


def test_a_drive_that_is_unmounted_is_a_warning_and_its_folder_is_not_made_again(workspace, tmp_path):
    drive, said = tmp_path / "drive", []
    drive.mkdir()
    kept = copies.open_copies(str(drive / "cai"), FINGERPRINT, said.append)
    kept.put(files_of(workspace), checkpoint(workspace, 5))
    assert "checkpoint-5 is copied" in said[-1]
    drive.rename(tmp_path / "elsewhere")
    drive.mkdir()  # the mount point stays behind
    kept.put(files_of(workspace), checkpoint(workspace, 10))
    assert "WARNING: checkpoint-10 was not copied" in said[-1]
    assert list(drive.iterdir()) == []


def test_copies_to_a_drive_that_is_not_mounted_are_refused_before_training(tmp_path):
    with pytest.raises(CaiError, match="there is no folder .*drive.* to keep copies in"):
        copies.open_copies(str(tmp_path / "drive" / "cai"), FINGERPRINT, print)
