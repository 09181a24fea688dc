from __future__ import annotations

import math

import pytest
from pairs_for_eyes import pair, planted, write_pairs, write_traces

from cai_helpers.curation.overrides import append_override, read_overrides
from cai_helpers.errors import CaiError
from cai_helpers.inspection.rows import (
    TRAINED_ON,
    CriticLog,
    Filters,
    curation_is_behind,
    delta_bounds,
    principles_file,
    read_rows,
    select,
    values_of,
)
from cai_helpers.schema import StageReport
from cai_helpers.settings import load_settings
from cai_helpers.stages.curate import curate_pairs
from cai_helpers.store import write_jsonl


@pytest.fixture
def rows(workspace):
    write_pairs(workspace, planted())
    return read_rows(workspace)


def ids(rows, filters: Filters, order="file", decisions=None) -> list[str]:
    return [rows[place].pair.id for place in select(rows, filters, order, decisions or {})]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["id1", "id2", "id3", "id4", "id5", "id6", "id97", "id98"]),
        ({"outcome": "kept"}, ["id97"]),
        ({"chosen": "base"}, ["id2", "id4", "id6", "id97"]),
        ({"category": "harmless"}, ["id97"]),
        ({"low": 0.0, "high": 3.0}, ["id1", "id3", "id97", "id98"]),
        ({"low": -math.inf, "high": -3.0}, ["id4", "id6"]),
        ({"text": "QUESTION 3"}, ["id3"]),
        ({"text": "critique 5."}, ["id5"]),
        ({"text": "blue PIN", "chosen": "base"}, ["id2", "id4", "id6"]),
        ({"outcome": "kept", "chosen": "revised"}, []),
    ],
)
def test_filters_let_rows_pass_that_fit_all_of_them(rows, filters, expected):
    assert ids(rows, Filters(**filters)) == expected


def test_rows_are_sorted_by_delta_and_those_without_one_come_last_both_ways(workspace):
    failed = pair(9, 0.0, outcome="unparsed", revised_score=None, chosen=None)
    write_pairs(workspace, [failed.model_copy(update={"revised_score": None}), *planted()])
    rows = read_rows(workspace)
    down = ids(rows, Filters(), "largest delta first")
    assert down == ["id5", "id3", "id1", "id98", "id97", "id2", "id4", "id6", "id9"]
    assert ids(rows, Filters(), "smallest delta first") == [*down[-2::-1], "id9"]
    assert ids(rows, Filters(low=-9.0, high=9.0), "file")[0] == "id1"  # a range leaves out what has no delta
    assert values_of(rows, "chosen") == {"revised": 4, "base": 4, "none": 1}
    assert ids(rows, Filters(chosen="none")) == ["id9"]


def test_rows_are_filtered_by_what_a_person_decided(rows, workspace):
    for place, decision in ((0, "revision"), (1, "drop")):
        append_override(workspace.overrides, rows[place].key, rows[place].pair.id, decision)
    decisions = read_overrides(workspace.overrides)
    assert ids(rows, Filters(decision="decided"), decisions=decisions) == ["id1", "id2"]
    assert ids(rows, Filters(decision="drop"), decisions=decisions) == ["id2"]
    assert ids(rows, Filters(decision="undecided", chosen="base"), decisions=decisions) == ["id4", "id6", "id97"]


def test_rows_know_what_curation_made_of_them(workspace, smoke):
    write_pairs(workspace, [*planted(), pair(7, 0.0, 0.01)])
    assert values_of(read_rows(workspace), "curation") == {"none": 9}
    curate_pairs(smoke.model_copy(update={"curate": smoke.curate.model_copy(update={"min_delta": 0.1})}), workspace)
    rows = read_rows(workspace)
    by_id = {row.pair.id: row.curation for row in rows}
    assert (by_id["id1"], by_id["id97"], by_id["id7"]) == (TRAINED_ON, "kept", "tie")
    assert ids(rows, Filters(curation="tie")) == ["id7"]


def test_a_curation_of_another_file_says_nothing_about_this_one(workspace, smoke, tmp_path):
    write_pairs(workspace, planted())
    curate_pairs(smoke, workspace)
    other = tmp_path / "other.jsonl"
    write_jsonl(other, (one.model_dump() for one in planted(2)))
    assert set(values_of(read_rows(workspace, other), "curation")) == {"none"}
    assert TRAINED_ON in values_of(read_rows(workspace), "curation")


def test_a_decision_after_curation_is_one_that_curation_has_not_seen(workspace):
    write_pairs(workspace, planted())
    append_override(workspace.overrides, "k", "id1", "drop")
    assert not curation_is_behind(workspace)  # there was none
    workspace.seal("curate", {"input overrides": "older"}, [], _Sealed())
    assert curation_is_behind(workspace)


class _Sealed(StageReport):
    def title(self) -> str:
        return "sealed"

    def lines(self) -> list[tuple[str, str]]:
        return []


def test_eight_columns_are_enough(workspace, tmp_path):
    columns = ("prompt", "base_response", "revised_response", "base_score", "revised_score", "chosen", "critic_notes")
    file = tmp_path / "old.jsonl"
    write_jsonl(
        file, ({name: getattr(one, name) for name in columns} | {"principle_ids": "HP1,HP2"} for one in planted(2))
    )
    rows = read_rows(workspace, file)
    assert len({row.key for row in rows}) == 4
    assert rows[0].pair.principle_ids == ["HP1", "HP2"]
    assert values_of(rows, "outcome") == {"unknown": 4}


@pytest.mark.parametrize("content", ["", '{"prompt": "Hi"}\n'])
def test_a_file_that_holds_no_pairs_is_refused_in_words(workspace, tmp_path, content):
    file = tmp_path / "bad.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(CaiError, match="bad.jsonl"):
        read_rows(workspace, file)
    with pytest.raises(CaiError, match="no file"):
        read_rows(workspace, tmp_path / "missing.jsonl")


def test_delta_bounds_are_rounded_outwards(workspace):
    write_pairs(workspace, [pair(1, 0.0, 1.23), pair(2, 0.0, -0.57)])
    assert delta_bounds(read_rows(workspace)) == (-0.6, 1.3)


def test_the_critics_words_are_read_when_first_asked_for_and_belong_to_the_same_draft(workspace):
    pairs = planted(2)
    log = CriticLog(workspace.traces)
    write_traces(workspace, pairs)
    words = log.of(pairs[0])
    assert (words.protocol, words.outputs) == ("single/short", ["RAW Critique 1."])
    assert log.of(pairs[0].model_copy(update={"base_response": "of another run"})) is None
    assert log.of(pairs[0].model_copy(update={"id": "unknown"})) is None
    assert CriticLog(workspace.root / "none.jsonl").of(pairs[0]) is None


def test_the_constitution_of_the_run_is_the_one_whose_texts_are_shown(workspace, tmp_path):
    assert principles_file(workspace) is None
    mine = tmp_path / "mine.yaml"
    workspace.save_settings(load_settings("smoke", [f"generate.constitution={mine}"]))
    assert principles_file(workspace) == mine
