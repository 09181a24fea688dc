"""What report and notebook 05 open with: verdict, picture, six examples, table; bookkeeping last."""

from __future__ import annotations

import pytest
from answers_for_eyes import answered, write_evaluation
from html_reader import text_of
from pairs_for_eyes import HOSTILE

from cai_helpers.errors import CaiError
from cai_helpers.evaluation.categories import measure
from cai_helpers.evaluation.figures import TwoOptions
from cai_helpers.measures.intervals import proportion
from cai_helpers.pages.answer_examples import answer_examples
from cai_helpers.pages.comparison_table import table_rows
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.pages.verdict_view import fragment, verdict_view


def planted(count: int = 12) -> list:
    return [answered(number, delta=float(number - count // 2)) for number in range(count)]


@pytest.fixture
def evaluated(workspace):
    rows = [*planted(), *(answered(number, 1.0, prompt_set="unsafe", category="harmless") for number in range(30, 36))]
    write_evaluation(workspace, rows)
    return workspace


def test_the_page_opens_with_verdict_picture_examples_and_table_and_ends_with_bookkeeping(smoke, evaluated):
    text = write_run_report(smoke, evaluated).read_text("utf-8")
    parts = [
        "Not shown",
        "Who wins against Stage 2",
        "Refusals</h3>",
        "<h2>Examples",
        "<h2>All figures",
        "<h2>What happened",
    ]
    places = [text.index(part) for part in [*parts, "<h2>How to read this", "<h2>Settings and versions"]]
    assert places == sorted(places)


def test_the_reason_is_cut_into_its_clauses_and_brackets_stay_whole(evaluated):
    view = verdict_view(write_evaluation(evaluated, planted()), evaluated)
    assert view.verdict.reason == "Stage 3 against Stage 2: it wins 60 % (40–80 %; of 9)."
    assert list(view.verdict.reasons) == ["Not shown: a", "b (c; d)"]


def test_win_rates_stand_against_fifty_per_cent_with_the_base_beside_stage_3(evaluated):
    view = verdict_view(write_evaluation(evaluated, planted()), evaluated)
    wins = view.charts[0]
    assert [row.name for row in wins.rows] == ["held-out harmful requests", "held-out benign requests"]
    assert {row.level for row in wins.rows} == {0.5}
    harmful = {mark.policy.name: mark.share.value for mark in wins.rows[0].marks}
    assert harmful["base"] == 0.5
    assert [policy.name for policy in wins.policies] == ["base", "Stage 3"]


def test_refusals_show_all_three_models(evaluated):
    refusals = verdict_view(write_evaluation(evaluated, planted()), evaluated).charts[1]
    assert [mark.policy.name for mark in refusals.rows[0].marks] == ["base", "Stage 2", "Stage 3"]


def test_the_four_categories_have_a_chart_with_their_targets_and_say_what_is_guessed(workspace):
    options = [
        TwoOptions(
            name=name, pairs=60, right=dict.fromkeys(("base", "stage2", "stage3"), proportion(31, 60)), change=None
        )
        for name in ("questions", "options")
    ]
    report = write_evaluation(workspace, planted(), categories=measure([], options, toy=True))
    view = verdict_view(report, workspace)
    chart = view.charts[2]
    assert [(row.name, row.level) for row in chart.rows] == [("truthfulness", None), ("fairness", None)]
    assert view.notes[0] == (
        "truthfulness: base model, Stage 2, Stage 3 no better than guessing between a right and a wrong answer."
    )
    assert "know nothing of the world" in view.notes[1]


def test_six_examples_two_of_each_kind_and_none_twice(evaluated):
    examples = answer_examples(evaluated)
    kinds = [one.heading.split(" · ")[0] for one in examples]
    assert kinds == ["most improved"] * 2 + ["most worsened"] * 2 + ["at random"] * 2
    assert [one.asked for one in examples[:4]] == ["Question 11?", "Question 10?", "Question 0?", "Question 1?"]
    assert len({one.asked for one in examples}) == 6
    assert answer_examples(evaluated) == examples


def test_examples_mark_the_words_that_differ(evaluated):
    html = fragment(evaluated, "examples")
    assert "<del>red</del>" in html
    assert "<ins>blue</ins>" in html


def test_answers_that_share_little_are_shown_unmarked(workspace):
    write_evaluation(workspace, [answered(1, 1.0, stage3="Nobody should ever do such things."), answered(2, -1.0)])
    first = answer_examples(workspace)[0]
    assert [piece.changed for side in first.sides for piece in side.pieces] == [False, False]


def test_few_answers_give_few_examples(workspace):
    write_evaluation(workspace, [answered(1, 1.0)])
    assert [one.heading for one in answer_examples(workspace)] == ["most improved · harmful requests"]


def test_the_table_has_a_column_a_kind_of_request(evaluated):
    shown = text_of(fragment(evaluated, "table"))
    for head in (
        "all held-out prompts (12)",
        "held-out harmful requests (6)",
        "held-out benign requests (6)",
        "unsafe requests (6)",
    ):
        assert head in shown


def test_figures_that_nobody_measured_have_no_row(evaluated):
    report = write_evaluation(evaluated, planted())
    names = [row.name for row in table_rows([report.overall])]
    assert "win rate against Stage 2" in names
    assert "the base model against Stage 2" in names
    assert "KL to Stage 2, nats an answer" not in names


def test_lengths_that_hardly_overlap_are_said_in_the_table(workspace):
    rows = [
        answered(number, 1.0, stage3=f"A much longer answer than the other one, number {number}. " * 4)
        for number in range(24)
    ]
    report = write_evaluation(workspace, rows)
    cells = {row.name: row.cells[0] for row in table_rows([report.overall])}
    assert cells["at equal length (shown, never a gate)"] == ["lengths hardly overlap"]


@pytest.mark.parametrize("part", ["picture", "examples", "table"])
def test_below_a_cell_text_that_wants_to_run_stays_text(workspace, part):
    rows = [answered(n, float(n) - 1, stage3=f"{HOSTILE} {n}", prompt=HOSTILE, category=HOSTILE) for n in range(4)]
    write_evaluation(workspace, rows, scorer=HOSTILE)
    html = fragment(workspace, part)
    assert "<script" not in html
    assert "<img" not in html


def test_below_a_cell_there_is_nothing_before_an_evaluation(workspace):
    with pytest.raises(CaiError, match="made by the evaluate stage"):
        fragment(workspace, "picture")


def test_colours_are_the_hosts_or_see_through_and_narrow_pages_have_one_column(evaluated):
    style = fragment(evaluated, "picture").split("</style>")[0]
    assert "#fff" not in style
    assert "background: white" not in style
    assert "@media (max-width: 46rem)" in style
