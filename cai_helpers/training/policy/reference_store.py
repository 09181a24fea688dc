"""The reference's log-probabilities on disk: believed only when they are what the run's record says was written.

Wrong ones train without an error, into another adapter. The values lie beside the checkpoints; their hashes stand in
manifests/, so that values that were altered, cut off or put there by somebody else are noticed at every start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cai_helpers.contents import file_hash
from cai_helpers.machine.processes import is_main_process
from cai_helpers.store import write_atomically, write_json
from cai_helpers.workspace import Workspace

Values = dict[str, list[float]]  # column of the trainer → one log-probability a row


class ReferenceStore(NamedTuple):
    """Where the reference's log-probabilities are kept, so that they are computed once."""

    folder: Path  # <split>.json: {"key", column: values, …}
    record: Path  # {split: {"key", "sha256"}}, written after the values
    key: str  # what they depend on; under another key they are computed again
    say: Callable[[str], None]

    def read(self, split: str) -> Values | None:
        """What was written under this key, or None: nothing was, or it is not what was written, which is said."""
        if (reason := fault(self.folder, self.record, split)) is not None:
            self.say(f"WARNING: the reference's log-probabilities are computed again: {reason}")
            return None
        path = self.folder / f"{split}.json"
        if not path.exists():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored if stored.pop("key") == self.key else None

    def write(self, split: str, values: Values) -> None:
        if not is_main_process():
            return
        path = self.folder / f"{split}.json"
        write_json(path, {"key": self.key, **values})
        recorded = _recorded(self.record)
        now = {"key": self.key, "sha256": file_hash(path)}
        before = recorded.get(split, now)
        if before["key"] == self.key and before != now:
            self.say(
                f"WARNING: computed again, the reference's log-probabilities in {path.name} are not those that this run "
                "was begun with: another GPU or library rounds otherwise. Training goes on with the new ones."
            )
        write_json(self.record, {**recorded, split: now})


def reference_of(workspace: Workspace, key: str, say: Callable[[str], None]) -> ReferenceStore:
    return ReferenceStore(folder_of(workspace), record_of(workspace), key, say)


def folder_of(workspace: Workspace) -> Path:
    return workspace.reference_dir


def record_of(workspace: Workspace) -> Path:
    return workspace.reference_record


def fault(folder: Path, record: Path, split: str) -> str | None:
    """Why the values of `split` in `folder` must not be believed, or None: they are as recorded, or there are none."""
    path, recorded = folder / f"{split}.json", _recorded(record)
    if not path.exists():
        return f"{path.name} is missing" if split in recorded else None
    if split not in recorded:
        return f"{path.name} is in no record of this run"
    return None if file_hash(path) == recorded[split]["sha256"] else f"{path.name} is not what was written"


def faults(folder: Path, record: Path) -> list[str]:
    """Of every split that is in `folder` or in `record`."""
    splits = {path.stem for path in folder.glob("*.json")} | _recorded(record).keys()
    return [reason for split in sorted(splits) if (reason := fault(folder, record, split))]


def bring(folder: Path, record: Path, workspace: Workspace) -> None:
    """Put values and their record, which were compared, in the place of those of `workspace`."""
    shutil.copytree(folder, folder_of(workspace), dirs_exist_ok=True)
    write_atomically(record_of(workspace), record.read_bytes())


def _recorded(record: Path) -> dict[str, dict[str, str]]:
    """Nothing where there is no record or a damaged one: then no value is believed."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return {split: {"key": entry["key"], "sha256": entry["sha256"]} for split, entry in content.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
