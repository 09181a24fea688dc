import pytest

from cai_helpers.calibration.gold import gold_identity, read_gold
from cai_helpers.errors import CaiError, GoldUnreachable
from cai_helpers.store import write_jsonl

ASKED = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Tea?"


def written(tmp_path, *rows, name="gold.jsonl"):
    write_jsonl(tmp_path / name, rows)
    return str(tmp_path / name)


def transcripts(better="Yes.", worse="No.", asked=ASKED, columns=("chosen", "rejected")):
    return {columns[0]: f"{asked}\n\nAssistant: {better}", columns[1]: f"{asked}\n\nAssistant: {worse}"}


def test_transcripts_are_split_before_the_last_answer_and_keep_all_turns(tmp_path):
    (pair,) = read_gold(written(tmp_path, transcripts(), name="helpful.jsonl"), None, 0).pairs
    assert [turn["content"] for turn in pair.messages] == ["Hi.", "Hello.", "Tea?"]
    assert (pair.better, pair.worse, pair.category) == ("Yes.", "No.", "helpful")


def test_hhh_and_our_own_form_are_told_by_their_columns(tmp_path):
    own = {"messages": [{"role": "user", "content": "Tea?"}], "better": "Yes.", "worse": "No.", "category": "helpful"}
    rows = [transcripts(columns=("text_correct", "text_incorrect")), own]
    assert sorted(pair.category for pair in read_gold(written(tmp_path, *rows), None, 0).pairs) == ["helpful", "hhh"]


def test_rows_that_cannot_be_compared_are_left_out_and_counted(tmp_path):
    other = transcripts()["chosen"].replace("Tea?", "Coffee?")
    rows = [
        transcripts(),
        transcripts(),
        {"chosen": transcripts()["chosen"], "rejected": other},
        transcripts("Same.", "Same."),
        transcripts(""),
        {"chosen": ASKED, "rejected": ASKED},
        {"chosen": "no turns", "rejected": "no turns"},
    ]
    found = read_gold(written(tmp_path, *rows), None, 0)
    assert (len(found.pairs), found.rows) == (1, 7)
    assert found.left_out == {
        "the same pair again": 1,
        "the two prompts differ": 1,
        "the two responses are the same": 1,
        "an empty response": 1,
        "does not end on a response": 1,
        "no Human/Assistant turns": 1,
    }


def test_an_unknown_form_stops_with_the_row_what_was_found_and_what_was_expected(tmp_path):
    path = written(tmp_path, transcripts(), {"question": "Tea?", "answer": "Yes."})
    with pytest.raises(CaiError, match=r"row 2: its columns are question, answer.\nExpected are text_correct"):
        read_gold(path, None, 0)


def test_a_file_without_a_single_pair_stops_with_the_reasons(tmp_path):
    with pytest.raises(CaiError, match="no gold pair \\(1 left out: the two responses are the same\\)"):
        read_gold(written(tmp_path, transcripts("Same.", "Same.")), None, 0)


def test_a_limit_takes_the_same_sample_whatever_the_order(tmp_path):
    rows = [transcripts(f"Yes {number}.") for number in range(40)]
    one = read_gold(written(tmp_path, *rows), 10, 0)
    other = read_gold(written(tmp_path, *reversed(rows), name="other.jsonl"), 10, 0)
    assert len(one.pairs) == 10
    assert one.pairs == other.pairs != read_gold(written(tmp_path, *rows), 10, 1).pairs


def test_a_missing_file_is_a_mistake_and_a_hub_out_of_reach_is_not(tmp_path):
    with pytest.raises(CaiError, match="There is no file") as missing:
        read_gold(str(tmp_path / "none.jsonl"), None, 0)
    assert not isinstance(missing.value, GoldUnreachable)
    with pytest.raises(GoldUnreachable):
        read_gold("cai-helpers/is-not-there", None, 0)


def test_a_file_is_known_by_its_content(tmp_path):
    before = gold_identity(written(tmp_path, transcripts()))
    assert gold_identity(written(tmp_path, transcripts("Other."))) != before
    assert gold_identity("Anthropic/hh-rlhf") == "Anthropic/hh-rlhf"


def test_the_real_hhh_file_is_read_whole(shared_data):
    found = read_gold(str(shared_data / "hhh" / "438HHHEvaluations.jsonl"), None, 0)
    assert (len(found.pairs), found.rows, found.left_out) == (438, 438, {})


def test_the_real_hh_rlhf_file_is_read_but_for_its_broken_rows(shared_data):
    found = read_gold(str(shared_data / "hh-rlhf" / "harmless-base-test.jsonl.gz"), None, 0)
    assert found.rows == 2312
    assert found.left_out["the two prompts differ"] == 5
    assert len(found.pairs) + sum(found.left_out.values()) == 2312
    assert {pair.category for pair in found.pairs} == {"harmless"}
