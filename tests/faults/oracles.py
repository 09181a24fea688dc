"""What must hold after every fault, whatever it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from warm import Ended

CODES = {0, 1, 3, 130}


@dataclass
class Ledger:
    """Of a whole session of faults: what the last line of `make test-faults` says."""

    injected: int = 0
    survived: int = 0
    rows_lost: int = 0
    bytes_lost: int = 0  # of checkpoints and adapters
    false_successes: int = 0
    decisions_lost: int = 0

    def add(self, **counts: int) -> None:
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)

    def line(self) -> str:
        return (
            f"faults injected {self.injected}, survived {self.survived}, rows lost {self.rows_lost}, bytes of state lost "
            f"{self.bytes_lost}, false successes {self.false_successes}, decisions lost {self.decisions_lost}"
        )


def ends_in_words(ended: Ended) -> None:
    """A command ends in one of four ways and says why, in two lines, where it is not 0."""
    assert ended.code in CODES, f"code {ended.code}: {ended.err[-2000:]}"
    assert "Traceback (most recent call last)" not in ended.err
    assert "Unexpected: " not in ended.err, ended.said
    if ended.code == 1:
        what, todo = ended.said.split("\n")
        assert what.startswith("Error: "), ended.said
        assert len(todo) > 10


def rows(path: Path) -> dict[str, dict]:
    """Valid rows by id. One that is torn is none."""
    if not path.exists():
        return {}
    found: dict[str, dict] = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        assert row["id"] not in found, f"{path.name}: the id {row['id']} stands there twice"
        found[row["id"]] = row
    return found


def conserved(before: dict[str, dict], after: dict[str, dict]) -> int:
    """How many rows that were there are gone or are others."""
    return sum(after.get(name) != row for name, row in before.items())


def no_negative_count(value: object, place: str = "") -> None:
    """In a report: counts are 0 or more. What can be below zero is a difference, a score or a logarithm."""
    if isinstance(value, dict):
        for name, inner in value.items():
            no_negative_count(inner, f"{place}.{name}")
    elif isinstance(value, list):
        for inner in value:
            no_negative_count(inner, place)
    elif isinstance(value, int) and not isinstance(value, bool):
        assert value >= 0, f"{place} is {value}"
