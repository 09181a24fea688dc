"""The pairs of a file as a person goes through them: read once, filtered, sorted. Knows no widgets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cai_helpers.analysis.frame import read_pairs
from cai_helpers.contents import file_hash
from cai_helpers.curation.overrides import Override, pair_key
from cai_helpers.errors import CaiError
from cai_helpers.schema import Record, ScoredPair
from cai_helpers.settings import load_settings
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

Order = Literal["file", "largest delta first", "smallest delta first"]
Facet = Literal["outcome", "chosen", "category", "curation"]
FACETS: tuple[Facet, ...] = ("outcome", "chosen", "category", "curation")
TRAINED_ON = "in the training set"  # beside the reasons of curation: none of them applied


class Row(NamedTuple):
    pair: ScoredPair
    key: str  # overrides.pair_key
    curation: str | None  # why curation dropped it, or TRAINED_ON; None: curation has not seen this file


class Filters(Record):
    """What a row must be to be shown; an empty value lets every row pass."""

    outcome: str = ""
    chosen: str = ""  # "base", "revised", or "none" for pairs without a verdict
    category: str = ""
    curation: str = ""  # TRAINED_ON, a reason of curation, or "none": curation has not seen the file
    decision: str = ""  # "decided", "undecided" or one of overrides.Decision
    low: float = -math.inf  # of delta; a row without delta passes only where both bounds are infinite
    high: float = math.inf
    text: str = ""  # stands in prompt, draft, revision or critique, whatever the case
    keys: frozenset[str] | None = None  # only these pairs


def read_rows(workspace: Workspace, file: Path | None = None) -> list[Row]:
    """All pairs of the workspace, or of `file` from elsewhere, with what curation made of each.

    Raises:
        CaiError: there is no such file, it holds no pairs, or a row is malformed; the message names it.
    """
    source = workspace.require(workspace.pairs, made_by="score") if file is None else file
    if not source.is_file():
        raise CaiError(f"There is no file {source}.", "Give the path of a .jsonl file of scored pairs.")
    dropped = _dropped(workspace, source)
    rows = [_row(pair, dropped) for pair in read_pairs(source)]
    if not rows:
        raise CaiError(f"{source} holds no pairs.", "Run `cai generate` and `cai score`, or give another file.")
    return rows


def _row(pair: ScoredPair, dropped: Mapping[str, str] | None) -> Row:
    key = pair_key(pair.prompt, pair.base_response, pair.revised_response)
    return Row(pair, key, None if dropped is None else dropped.get(key, TRAINED_ON))


def _dropped(workspace: Workspace, source: Path) -> dict[str, str] | None:
    """Reason by pair_key; None unless the last curation was one of this very file."""
    manifest = workspace.manifest("curate")
    if manifest is None or manifest.fingerprint.get("input pairs") != file_hash(source):
        return None
    if not workspace.dropped_rows.exists():
        return None
    return {
        pair_key(row["prompt"], row["base_response"], row["revised_response"]): row["drop_reason"]
        for row in read_jsonl(workspace.dropped_rows)
    }


def curation_is_behind(workspace: Workspace) -> bool:
    """Decisions were made since the last curation, which therefore does not hold them yet."""
    manifest = workspace.manifest("curate")
    return manifest is not None and manifest.fingerprint.get("input overrides") != file_hash(workspace.overrides)


def select(rows: list[Row], filters: Filters, order: Order, decisions: Mapping[str, Override]) -> list[int]:
    """Places in `rows` of those that pass every filter, in the order asked for; rows without delta come last."""
    wanted = filters.model_copy(update={"text": filters.text.casefold()})
    places = [place for place, row in enumerate(rows) if _passes(row, wanted, decisions)]
    if order == "file":
        return places
    sign = -1 if order == "largest delta first" else 1
    deltas = {place: rows[place].pair.delta for place in places}
    return sorted(places, key=lambda place: math.inf if (delta := deltas[place]) is None else sign * delta)


def _passes(row: Row, wanted: Filters, decisions: Mapping[str, Override]) -> bool:
    pair = row.pair
    return (
        all(getattr(wanted, field) in ("", value_of(row, field)) for field in FACETS)
        and (not wanted.decision or _decided_as(wanted.decision, decisions.get(row.key)))
        and (wanted.keys is None or row.key in wanted.keys)
        and _within(pair.delta, wanted.low, wanted.high)
        and (not wanted.text or _holds(pair, wanted.text))
    )


def _decided_as(wanted: str, decision: Override | None) -> bool:
    if decision is None:
        return wanted == "undecided"
    return wanted in ("decided", decision.decision)


def _within(delta: float | None, low: float, high: float) -> bool:
    if delta is None:
        return low == -math.inf and high == math.inf
    return low <= delta <= high


def _holds(pair: ScoredPair, text: str) -> bool:
    fields = (pair.prompt, pair.base_response, pair.revised_response, pair.critic_notes)
    return any(text in field.casefold() for field in fields)


def value_of(row: Row, field: Facet) -> str:
    return (row.curation if field == "curation" else getattr(row.pair, field)) or "none"


def values_of(rows: Iterable[Row], field: Facet) -> dict[str, int]:
    """What a filter can be set to, with the number of rows, the most frequent first."""
    return dict(Counter(value_of(row, field) for row in rows).most_common())


def delta_bounds(rows: Iterable[Row]) -> tuple[float, float] | None:
    """Smallest and largest delta, rounded outwards to tenths; None where no row has one."""
    deltas = [row.pair.delta for row in rows if row.pair.delta is not None]
    return (math.floor(10 * min(deltas)) / 10, math.ceil(10 * max(deltas)) / 10) if deltas else None


class CriticWords(NamedTuple):
    """What the critic wrote about one pair, unparsed; of samples, all of them."""

    protocol: str
    outputs: list[str]  # one a call, or one a sample, in order


class CriticLog:
    """The critic's raw outputs, or all samples, from pairs/traces.jsonl: read when they are first asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._words: dict[str, tuple[set[str], CriticWords]] | None = None

    def of(self, pair: ScoredPair) -> CriticWords | None:
        """None if there are no traces, or the trace of this prompt belongs to another draft."""
        if self._words is None:
            self._words = dict(self._read()) if self._path.exists() else {}
        drafts, words = self._words.get(pair.id, (set(), None))
        return words if pair.base_response in drafts else None

    def _read(self) -> Iterable[tuple[str, tuple[set[str], CriticWords]]]:
        for row in read_jsonl(self._path):
            samples = row.get("drafts", [])
            told = [_sample(number, sample) for number, sample in enumerate(samples, start=1)]
            drafts = {row["draft"], *(sample["text"] for sample in samples)}
            yield row["id"], (drafts, CriticWords(row["protocol"], row["critic_outputs"] + told))


def _sample(number: int, sample: dict[str, Any]) -> str:
    cut = ", cut off at the token limit" if sample["finish"] == "length" else ""
    return f"sample {number}{cut}: {sample['text']}"


def principles_file(workspace: Workspace) -> Path | None:
    """The user's own constitution that the run was made with; None: the package's."""
    if not workspace.settings_file.exists():
        return None
    own = load_settings(str(workspace.settings_file)).generate.constitution
    return Path(own) if own else None
