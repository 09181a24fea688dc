"""Training checkpoints that are known to be whole: hashed when written, checked before they are resumed from.

A kill during a save leaves a partial folder, and a flipped bit or a missing optimizer resumes silently into another
run. So a checkpoint counts only when its seal, written last, names every file in it with its size and sha256.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cai_helpers.contents import file_hash
from cai_helpers.store import write_json

SEAL = "complete.json"
_PREFIX = "checkpoint-"  # transformers writes checkpoint-<step>


def seal(folder: Path) -> None:
    """Note size and hash of every file in `folder`, after forcing them to disk. Call it when all are written."""
    files = {}
    for file in _files(folder):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": file_hash(file)}
    write_json(folder / SEAL, {"files": files})


def fault(folder: Path) -> str | None:
    """Why `folder` cannot be resumed from, in words, or None: it is as it was when it was sealed."""
    sealed = _sealed_files(folder)
    if sealed is None:
        return "it was never completed"
    present = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    if missing := sorted(sealed.keys() - present.keys()):
        return f"{', '.join(missing)} is missing"
    if added := sorted(present.keys() - sealed.keys()):
        return f"{', '.join(added)} was added"
    for name, expected in sealed.items():
        if present[name].stat().st_size != expected["bytes"] or file_hash(present[name]) != expected["sha256"]:
            return f"{name} is not what was written"
    return None


def newest_good(root: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to resume from. Later ones that are damaged are set aside, with a message each.

    Their place must be free: training reaches the same step again and would write into the remains.
    """
    for folder in reversed(in_order(root)):
        reason = fault(folder)
        if reason is None:
            return folder
        aside = _set_aside(folder)
        say(f"{folder.name} is not used: {reason} (moved to {aside.name})")
    return None


def rotate(root: Path, best: int | None, keep: int = 2) -> None:
    """Delete all checkpoints but the newest `keep` and that of step `best`, if one is known."""
    folders = in_order(root)
    for folder in folders[:-keep]:
        if step_of(folder) != best:
            shutil.rmtree(folder)


def in_order(root: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first; by name, since copying changes file times."""
    folders = [path for path in root.glob(f"{_PREFIX}*") if path.is_dir() and path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(folders, key=step_of)


def at_step(root: Path, step: int) -> Path:
    return root / f"{_PREFIX}{step}"


def is_last(folder: Path) -> bool:
    """Whether training had all its steps when `folder` was written."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / SEAL)


def _sealed_files(folder: Path) -> dict[str, dict] | None:
    try:
        return json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, ValueError, KeyError):  # ValueError: damaged JSON or UTF-8
        return None


def _set_aside(folder: Path) -> Path:
    target = folder.with_name(f"damaged-{folder.name}")
    if target.exists():
        shutil.rmtree(target)
    return folder.replace(target)
