"""The analysis on small files whose every figure can be counted by hand."""

import json
import math
import random

import pytest

from cai_helpers.analysis.frame import is_context_free, pair_frame, read_frame
from cai_helpers.analysis.statistics import analyze_frame, evenness
from cai_helpers.errors import CaiError
from cai_helpers.schema import ScoredPair
from cai_helpers.stages.analyze import AnalyzeReport, analyze_pairs
from cai_helpers.store import write_json, write_jsonl

REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = "You take the bus at the corner and get off at the park."


def row(base=ANSWER, revised=REFUSAL, delta=1.0, **others) -> dict:
    return {
        "prompt": "How do I get to the park from here?",
        "base_response": base,
        "revised_response": revised,
        "base_score": 0.0,
        "revised_score": delta,
        "chosen": None if delta is None else "revised" if delta > 0 else "base",
        "critic_notes": "It could be kinder.",
        "principle_ids": ["HP001"],
        "category": "harmless",
        "outcome": "revised",
        **others,
    }


def kept(**others) -> dict:
    return row(revised=ANSWER, delta=0.0, outcome="kept", **others)


def failed(outcome="unparsed", **others) -> dict:
    return row(revised=ANSWER, delta=None, outcome=outcome, **others)


def figures(rows, **options):
    return analyze_frame(pair_frame(ScoredPair.model_validate(one) for one in rows), **options)


def test_identical_texts_are_counted_over_all_rows_and_over_attempted_revisions():
    found = figures([row(), row(), kept(), kept(), kept(), failed()])
    assert (found.identical_all.value, found.identical_all.n) == (4 / 6, 6)
    assert (found.identical_attempted.value, found.identical_attempted.n) == (1 / 3, 3)
    assert found.attempted == 3
    assert found.masquerading == 0


def test_who_is_better_is_counted_over_pairs_with_two_texts_and_two_scores():
    found = figures([row(delta=1.0), row(delta=0.5), row(delta=-2.0), row(delta=0.0005), kept(), failed()])
    assert (found.compared, found.revised_better, found.base_better, found.ties) == (4, 2, 1, 1)
    assert found.tie_threshold == 0.001
    assert found.wins.value == 2.5 / 4
    assert found.mean_delta.value == pytest.approx((1.0 + 0.5 - 2.0 + 0.0005) / 4)
    assert found.median_delta.value == pytest.approx((0.0005 + 0.5) / 2)
    assert found.unscored == 1


def test_the_tie_threshold_can_be_raised():
    found = figures([row(delta=0.3), row(delta=-0.3), row(delta=2.0)], tie=0.5)
    assert (found.revised_better, found.base_better, found.ties) == (1, 0, 2)


def test_outcomes_and_chosen_sides_are_counted():
    found = figures([row(), row(delta=-1.0), kept(), failed("truncated"), failed("meta_commentary")])
    assert found.outcomes == {"revised": 2, "kept": 1, "truncated": 1, "meta_commentary": 1}
    assert found.chosen == {"base": 2, "revised": 1}
    assert (found.usable.value, found.usable.n) == (3 / 5, 5)
    assert (found.meta_commentary.value, found.meta_commentary.n) == (1 / 4, 4)


def test_a_label_against_the_scores_is_counted():
    assert figures([row(), row(chosen="base"), row(delta=-1.0)]).contradictions == 1


def test_principles_have_shares_win_rates_and_an_evenness():
    found = figures(
        [
            row(principle_ids=["A", "B"]),
            row(principle_ids=["A"], delta=-1.0),
            kept(principle_ids=["C"]),
            row(principle_ids=[]),
        ]
    )
    first = found.principles[0]
    assert (first.name, first.rows, first.share, first.compared, first.wins.value) == ("A", 2, 0.5, 2, 0.5)
    assert found.principles[0].mean_delta.value == 0.0
    assert {group.name: group.wins and group.wins.value for group in found.principles} == {
        "A": 0.5,
        "B": 1.0,
        "C": None,
    }
    assert (found.principle_rows, found.distinct_principles) == (3, 3)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert found.principle_evenness == pytest.approx(entropy / math.log(3))


def test_evenness_is_one_for_equal_use_and_zero_for_one_principle():
    assert evenness([5, 5, 5]) == pytest.approx(1.0)
    assert evenness([7]) == 0.0
    assert evenness([]) is None


def test_categories_have_figures_of_their_own():
    found = figures([row(), row(), row(category="helpful", delta=-1.0)])
    assert {group.name: (group.rows, group.wins.value) for group in found.categories} == {
        "harmless": (2, 1.0),
        "helpful": (1, 0.0),
    }


def test_lengths_are_means_of_words_over_compared_pairs():
    found = figures(
        [row(base="one two three", revised="one two"), row(base="one", revised="one two three four"), kept()]
    )
    assert (found.base_words.value, found.revised_words.value) == (2.0, 3.0)


def test_length_bias_counts_pairs_whose_longer_side_wins():
    long, short = "this text is a good deal longer than the other", "this is short"
    rows = [
        row(short, long, 1.0),
        row(short, long, 2.0),
        row(long, short, 0.5),
        row(long, short, -1.0),
        row("a b c", "d e f", 1.0),
    ]
    found = figures(rows).length_bias
    assert (found.pairs, found.longer_wins.value) == (4, 3 / 4)


def test_length_bias_is_also_taken_like_with_like():
    rows = [
        row(ANSWER, REFUSAL, 1.0),
        row(ANSWER, ANSWER + " It is the red one.", 1.0),
        row(REFUSAL, "I cannot help with this.", 1.0),
    ]
    found = figures(rows)
    assert found.length_bias.pairs == 3
    assert found.length_bias_like_for_like.pairs == 2


def test_refusal_transitions_are_counted_by_category_too():
    found = figures(
        [row(), row(REFUSAL, ANSWER, category="helpful"), row(ANSWER, "Walk north until you see the lake."), kept()]
    )
    assert found.transitions.model_dump() == {
        "answer_to_answer": 1,
        "answer_to_refusal": 1,
        "refusal_to_answer": 1,
        "refusal_to_refusal": 0,
    }
    assert found.transitions_by_category["helpful"].refusal_to_answer == 1


def test_what_the_labels_teach_is_counted_from_the_winning_side():
    found = figures(
        [row(delta=1.0), row(delta=-1.0), row(REFUSAL, ANSWER, 1.0), row(ANSWER, ANSWER + " Then walk.", 1.0)]
    )
    assert (found.prefers_refusal, found.prefers_answer, found.decided) == (1, 2, 4)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Yeah.", True),
        ("What about a gun?", True),
        ("User: yes please do\nAssistant:", True),
        ("Ok, and then?", True),
        ("How do I bake bread?", False),
        ("No sugar in the house: which cake can I still bake for nine people?", False),
        ("Write a poem about the sea.", False),
    ],
)
def test_follow_ups_without_their_conversation_are_recognised(prompt, expected):
    assert is_context_free(prompt) is expected


def test_a_follow_up_with_its_turns_has_context():
    turns = [
        {"role": "user", "content": "Tea?"},
        {"role": "assistant", "content": "Black?"},
        {"role": "user", "content": "Yeah."},
    ]
    found = figures(
        [row(prompt="Yeah.", messages=turns), row(prompt="Human: Tea?\n\nAssistant: Black?\n\nHuman: Yeah.")]
    )
    assert found.context_free.value == 0.0
    assert found.multi_turn == 2


def test_repeated_prompts_are_counted_whatever_their_case_and_spacing():
    assert figures([row(prompt="Bake a cake?"), row(prompt="bake  a CAKE?"), row(prompt="Bake a pie?")]).duplicates == 1


def test_best_and_worst_revisions_are_those_with_extreme_deltas():
    found = figures([row(id=str(delta), delta=delta) for delta in (0.5, -3.0, 4.0, -1.0, 2.0)])
    assert [one.id for one in found.best] == ["4.0", "2.0", "0.5"]
    assert [one.id for one in found.worst] == ["-3.0", "-1.0"]


def test_a_file_without_a_single_comparable_pair_is_still_analysed():
    found = figures([failed(), kept()])
    assert (found.compared, found.wins, found.mean_delta, found.median_delta) == (0, None, None, None)
    assert found.length_bias.longer_wins is None


def test_a_foreign_file_of_eight_columns_is_read(tmp_path):
    own = ("category", "outcome")
    old = {
        name: value for name, value in row(principle_ids="HP001,HP002", critic_notes=None).items() if name not in own
    }
    write_jsonl(tmp_path / "old.jsonl", [old, old])
    frame = read_frame(tmp_path / "old.jsonl").rows
    assert list(frame["principle_ids"]) == [["HP001", "HP002"]] * 2
    assert list(frame["outcome"]) == ["unknown"] * 2
    assert list(frame["compared"]) == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_score": None}, "row 2: base_score"),
        ({"chosen": "both"}, "row 2: chosen"),
        ({"revised_score": math.nan}, "row 2: a score is not a number that a reward model gives"),
    ],
)
def test_a_broken_row_is_named(tmp_path, change, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in (row(), row() | change)), encoding="utf-8")
    with pytest.raises(CaiError, match=message):
        read_frame(path)


def test_a_file_of_something_else_is_told_what_is_missing(tmp_path):
    write_jsonl(tmp_path / "dpo.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(
        CaiError, match="no column base_response, revised_response, base_score, revised_score; it has prompt, chosen"
    ):
        read_frame(tmp_path / "dpo.jsonl")


def test_an_empty_or_missing_file_says_what_to_do(tmp_path):
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(CaiError, match="holds no pairs"):
        read_frame(tmp_path / "pairs.jsonl")
    with pytest.raises(CaiError, match="There is no file"):
        read_frame(tmp_path / "nothing.jsonl")


def many_rows(count: int):
    draw = random.Random(3)
    for number in range(count):
        base, revised = (" ".join(draw.choices(ANSWER.split(), k=draw.randint(10, 60))) for _ in range(2))
        yield row(
            base,
            revised,
            draw.gauss(0.5, 1),
            prompt=f"Number {number} of the many questions?",
            principle_ids=[f"P{number % 30}"],
        )


def test_the_stage_writes_a_page_and_pictures_and_is_then_complete(smoke, workspace):
    write_jsonl(workspace.pairs, many_rows(60))
    stats = {"generated": 60, "kept": 50, "dropped": {"tie": 10}, "train": 45, "eval": 5, "gate": []}
    write_json(workspace.curation_stats, stats)
    report = analyze_pairs(smoke, workspace)
    assert report.page == "reports/pairs.html"
    assert (workspace.root / report.page).stat().st_size > 50_000
    names = {"funnel", "delta_by_outcome", "length_against_delta", "principles", "transitions"}
    assert {path.name for path in workspace.reports.glob("*.png")} == {f"{name}.png" for name in names}
    assert analyze_pairs(smoke, workspace) == report
    assert AnalyzeReport.model_validate(workspace.manifest("analyze").report) == report
    assert dict(report.lines())["pairs"] == "60, of which 60 have two texts with two scores"
    assert dict(report.lines())["scorer, on gold pairs"] == "not calibrated: run `cai calibrate`"


def test_a_file_from_elsewhere_is_analysed_beside_the_run_and_leaves_it_alone(smoke, workspace, tmp_path):
    write_jsonl(tmp_path / "old.jsonl", many_rows(40))
    report = analyze_pairs(smoke, workspace, tmp_path / "old.jsonl")
    assert report.page == "reports/old/pairs.html"
    assert "scorer, on gold pairs" not in dict(report.lines())  # nobody knows who scored it
    assert workspace.manifest("analyze") is None
    assert (workspace.reports / "old" / "funnel.png").exists()


def test_analysing_before_scoring_names_the_stage_that_comes_first(smoke, workspace):
    with pytest.raises(CaiError, match="made by the score stage"):
        analyze_pairs(smoke, workspace)


def test_principles_of_the_run_are_told_by_their_words(workspace, smoke):
    rows = [row(prompt=f"Question {number}?", principle_ids=["HP001", "X9"]) for number in range(12)]
    write_jsonl(workspace.pairs, rows)
    report = analyze_pairs(smoke, workspace)
    told = dict(report.lines())
    assert "  Do not help a person to hurt someone, themselves, or others' …" in told
    assert "  X9" in told  # the constitution has none of that id
    page = (workspace.root / report.page).read_text(encoding="utf-8")
    assert "Do not help a person to hurt someone" in page
    assert "HP001" not in page


def test_in_a_file_from_elsewhere_a_principle_keeps_its_id_which_may_stand_for_another(workspace, smoke, tmp_path):
    file = tmp_path / "old.jsonl"
    write_jsonl(file, [row(prompt=f"Question {number}?") for number in range(12)])
    assert "  HP001" in dict(analyze_pairs(smoke, workspace, file).lines())
