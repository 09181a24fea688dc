"""Append-only JSONL that survives a kill: a row is on disk when `append` returns, a torn last line is cut off."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cai_helpers.errors import CaiError


class JsonlStore:
    """Rows of one file, keyed by their `id` field. One process writes.

    Opening repairs the file: bytes after the last newline are a row that was being written when the process
    died; appending to them would glue two rows together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repaired_bytes = _cut_torn_tail(path)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write `rows` and wait until they are on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.writelines(encode_row(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        return read_jsonl(self.path) if self.path.exists() else iter(())

    def ids(self) -> set[str]:
        return {row["id"] for row in self.rows()}


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file.

    Lines end at "\\n" alone: `str.splitlines` would also split at U+2028, which JSON leaves unescaped in a string.

    Raises:
        CaiError: a line is not a JSON object; the message names the line.
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise CaiError(
                    f"{path}, line {number}: not valid JSON ({error})", "Correct or remove that line."
                ) from error
            if not isinstance(row, dict):
                raise CaiError(f"{path}, line {number}: a JSON object was expected", "Write one {…} a line.")
            yield row


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a whole file at once: to a temporary name, then renamed, so that it is never seen half-written."""
    write_atomically(path, b"".join(encode_row(row) for row in rows))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN and infinity raise: they are no JSON."""
    write_atomically(path, _encode(value, indent=2) + b"\n")


def write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def encode_row(row: dict[str, Any]) -> bytes:
    return _encode(row) + b"\n"


def _encode(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form; as an escape it survives
        return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False).encode()


def _cut_torn_tail(path: Path) -> int:
    if not path.exists() or (size := path.stat().st_size) == 0:
        return 0
    with path.open("rb+") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
    return size - end
