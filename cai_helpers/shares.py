"""Rows of one file from several processes: each writes a file beside it, and the main process takes them all in.

Two writers in one file would tear each other's rows. What a killed launch left in its files is taken in by the next call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cai_helpers.machine.processes import Processes, is_main_process
from cai_helpers.store import JsonlStore


@contextmanager
def own_share(store: JsonlStore, processes: Processes) -> Iterator[JsonlStore]:
    """Where this process writes; when all have come to the end, all their rows are in `store`."""
    if processes.count == 1:
        yield store
        return
    yield JsonlStore(_share_of(store.path, processes.index))
    processes.wait()
    take_in(store)
    processes.wait()


def take_in(store: JsonlStore) -> None:
    """Move the rows of all shares that lie beside `store` into it, those of a killed launch too; the main process does."""
    shares = sorted(store.path.parent.glob(f"{store.path.stem}.[0-9]*.jsonl")) if is_main_process() else []
    if not shares:
        return
    known = store.ids()
    for path in shares:
        rows = {row["id"]: row for row in JsonlStore(path).rows() if row["id"] not in known}
        store.append(rows.values())
        known |= rows.keys()
        path.unlink()


def _share_of(path: Path, process: int) -> Path:
    return path.with_name(f"{path.stem}.{process}.jsonl")
