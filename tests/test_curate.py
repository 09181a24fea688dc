import json
import tracemalloc
from typing import NamedTuple, get_args

import pytest

from cai_helpers.analysis.frame import read_frame
from cai_helpers.analysis.statistics import analyze_frame
from cai_helpers.curation.dataset import Overruled, curate
from cai_helpers.curation.overrides import Override, append_override, pair_key
from cai_helpers.curation.rules import DROP_MEANING, Dropped, drop_reason, preference_row, refuses_over_answer
from cai_helpers.curation.split import held_out_ids, held_out_rule, split_hash
from cai_helpers.schema import TWO_SIDED, Outcome, PreferenceRow, ScoredPair
from cai_helpers.settings import Curate, load_settings
from cai_helpers.stages.curate import curate_pairs
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


META = "The response should tell people to ask a locksmith."


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
        # a file from elsewhere tells no outcome, so the text does, whichever side won
        ({"outcome": "unknown", "revised_response": META}, {}, "meta_commentary"),
        ({"outcome": "unknown", "revised_response": META, "revised_score": 0.0}, {}, "meta_commentary"),
        ({"outcome": "unknown", "revised_response": META, "revised_score": None}, {}, "meta_commentary"),
        ({"outcome": "revised", "revised_response": META}, {}, "meta_commentary"),
        ({"outcome": "unknown", "base_response": META, "revised_response": META}, {}, "identical"),
        ({"outcome": "unknown", "revised_response": "Ask a locksmith."}, {}, "too_short"),
        ({"outcome": "unknown", "revised_response": "KEEP_ORIGINAL"}, {}, "kept"),
        ({"outcome": "unknown", "revised_response": "How do I pick a lock?"}, {}, "echo"),
        ({"outcome": "unknown", "revised_response": "Ask a locksmith to open it.<end_of_turn>"}, {}, "echo"),
        ({"outcome": "revised", "revised_response": "Ask a locksmith to open it.<end_of_turn>"}, {}, "echo"),
        ({"outcome": "unknown", "revised_response": "and so on " * 40}, {}, "degenerate"),
        ({"outcome": "unknown", "revised_response": "and so on " * 40}, {"drop_degenerate": False}, None),
        ({"base_finish": "length"}, {}, None),
        ({"base_finish": "length", "revised_score": 0.0}, {}, "chosen_cut_off"),
        ({"base_response": "and so on " * 40}, {}, "degenerate"),
        ({"base_response": "and so on " * 40}, {"drop_degenerate": False}, None),
        ({"base_response": "One two three four five six seven."}, {"max_length_ratio": 2}, None),
        ({"base_response": "One two three."}, {"max_length_ratio": 2}, "length_ratio"),
        ({"base_response": "I can't help with that."}, {"drop_both_refuse": True}, "both_refuse"),
        ({"base_response": "I can't help with that."}, {}, None),
    ],
)
def test_each_rule_names_its_reason(changes, settings, reason):
    assert drop_reason(pair(**changes), Curate(**settings)) == reason


CIRCLES = "and so on " * 40
LONG_REFUSAL = "I can't help with that, and neither can any other locksmith, friend or neighbour of yours."


@pytest.mark.parametrize(
    ("changes", "settings", "first", "second"),
    [
        ({"outcome": "kept", "base_response": CIRCLES, "revised_response": CIRCLES}, {}, "kept", "identical"),
        ({"base_response": CIRCLES, "revised_response": CIRCLES}, {}, "identical", "degenerate"),
        ({"base_response": CIRCLES, "revised_score": 1.0}, {}, "degenerate", "tie"),
        ({"revised_score": 0.9}, {"min_delta": 0.5, "revised_wins_only": True}, "tie", "draft_wins"),
        ({"base_finish": "length", "revised_score": 0}, {"revised_wins_only": True}, "draft_wins", "chosen_cut_off"),
        (
            {"base_response": "Use a pin. " * 9, "base_finish": "length", "revised_score": 0},
            {"max_length_ratio": 2, "drop_degenerate": False},
            "chosen_cut_off",
            "length_ratio",
        ),
        (
            {"base_response": LONG_REFUSAL},
            {"max_length_ratio": 2, "drop_both_refuse": True},
            "length_ratio",
            "both_refuse",
        ),
    ],
)
def test_a_pair_that_breaks_two_rules_is_dropped_for_the_one_that_is_applied_first(changes, settings, first, second):
    assert {first, second} <= DROP_MEANING.keys()
    assert drop_reason(pair(**changes), Curate(**settings)) == first


def test_every_dropped_pair_stands_in_the_table_whatever_its_outcome(workspace, tmp_path):
    outcomes = [name for name in get_args(Outcome) if name not in TWO_SIDED]
    rows = [pair(outcome=name, revised_score=None, chosen=None).model_dump() for name in outcomes]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    report = curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    shown = [name.removeprefix("dropped: ") for name, _ in report.lines() if name.startswith("dropped: ")]
    assert sorted(shown) == sorted(outcomes)


def test_in_an_eight_column_file_what_is_counted_as_no_revision_is_what_is_dropped(workspace, tmp_path):
    columns = (
        *("prompt", "base_response", "revised_response", "base_score", "revised_score", "chosen"),
        *("critic_notes", "principle_ids"),
    )
    revisions = [f"Ask locksmith number {number} to open it." for number in range(30)]
    revisions[:8] = [f"The response should name locksmith number {number}." for number in range(8)]
    revisions[8:12] = ["REVISION: Ask a locksmith to open the lock.", "Ask him.", "KEEP_ORIGINAL", "and so on " * 40]
    pairs = [
        pair(prompt=f"How do I open lock {number}?", revised_response=text, revised_score=number % 2 * 2.0)
        for number, text in enumerate(revisions)
    ]
    rows = [{name: value for name, value in one.model_dump().items() if name in columns} for one in pairs]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    kept_by_a_person = pair_key(pairs[0].prompt, pairs[0].base_response, pairs[0].revised_response)
    append_override(workspace.overrides, kept_by_a_person, pairs[0].id, "revision")

    report = curate_pairs(load_settings("smoke", ["curate.near_duplicates=null"]), workspace, tmp_path / "pairs.jsonl")
    assert report.dropped == {"kept": 1, "meta_commentary": 7, "echo": 1, "too_short": 1, "degenerate": 1}
    assert report.kept + sum(report.dropped.values()) == report.generated == 30
    written = [*read_jsonl(workspace.train_rows), *read_jsonl(workspace.eval_rows)]
    assert len(written) == report.kept == 19
    assert [row["labelled_by"] for row in written if "The response should" in str(row["chosen"] + row["rejected"])] == [
        "person"
    ]
    dropped = [row["drop_reason"] for row in read_jsonl(workspace.dropped_rows)]
    assert {reason: dropped.count(reason) for reason in dropped} == report.dropped
    counted = analyze_frame(read_frame(tmp_path / "pairs.jsonl"))
    assert round(counted.meta_commentary.value * counted.meta_commentary.n) == 8  # those dropped and the person's


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
    for row in rows[:20]:
        row["revised_response"] = "Ask a locksmith."
    rows += [pair(outcome="unparsed", revised_score=None, chosen=None).model_dump() for _ in range(5)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    settings = load_settings("smoke", ["curate.near_duplicates=null"])
    report = curate_pairs(settings, workspace, tmp_path / "pairs.jsonl")
    assert (report.generated, report.kept, report.dropped) == (45, 40, {"unparsed": 5})
    assert (report.train, report.eval) == (36, 4)
    assert report.refusals_chosen == 20
    train, held_out = ({row["id"] for row in read_jsonl(path)} for path in (workspace.train_rows, workspace.eval_rows))
    assert not train & held_out
    assert [row["drop_reason"] for row in read_jsonl(workspace.dropped_rows)] == ["unparsed"] * 5
    assert json.loads(workspace.curation_stats.read_text())["kept"] == 40


def test_an_answer_to_a_held_out_prompt_is_held_out_too_also_where_its_prompt_is_the_last_of_them():
    prompts = {f"prompt {number}" for number in range(40)}
    held_out = held_out_ids(prompts, 0.25, seed=3)
    is_held_out = held_out_rule(prompts, held_out, seed=3)
    assert len(held_out) == 10
    assert {name for name in prompts if is_held_out(name)} == held_out
    others = [name for name in (f"other {number}" for number in range(400)) if is_held_out(name)]
    assert 60 < len(others) < 140  # about the same share of what is in no pair
    assert max(split_hash(name, 3) for name in others) < max(split_hash(name, 3) for name in held_out)


def test_curating_again_is_a_no_op_until_a_setting_changes(workspace, tmp_path, capsys):
    write_jsonl(tmp_path / "pairs.jsonl", [pair().model_dump()])
    curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    assert "nothing to do" in capsys.readouterr().out
    report = curate_pairs(load_settings("smoke", ["curate.min_delta=3"]), workspace, tmp_path / "pairs.jsonl")
    assert "curate.min_delta was 0.0, now 3.0" in capsys.readouterr().out
    assert report.dropped == {"tie": 1}


class Curated(NamedTuple):
    rows: list[PreferenceRow]
    dropped: list[Dropped]
    overruled: Overruled


def curated(pairs: list[ScoredPair], overrides: dict | None = None, **settings) -> Curated:
    curation = curate(pairs, overrides or {}, Curate(**settings), seed=0)
    results = list(curation.results(pairs))
    rows = [one for one in results if isinstance(one, PreferenceRow)]
    assert len(rows) == curation.kept
    return Curated(rows, [one for one in results if isinstance(one, Dropped)], curation.overruled)


def override(one: ScoredPair, decision: str, edited: str | None = None) -> dict[str, Override]:
    key = pair_key(one.prompt, one.base_response, one.revised_response)
    return {key: Override(key=key, id=one.id, decision=decision, edited=edited, time="2026-01-01T00:00:00+00:00")}


def answering(number: int) -> ScoredPair:
    """A pair whose winning revision answers; no two of them have similar prompts."""
    return pair(prompt=f"What is the use of tool number {number}?", revised_response=f"It opens box {number}.")


def refusing(number: int) -> ScoredPair:
    return pair(prompt=f"How could I break into house number {number}?")


def test_of_nearly_the_same_prompts_the_pair_with_the_clearest_score_stays():
    prompt = "How do I open the old lock on the garden door of my neighbour without leaving a trace?"
    pairs = [pair(prompt=prompt), pair(prompt=prompt.upper(), revised_score=5.0), answering(1)]
    result = curated(pairs)
    assert [row.delta for row in result.rows] == [4.0, 1.0]
    assert [(one.pair.prompt, one.reason) for one in result.dropped] == [(prompt, "near_duplicate")]
    assert len(curated(pairs, near_duplicates=None).rows) == 3


def test_of_nearly_the_same_prompts_the_pair_that_a_person_decided_stays_however_clear_the_other():
    prompt = "How do I open the old lock on the garden door of my neighbour without leaving a trace?"
    decided, clearer = pair(prompt=prompt), pair(prompt=prompt.upper(), revised_score=5.0)
    for pairs in ([decided, clearer], [clearer, decided]):
        result = curated(pairs, override(decided, "revision"))
        assert [(row.labelled_by, row.delta) for row in result.rows] == [("person", 1.0)]
        assert [(drop.pair.prompt, drop.reason) for drop in result.dropped] == [(prompt.upper(), "near_duplicate")]


def test_refusals_over_answers_are_thinned_out_to_their_share_and_no_further():
    result = curated([refusing(n) for n in range(50)] + [answering(n) for n in range(5)], max_refusal_share=0.75)
    assert sum(map(refuses_over_answer, result.rows)) == 15
    assert len(result.rows) == 20
    assert {one.reason for one in result.dropped} == {"balance"}
    assert len(curated([refusing(n) for n in range(9)] + [answering(n) for n in range(3)]).rows) == 12
    assert len(curated([refusing(n) for n in range(50)], max_refusal_share=1).rows) == 50


def test_what_the_balance_takes_does_not_depend_on_the_order_of_the_file():
    pairs = [refusing(n) for n in range(50)] + [answering(n) for n in range(5)]
    first, second = curated(pairs), curated(pairs[::-1])
    assert {row.id for row in first.rows} == {row.id for row in second.rows}


def test_a_person_goes_before_every_rule():
    tie = pair(revised_score=1.0)
    assert curated([tie]).dropped[0].reason == "tie"
    row = curated([tie], override(tie, "revision")).rows[0]
    assert (row.labelled_by, row.chosen_side, row.delta) == ("person", "revised", 0.0)

    won = pair()
    assert curated([won], override(won, "drop")).dropped[0].reason == "overruled"
    result = curated([won], override(won, "draft"))
    assert result.rows[0].chosen[0]["content"] == "Use a pin."
    assert result.rows[0].delta == -1.0
    assert result.overruled == (1, 0, 1, 0)


def test_an_edited_revision_is_chosen_over_the_draft_even_where_the_critic_failed():
    failed = pair(outcome="unparsed", revised_response="Use a pin.", revised_score=None, chosen=None)
    row = curated([failed], override(failed, "edit", "Call a locksmith.")).rows[0]
    assert (row.chosen[0]["content"], row.rejected[0]["content"]) == ("Call a locksmith.", "Use a pin.")
    assert (row.delta, row.labelled_by) == (None, "person")


def test_preferring_one_of_two_equal_texts_makes_no_row():
    kept = pair(outcome="kept", revised_response="Use a pin.", revised_score=1.0)
    assert curated([kept], override(kept, "revision")).dropped[0].reason == "identical"


def test_preferring_one_of_two_texts_that_differ_in_white_space_alone_makes_no_row():
    alike = pair(revised_response=" Use a pin.\n")
    for decision in ("revision", "draft"):
        assert curated([alike], override(alike, decision)).dropped[0].reason == "identical"


def test_decisions_are_honoured_from_disk_and_counted_in_the_report(workspace, tmp_path):
    pairs = [answering(number) for number in range(4)]
    write_jsonl(tmp_path / "pairs.jsonl", [one.model_dump() for one in pairs])
    curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    for one, decision in zip(pairs, ("drop", "draft"), strict=False):
        key = pair_key(one.prompt, one.base_response, one.revised_response)
        append_override(workspace.overrides, key, one.id, decision)
    append_override(workspace.overrides, "0" * 16, "gone", "drop")
    report = curate_pairs(load_settings("smoke"), workspace, tmp_path / "pairs.jsonl")
    assert report.dropped == {"overruled": 1}
    assert report.overruled == (1, 1, 1, 1)
    assert dict(report.lines())["overruled"] == (
        "1 kept as a person decided, 1 of them against the reward model; 1 dropped; "
        "1 decisions are about pairs that are not here"
    )
    rows = [*read_jsonl(workspace.train_rows), *read_jsonl(workspace.eval_rows)]
    assert sorted(row["labelled_by"] for row in rows) == ["person", "reward model", "reward model"]


def test_rows_are_never_made_of_other_pairs_than_those_that_were_judged():
    pairs = [answering(number) for number in range(3)]
    curation = curate(pairs, {}, Curate(), seed=0)
    with pytest.raises(ValueError, match="zip"):
        list(curation.results(pairs[:2]))


def test_the_texts_of_a_file_are_never_held_all_at_once(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("cai_helpers.measures.topic._ROWS", 20)  # 5,000 otherwise: those are held
    monkeypatch.setattr("cai_helpers.measures.intervals._NORMAL_FROM", 2)  # resampling up to 2,000 takes 64 MB
    curate_pairs(load_settings("smoke"), workspace, written(tmp_path / "few.jsonl", 2))  # what is loaded once is loaded
    source = written(tmp_path / "pairs.jsonl", 400)
    tracemalloc.start()
    report = curate_pairs(load_settings("smoke"), workspace, source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.kept == 400
    assert source.stat().st_size > 16e6
    assert peak < 8e6


def written(path, count: int):
    """Pairs whose texts are 20 kB each, no two alike."""
    rows = (
        pair(
            prompt=f"What is the use of tool number {number}?",
            base_response=" ".join(f"b{number}.{word}" for word in range(2500)),
            revised_response=" ".join(f"r{number}.{word}" for word in range(2500)),
        ).model_dump()
        for number in range(count)
    )
    write_jsonl(path, rows)
    return path
