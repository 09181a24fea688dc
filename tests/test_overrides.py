import pytest

from cai_helpers.curation.overrides import append_override, pair_key, read_overrides
from cai_helpers.errors import CaiError


def test_the_last_decision_about_a_pair_stands(tmp_path):
    path = tmp_path / "overrides.jsonl"
    append_override(path, "a", "1", "revision")
    append_override(path, "b", "2", "drop", note="nonsense")
    append_override(path, "a", "1", "draft")
    standing = read_overrides(path)
    assert {key: one.decision for key, one in standing.items()} == {"a": "draft", "b": "drop"}
    assert standing["b"].note == "nonsense"


def test_undo_brings_back_the_decision_before(tmp_path):
    path = tmp_path / "overrides.jsonl"
    for decision in ("revision", "drop", "undo"):
        append_override(path, "a", "1", decision)
    assert read_overrides(path)["a"].decision == "revision"
    append_override(path, "a", "1", "undo")
    append_override(path, "a", "1", "undo")  # one more than there were decisions
    assert read_overrides(path) == {}
    assert len(path.read_text().splitlines()) == 5  # nothing was overwritten


def test_an_edit_needs_its_text(tmp_path):
    with pytest.raises(ValueError, match="comes with a text"):
        append_override(tmp_path / "overrides.jsonl", "a", "1", "edit")


def test_a_torn_last_line_does_not_cost_the_next_decision(tmp_path):
    path = tmp_path / "overrides.jsonl"
    append_override(path, "a", "1", "drop")
    with path.open("a") as file:
        file.write('{"key": "b", "id"')  # killed while writing
    append_override(path, "c", "3", "draft")
    assert {key: one.decision for key, one in read_overrides(path).items()} == {"a": "drop", "c": "draft"}


def test_a_line_that_is_no_decision_is_named(tmp_path):
    path = tmp_path / "overrides.jsonl"
    path.write_text('{"key": "a", "id": "1", "decision": "maybe", "time": "now"}\n')
    with pytest.raises(CaiError, match="row 1: decision"):
        read_overrides(path)


def test_a_pair_is_named_by_its_texts():
    assert pair_key("p", "a", "b") == pair_key("p", "a", "b")
    assert len({pair_key("p", "a", "b"), pair_key("p", "b", "a"), pair_key("pa", "", "b")}) == 3
