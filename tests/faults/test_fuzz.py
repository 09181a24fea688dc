# ruff: noqa: PT017 - what an error says is part of what is stated
"""Whatever a file holds, reading it ends in a value or in one of the errors it states. 10,000 cases each."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai_helpers.analysis.frame import COLUMNS, read_pairs
from cai_helpers.errors import CaiError
from cai_helpers.inspection.worddiff import word_diff
from cai_helpers.manifest import WrittenByAnother, read_manifest
from cai_helpers.prompts.sources import Malformed, as_prompt_messages, parse_transcript
from cai_helpers.settings import load_settings
from cai_helpers.store import JsonlStore, read_json, read_jsonl
from cai_helpers.terminal import visible

pytestmark = pytest.mark.faults
many = settings(
    max_examples=round(10_000 * float(os.environ.get("CAI_FUZZ", "1"))),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
texts = st.text(st.characters(codec=None), max_size=60)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
turns = st.lists(
    st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "Human: ", " ", "\n", "x", "\ud800", "\u2028"]), max_size=12
)
content = st.binary(max_size=120) | st.lists(values, max_size=3).map(
    lambda rows: b"\n".join(json.dumps(row).encode() for row in rows)
)


def in_file(content: bytes, name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / "fuzz"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


@many
@given(turns.map("".join))
def test_transcripts(text):
    try:
        messages = parse_transcript(text)
    except Malformed:
        return
    assert messages[0]["role"] in ("user", "assistant")


@many
@given(values)
def test_conversations(value):
    try:
        messages = as_prompt_messages(value)
    except Malformed:
        return
    assert messages[-1]["role"] == "user"
    "".join(message["content"] for message in messages).encode()  # a tokenizer takes it


@many
@given(content)
def test_rows_of_a_file(raw):
    try:
        assert all(isinstance(row, dict) for row in read_jsonl(in_file(raw, "rows.jsonl")))
    except CaiError as error:
        assert "rows.jsonl" in error.what


@many
@given(content)
def test_a_store_never_loses_a_whole_row_when_it_is_opened(raw):
    path = in_file(raw, "store.jsonl")
    whole = [line for line in raw.split(b"\n")[:-1] if line.strip()]
    try:
        store = JsonlStore(path)
    except CaiError:
        assert path.read_bytes() == raw
        return
    assert [line for line in path.read_bytes().split(b"\n") if line.strip()][: len(whole)] == whole
    assert store.repaired_bytes >= 0


@many
@given(st.dictionaries(st.sampled_from([*COLUMNS, "id", "outcome", "messages"]), values))
def test_rows_of_pairs(row):
    try:
        list(read_pairs(in_file(json.dumps(row).encode(), "pairs.jsonl")))
    except CaiError as error:
        assert "pairs.jsonl" in error.what


@many
@given(
    st.lists(
        st.sampled_from(["train.beta", "models.reward", "evaluate.scorer", "seed", "threads", "nothing"]), max_size=2
    ),
    texts,
)
def test_settings(names, value):
    try:
        load_settings("smoke", [f"{name}={value}" for name in names])
    except CaiError as error:
        assert error.todo


@many
@given(content)
def test_manifests_and_other_json(raw):
    for read in (lambda path: read_manifest(path, "train"), lambda path: read_json(path, "Delete it.")):
        try:
            read(in_file(raw, "manifest.json"))
        except WrittenByAnother:
            continue
        except CaiError as error:
            assert "manifest.json" in error.what


@many
@given(texts, texts)
def test_word_diffs(one, two):
    word_diff(one, two)


@many
@given(texts)
def test_no_control_character_reaches_a_terminal(text):
    assert all(character.isprintable() or ord(character) > 127 or character in "\t\n" for character in visible(text))
