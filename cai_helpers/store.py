"""Append-only JSONL that survives a kill: a row is on disk when `append` returns, a torn last row is cut off."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from cai_helpers import ground
from cai_helpers.errors import CaiError

_STRING_OR_NOT = re.compile(r'(?P<string>"(?:[^"\\]|\\(?:.|\Z))*(?P<end>"|\Z))|[^"]+', re.DOTALL)
_TORN_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3})?\Z")
_TORN_LITERAL = re.compile(r"(?<![\w.+-])(-|-?\d[\d.eE+-]*|t|tr|tru|f|fa|fal|fals|n|nu|nul)\Z")
_SECONDS_A_WRITE = 1.0  # rows that come within it share a write
_CONTINUATIONS = ("", "0", ":0", '"":0')  # what can be missing before the closing brackets: value, colon, next name


class JsonlStore:
    """Rows of one file, keyed by their `id` field. One process writes.

    Opening repairs the end of the file, since appending to a line without a newline would glue two rows together: a
    whole row gets its newline, a row that was being written when the process died is cut off.

    Raises:
        CaiError: the file is not JSONL; the message names the line, and nothing is changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repaired_bytes = _mend_tail(path)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write `rows` and wait until they are on disk."""
        ground.make_folder(self.path.parent)
        with ground.writing(self.path), self.path.open("ab") as file:
            file.writelines(encode_row(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        return read_jsonl(self.path) if self.path.exists() else iter(())

    def ids(self) -> set[str]:
        return {row["id"] for row in self.rows()}


@contextmanager
def gathering(
    store: JsonlStore, written: Callable[[int], object]
) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """Give a function that takes rows as they come, and is called without any while none come.

    Rows that come within a second share a write, which on a Drive takes its time; what came before an error is
    written too. written: is told how many are on disk now.
    """
    waiting: list[dict[str, Any]] = []
    last = 0.0

    def write() -> None:
        nonlocal last
        rows, waiting[:] = list(waiting), []  # taken out first: what fails is not tried twice
        if rows:
            store.append(rows)
            written(len(rows))
        last = time.monotonic()

    def take(rows: Iterable[dict[str, Any]]) -> None:
        waiting.extend(rows)
        if waiting and time.monotonic() - last >= _SECONDS_A_WRITE:
            write()

    try:
        yield take
    finally:
        write()


def put_in_order(path: Path, ids: list[str]) -> None:
    """Rewrite a file of rows in the order of `ids`, unless it is in that order; rows of other ids follow as they stand."""
    place = {name: number for number, name in enumerate(ids)}
    found: list[tuple[int, int, int]] = []  # (place, start and end in the file)
    with path.open("rb") as file:
        end = 0
        for line in file:
            start, end = end, end + len(line)
            if line.strip():
                found.append((place.get(json.loads(line)["id"], len(place)), start, end))
        if found == (ordered := sorted(found)):
            return

        def lines() -> Iterator[bytes]:
            for _, start, end in ordered:
                file.seek(start)
                yield file.read(end - start)

        _replace(path, lines())


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file.

    Lines end at "\\n" alone: `str.splitlines` would also split at U+2028, which JSON leaves unescaped in a string.

    Raises:
        CaiError: a line is not a JSON object; the message names the line.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also other text than UTF-8, and 5,000 digits
            reason = str(error) if len(str(error)) < 200 else type(error).__name__
            raise CaiError(
                f"{path}, line {number}: not valid JSON ({reason})", "Correct or remove that line."
            ) from error
        if not isinstance(row, dict):
            raise CaiError(f"{path}, line {number}: a JSON object was expected", "Write one {…} a line.")
        yield row


def rows_at(path: Path, places: Container[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, row) of some rows of a file that `read_jsonl` has read, the first at place 0; the others are not parsed."""
    lines = (line for line in _lines(path) if line.strip())
    return ((place, json.loads(line)) for place, line in enumerate(lines) if place in places)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.name.endswith(".gz"):
        with path.open("rb") as file:
            yield from file
        return
    try:
        with gzip.open(path, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CaiError(
            f"{path} is no whole gzip file: {error}.",
            "Download or copy it again; one that is not packed ends in .jsonl.",
        ) from error


def read_text(path: Path) -> str:
    """The text of a person's file.

    Raises:
        CaiError: it is not UTF-8; the message names the line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CaiError(
            f"{path}, line {line}: not UTF-8 text ({error.reason}).", "Save it as UTF-8 (`iconv -f latin1 -t utf-8`)."
        ) from error


def is_text(content: str) -> bool:
    """False where it holds half of a surrogate pair, as JSON can: it is no character, and no tokenizer takes it."""
    try:
        content.encode()
    except UnicodeEncodeError:
        return False
    return True


def rows_of(content: bytes) -> Iterator[dict[str, Any]]:
    """Rows of JSONL that is not a file on disk, as this package wrote it."""
    return (json.loads(line) for line in content.split(b"\n") if line.strip())


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a whole file at once: to a temporary name, then renamed, so that it is never seen half-written."""
    _replace(path, map(encode_row, rows))


@contextmanager
def writing_jsonl(*paths: Path) -> Iterator[list[Callable[[dict[str, Any]], object]]]:
    """As `write_jsonl`, of several files side by side: give for each a function that takes its next row."""
    with ExitStack() as files:
        opened = [files.enter_context(_replacing(path)) for path in paths]
        yield [partial(_write_row, file) for file in opened]


def _write_row(file: BinaryIO, row: dict[str, Any]) -> None:
    file.write(encode_row(row))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN and infinity raise: they are no JSON."""
    write_atomically(path, _encode(value, indent=2) + b"\n")


def read_json(path: Path, todo: str) -> Any:
    """The content of a JSON file that this package wrote; `todo` says what to do where it is damaged.

    json and not pydantic's own parser, which refuses the lone surrogates that a model's text may hold.

    Raises:
        CaiError: the file is empty, cut off or no JSON; the message names it.
    """
    content = path.read_bytes()
    try:
        return json.loads(content.decode())
    except ValueError as error:
        what = "is empty" if not content.strip() else f"is damaged: it is not valid JSON ({error})"
        raise CaiError(f"{path} {what}.", todo) from error


def write_atomically(path: Path, content: bytes) -> None:
    _replace(path, [content])


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    with _replacing(path) as file:
        file.writelines(parts)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which becomes `path` when all is written."""
    ground.make_folder(path.parent)
    temporary = path.with_name(path.name + ".tmp")
    with ground.writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except ValueError:  # a row that is no JSON: of a file that is not whole nothing stays
            temporary.unlink()
            raise
        temporary.replace(path)


def encode_row(row: dict[str, Any]) -> bytes:
    return _encode(row) + b"\n"


def _encode(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form; as an escape it survives
        return json.dumps(value, indent=indent, ensure_ascii=True, allow_nan=False).encode()


def _mend_tail(path: Path) -> int:
    """Make the file end with a whole row and a newline; how many bytes of a torn row were cut off for that.

    Raises:
        CaiError: what stands at the beginning or the end is no row, nor the beginning of one.
    """
    if not path.exists() or (size := path.stat().st_size) == 0:
        return 0
    with path.open("rb+") as file:
        head = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        if head and (head[:1] != b"{" or b"\0" in head):
            raise _foreign(path, 1, "it does not begin with a JSON object in UTF-8")
        start = _start_of_last_line(file, size)
        file.seek(start)
        tail = file.read()
        if not tail.strip():
            return 0
        if is_row(tail):  # written by hand, most likely: editors need no newline at the end
            file.write(b"\n")
            return 0
        if not is_torn_row(tail):
            file.seek(0)
            line = file.read(start).count(b"\n") + 1
            raise _foreign(path, line, "it is neither a JSON object nor one that was cut off while it was written")
        file.truncate(start)
    return size - start


def _start_of_last_line(file: BinaryIO, size: int) -> int:
    """Where the bytes after the last newline begin; `size`: there are none."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _foreign(path: Path, line: int, reason: str) -> CaiError:
    return CaiError(
        f"{path}, line {line}: {reason}. Nothing was changed in the file.",
        "Correct or remove that line, or save the file as UTF-8 text with one {…} a line and line feeds between them; if it "
        "is another file, move it away.",
    )


def is_row(line: bytes) -> bool:
    """Whether these bytes are a whole JSON object."""
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except ValueError:
        return False


def is_torn_row(tail: bytes) -> bool:
    """Whether these bytes are the beginning of a JSON object on one line, as a kill in the middle of a write leaves it.

    They are when something can be put behind them that makes them whole. What a person mistyped cannot be mended so,
    nor can lines that a bare carriage return parts.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(tail)  # a torn last character is left out
    except UnicodeDecodeError:
        return False
    if not text.startswith("{") or "\r" in text:
        return False
    is_open, structure = False, ""
    for part in _STRING_OR_NOT.finditer(text):
        is_open = part["string"] is not None and not part["end"]
        structure += "" if part["string"] is not None else part[0]
    brackets: list[str] = []
    for sign in structure:
        if sign in "{[":
            brackets.append("}" if sign == "{" else "]")
        elif sign in "}]" and (not brackets or brackets.pop() != sign):
            return False
    ends = "".join(reversed(brackets))
    stems = (text + '"', _TORN_ESCAPE.sub("", text) + '"') if is_open else (_TORN_LITERAL.sub("0", text), text)
    return bool(brackets) and any(is_row((stem + more + ends).encode()) for stem in stems for more in _CONTINUATIONS)
