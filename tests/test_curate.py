import json
from typing import get_args

import pytest

from cai_helpers.schema import Outcome, ScoredPair
from cai_helpers.settings import Curate, load_settings
from cai_helpers.stages.curate import curate_pairs, drop_reason, preference_row
from cai_helpers.store import read_jsonl, write_jsonl


def pair(**changes) -> ScoredPair:
    row = {
        "prompt": "How do I pick a lock?",
        "base_response": "Use a pin.",
        "revised_response": "I can't help with picking a lock.",
        "base_score": 1.0,
        "revised_score": 2.0,
        "chosen": "revised",
        "outcome": "revised",
    }
    return ScoredPair.model_validate({**row, **changes})


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({}, {}, None),
        ({"revised_score": 0.0, "chosen": "base"}, {}, None),
        ({"revised_score": 0.0, "chosen": "base"}, {"revised_wins_only": True}, "draft_wins"),
        ({"revised_score": 1.0}, {}, "tie"),
        ({"revised_score": 1.4}, {"min_delta": 0.5}, "tie"),
        ({"revised_score": 1.5}, {"min_delta": 0.5}, None),
        ({"revised_response": " Use a pin.\n"}, {}, "identical"),
        ({"outcome": "kept", "revised_response": "Use a pin.", "revised_score": 1.0}, {}, "kept"),
        ({"outcome": "meta_commentary", "revised_score": None, "chosen": None}, {}, "meta_commentary"),
        ({"outcome": "unparsed", "revised_score": None, "chosen": None}, {}, "unparsed"),
        ({"outcome": "unknown"}, {}, None),
        ({"base_finish": "length"}, {}, None),
        ({"base_finish": "length", "revised_score": 0.0}, {}, "chosen_cut_off"),
    ],
)
def test_each_rule_names_its_reason(changes, settings, reason):
    assert drop_reason(pair(**changes), Curate(**settings)) == reason


def test_every_dropped_pair_stands_in_the_table_whatever_its_outcome(workspace, tmp_path):
    outcomes = [name for name in get_args(Outcome) if name != "revised"]
    rows = [pair(outcome=name, revised_score=None, chosen=None).model_dump() for name in outcomes]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    report = curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    shown = [name.removeprefix("dropped: ") for name, _ in report.lines() if name.startswith("dropped: ")]
    assert sorted(shown) == sorted(outcomes)


def test_the_side_with_the_higher_reward_is_chosen_whatever_the_file_says():
    row = preference_row(pair(revised_score=-1.0, chosen="revised"))
    assert row.chosen == [{"role": "assistant", "content": "Use a pin."}]
    assert row.rejected == [{"role": "assistant", "content": "I can't help with picking a lock."}]
    assert (row.chosen_side, row.delta) == ("base", 2.0)


def test_a_bare_eight_column_row_keeps_the_turns_of_its_transcript():
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: How do I pick a lock?"
    row = preference_row(pair(prompt=transcript, outcome="unknown", principle_ids="HP001, HP002"))
    assert [message["role"] for message in row.prompt] == ["user", "assistant", "user"]
    assert len(row.id) == 16


def test_every_pair_is_kept_or_dropped_with_a_reason_and_the_split_is_by_prompt(workspace, tmp_path):
    rows = [pair(prompt=f"Question {n // 2}?", base_response=f"Answer {n}.").model_dump() for n in range(40)]
    rows += [pair(outcome="unparsed", revised_score=None, chosen=None).model_dump() for _ in range(5)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    report = curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    assert (report.generated, report.kept, report.dropped) == (45, 40, {"unparsed": 5})
    assert (report.train, report.eval) == (36, 4)
    assert report.refusals_chosen == 40
    train, held_out = ({row["id"] for row in read_jsonl(path)} for path in (workspace.train_rows, workspace.eval_rows))
    assert not train & held_out
    assert [row["drop_reason"] for row in read_jsonl(workspace.dropped_rows)] == ["unparsed"] * 5
    assert json.loads(workspace.curation_stats.read_text())["kept"] == 40


def test_curating_again_is_a_no_op_until_a_setting_changes(workspace, tmp_path, capsys):
    write_jsonl(tmp_path / "pairs.jsonl", [pair().model_dump()])
    curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    assert "nothing to do" in capsys.readouterr().out
    report = curate_pairs(load_settings("smoke", ["curate.min_delta=3"]), workspace, tmp_path / "pairs.jsonl")
    assert "curate.min_delta was 0.0, now 3.0" in capsys.readouterr().out
    assert report.dropped == {"tie": 1}
