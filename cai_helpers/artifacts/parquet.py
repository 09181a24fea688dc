"""The preference dataset as Parquet, with features that the Hub's viewer shows as conversations."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from cai_helpers.errors import CaiError

PARQUET_OF = {  # rows of the dataset → the same as Parquet
    "dpo_dataset/train.jsonl": "dpo_dataset/train.parquet",
    "dpo_dataset/eval.jsonl": "dpo_dataset/eval.parquet",
}
COLUMNS = ("prompt", "chosen", "rejected", "id", "category", "delta", "chosen_side", "labelled_by")


def preference_parquet(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows of schema.PreferenceRow as a Parquet file that `datasets` reads with its features. Lone surrogates, which
    UTF-8 does not know, become U+FFFD."""
    from datasets import Dataset, Features, Value
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    turns = [{"role": Value("string"), "content": Value("string")}]
    kinds = {"prompt": turns, "chosen": turns, "rejected": turns, "delta": Value("float64")}
    features = Features({name: kinds.get(name, Value("string")) for name in COLUMNS})
    sink, shown = io.BytesIO(), is_progress_bar_enabled()
    disable_progress_bars()
    try:
        Dataset.from_list(list(map(as_in_table, rows)), features=features).to_parquet(sink)
    finally:
        if shown:
            enable_progress_bars()
    return sink.getvalue()


def table_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows of such a file."""
    from pyarrow import ArrowInvalid, BufferReader, parquet

    try:
        return parquet.read_table(BufferReader(content)).to_pylist()
    except ArrowInvalid as error:
        raise CaiError(f"A table of the dataset is no Parquet file: {error}", "Run `cai export` again.") from error


def as_in_table(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it stands in the table."""
    return {name: _without_surrogates(row.get(name)) for name in COLUMNS}


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, list):
        return [{name: _without_surrogates(text) for name, text in turn.items()} for turn in value]
    return value
