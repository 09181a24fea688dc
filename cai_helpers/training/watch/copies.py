"""Copies of checkpoints outside the workspace, so that a run outlives its machine. A copy that fails never stops training.

A run's copies lie together under a name made of what the run was begun with: the same run finds them again on an empty
machine, another run never does. There are as many checkpoints as in the workspace, each whole, with the history and the
reference's log-probabilities beside them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cai_helpers import ground
from cai_helpers.contents import hashes_below
from cai_helpers.errors import CaiError, WorkspaceVanished
from cai_helpers.manifest import Fingerprint, plain
from cai_helpers.models.hub_failures import transport_error
from cai_helpers.store import write_atomically, write_json
from cai_helpers.training.policy.reference_store import bring, faults, folder_of, record_of
from cai_helpers.training.watch import checkpoints
from cai_helpers.workspace import Workspace

HUB = "hub:"
_RUN, _HISTORY, _REFERENCE, _RECORD = "run.json", "history.jsonl", "reference", "reference.json"


class Place(Protocol):
    """Where copies lie. Everything raises OSError, ValueError or a transport error when it cannot be done."""

    def put(self, folder: Path, stale: list[str]) -> None:
        """Make all files below `folder` be there too, proved by size and hash, and remove the folders `stale`."""

    def names(self) -> list[str]:
        """Files and folders that are there; none where nothing was ever put."""

    def get(self, folder: Path) -> None:
        """Bring everything into `folder`."""

    def set_aside(self) -> None:
        """Make room for a run that starts over; nothing is lost."""


class RunFiles(NamedTuple):
    """What a run goes on from."""

    checkpoints: Path
    history: Path
    reference: Workspace | None  # whose reference's log-probabilities belong to it; None: the method needs none


class Copies:
    """The copies of one run."""

    def __init__(self, place: Place, where: str, fingerprint: Fingerprint, say: Callable[[str], None]) -> None:
        self._place, self._where, self._fingerprint, self._say = place, where, plain(fingerprint), say
        self.made = self.failed = 0

    def put(self, files: RunFiles, checkpoint: Path) -> None:
        """Copy a sealed checkpoint out; say loudly when that fails."""
        try:
            with tempfile.TemporaryDirectory() as scratch:
                draft = Path(scratch)
                self._stage(files, checkpoint, draft)
                kept = {folder.name for folder in checkpoints.in_order(files.checkpoints)}
                copied = {name for name in self._place.names() if name.startswith("checkpoint-")}
                self._place.put(draft, sorted(copied - kept))
        except (OSError, ValueError, WorkspaceVanished, transport_error()) as error:
            self.failed += 1
            self._say(
                f"WARNING: {checkpoint.name} was not copied to {self._where}: {_first_line(error)}. Training goes on; "
                "until a copy succeeds, this machine alone holds it."
            )
            return
        self.made += 1
        self._say(f"{checkpoint.name} is copied to {self._where}, every file compared")

    def fetch_where_needed(self, files: RunFiles) -> None:
        """Fetch where there is no checkpoint to go on from. Before the reference is asked for: a copy has that too."""
        if checkpoints.newest_good(files.checkpoints, self._say) is None:
            self.fetch(files)

    def fetch(self, files: RunFiles) -> None:
        """Bring back what this very run has copied out, if anything; damaged checkpoints are left where they are."""
        try:
            with tempfile.TemporaryDirectory() as scratch:
                draft = Path(scratch)
                if _RUN not in self._place.names():
                    return
                self._place.get(draft)
                if json.loads((draft / _RUN).read_text(encoding="utf-8")) != self._fingerprint:
                    self._say(f"WARNING: what lies in {self._where} is of another run and is not used")
                    return
                self._unpack(files, draft)
        except (OSError, ValueError, transport_error()) as error:
            self._say(f"WARNING: no copies could be fetched from {self._where}: {_first_line(error)}")

    def set_aside(self) -> None:
        """Before a run starts over, so that it does not fetch what it was to leave behind."""
        try:
            self._place.set_aside()
        except (OSError, ValueError, transport_error()) as error:
            self._say(f"WARNING: the old copies in {self._where} are still in place: {_first_line(error)}")

    def line(self) -> str:
        failed = f", {self.failed} FAILED" if self.failed else ""
        return f"{self.made} checkpoints copied to {self._where}{failed}"

    def _stage(self, files: RunFiles, checkpoint: Path, draft: Path) -> None:
        write_json(draft / _RUN, self._fingerprint)
        shutil.copy(files.history, draft / _HISTORY)
        if files.reference is not None:
            self._stage_reference(files.reference, draft)
        shutil.copytree(checkpoint, draft / checkpoint.name)
        if reason := checkpoints.fault(draft / checkpoint.name):
            raise OSError(f"it was damaged while it was read: {reason}")

    def _stage_reference(self, workspace: Workspace, draft: Path) -> None:
        if not folder_of(workspace).is_dir():
            return
        if reasons := faults(folder_of(workspace), record_of(workspace)):
            self._say(f"WARNING: the reference's log-probabilities are not copied: {'; '.join(reasons)}")
            return
        shutil.copytree(folder_of(workspace), draft / _REFERENCE)
        shutil.copy(record_of(workspace), draft / _RECORD)

    def _unpack(self, files: RunFiles, draft: Path) -> None:
        ground.make_folder(files.checkpoints)
        brought = []
        for folder in checkpoints.in_order(draft):
            if reason := checkpoints.fault(folder):
                self._say(f"the copy of {folder.name} in {self._where} is not used: {reason}")
            elif not (target := files.checkpoints / folder.name).exists():
                shutil.copytree(folder, target)
                brought.append(folder.name)
        if not files.history.exists():
            write_atomically(files.history, (draft / _HISTORY).read_bytes())
        if files.reference is not None:
            self._unpack_reference(files.reference, draft)
        if brought:
            self._say(f"fetched {', '.join(brought)} from {self._where}")

    def _unpack_reference(self, workspace: Workspace, draft: Path) -> None:
        if reasons := faults(draft / _REFERENCE, draft / _RECORD):
            self._say(
                f"WARNING: the copy of the reference's log-probabilities in {self._where} is not used: "
                f"{'; '.join(reasons)}. They are computed where this machine has none."
            )
        elif (draft / _REFERENCE).is_dir():
            bring(draft / _REFERENCE, draft / _RECORD, workspace)


class FolderPlace:
    """A folder, on a mounted drive say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, folder: Path, stale: list[str]) -> None:
        ground.make_folder(self._folder)
        for item in sorted(folder.iterdir(), key=lambda item: item.is_dir()):  # files first: history is never behind
            if item.is_file():
                write_atomically(self._folder / item.name, item.read_bytes())
                continue
            draft, target = self._folder / f"partial-{item.name}", self._folder / item.name
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(item, draft)
            if hashes_below(draft) != hashes_below(item):
                raise OSError(f"{item.name} is not what was written when it is read back")
            shutil.rmtree(target, ignore_errors=True)
            draft.replace(target)
        for name in stale:
            shutil.rmtree(self._folder / name)

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []

    def get(self, folder: Path) -> None:
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

    def set_aside(self) -> None:
        if self._folder.is_dir():
            self._folder.replace(self._folder.with_name(f"{self._folder.name}-until-{datetime.now(UTC):%Y%m%d-%H%M%S}"))


class HubPlace:
    """A private model repository on the Hub, made when it is not there; one commit a checkpoint."""

    def __init__(self, repository: str, folder: str) -> None:
        self._repository, self._folder = repository, folder

    def put(self, folder: Path, stale: list[str]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi()
        api.create_repo(self._repository, private=True, exist_ok=True)
        files = {self._remote(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        operations += [CommitOperationDelete(f"{self._folder}/{name}/", is_folder=True) for name in stale]
        api.create_commit(self._repository, operations, commit_message=f"Checkpoint of {self._folder}")
        sent = {info.path: info for info in api.get_paths_info(self._repository, list(files))}
        for name, file in files.items():
            if name not in sent or not _equals(file, sent[name]):
                raise OSError(f"{name} on the Hub is not what was sent")

    def names(self) -> list[str]:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        try:
            tree = list(HfApi().list_repo_tree(self._repository, self._folder))
        except (EntryNotFoundError, RepositoryNotFoundError):
            return []
        return [entry.path.rpartition("/")[2] for entry in tree]

    def get(self, folder: Path) -> None:
        from huggingface_hub import snapshot_download

        with tempfile.TemporaryDirectory() as scratch:
            snapshot_download(self._repository, allow_patterns=f"{self._folder}/*", local_dir=scratch)
            shutil.copytree(Path(scratch) / self._folder, folder, dirs_exist_ok=True)

    def set_aside(self) -> None:
        if self.names():
            from huggingface_hub import HfApi

            message = f"{self._folder} starts over; its checkpoints are in the commits before"
            HfApi().delete_folder(self._folder, self._repository, commit_message=message)

    def _remote(self, path: Path) -> str:
        return f"{self._folder}/{path.as_posix()}"


def open_copies(
    copy_to: str | None, fingerprint: Fingerprint, say: Callable[[str], None], phase: str = "training"
) -> Copies | None:
    """The copies of the run that was begun with `fingerprint`; None where train.copy_to is not set.

    phase: the first word of the name under which they lie.

    Raises:
        CaiError: train.copy_to names a folder on something that is not there.
    """
    if copy_to is None:
        return None
    name = f"{phase}-" + hashlib.sha256(json.dumps(plain(fingerprint), sort_keys=True).encode()).hexdigest()[:12]
    place = HubPlace(copy_to.removeprefix(HUB), name) if copy_to.startswith(HUB) else _folder_place(Path(copy_to), name)
    return Copies(place, f"{copy_to}/{name}", fingerprint, say)


def _folder_place(top: Path, name: str) -> FolderPlace:
    if not top.parent.is_dir():
        raise CaiError(
            f"train.copy_to={top}: there is no folder {top.parent} to keep copies in.",
            "Mount the drive that it lies on, or name another folder.",
        )
    if top.exists() and not top.is_dir():
        return FolderPlace(top / name)  # no copy will succeed, and each says so
    ground.forget(top)  # an earlier call may have met another one, before the drive was mounted again
    ground.open_root(top)  # known from now on: should it vanish, it is not made again elsewhere
    return FolderPlace(top / name)


def _equals(file: Path, info: Any) -> bool:
    """Whether the Hub holds these bytes: large files are known there by sha256, small ones by git's blob id."""
    content = file.read_bytes()
    if info.lfs is not None:
        return info.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return info.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
