"""The blind check of Stage 3 against Stage 2: what is drawn, what is hidden, what counts, what survives."""

from __future__ import annotations

import pytest
from answers_for_eyes import answered, write_evaluation
from html_reader import text_of

from cai_helpers.errors import CaiError
from cai_helpers.inspection.blind import append_judgement, read_judgements
from cai_helpers.inspection.blind_answers import human_wins, read_answer_rows, read_human_wins
from cai_helpers.notebook.blind_round import BlindRound
from cai_helpers.notebook.blind_tasks import answers_task
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.store import read_jsonl


def planted(count: int = 24) -> list:
    return [answered(number, delta=1.0 if number % 3 else -1.0) for number in range(count)]


def round_of(workspace, count: int = 20) -> BlindRound:
    rows = read_answer_rows(workspace)
    return BlindRound(workspace, rows, lambda _: None, count, answers_task(workspace, rows))


def choose(blind: BlindRound, stage3: bool) -> None:
    """Press the button on the side of Stage 3, or of Stage 2."""
    (blind.left if (blind.left_side == "revision") == stage3 else blind.right)()


def test_only_held_out_prompts_with_two_different_answers_are_judged(workspace):
    same = answered(7, 0.0, stage3="Stage two number 7 says take the red pin.")
    write_evaluation(workspace, [answered(1, 1.0), same, answered(2, 0.0), answered(3, 1.0, prompt_set="unsafe")])
    assert [row.pair.id for row in read_answer_rows(workspace)] == ["id1", "id2"]


def test_without_an_evaluation_there_is_nothing_to_judge(workspace):
    with pytest.raises(CaiError, match="made by the evaluate stage"):
        read_answer_rows(workspace)


def test_twenty_prompts_are_judged_without_a_name_and_the_result_has_an_interval(workspace):
    write_evaluation(workspace, planted())
    blind = round_of(workspace)
    blind.start()
    assert len(blind.drawn) == 20
    for number in range(20):
        shown = text_of(blind.page.value)
        assert "Stage 2" not in shown.replace("Stage two", "")
        assert "reward" not in shown
        choose(blind, stage3=number < 15)
    result = text_of(blind.page.value)
    assert "Stage 3 preferred in 75 % (53–89 %) of 20 held-out prompts: 15 won, 0 tied, 5 lost" in result
    assert "beyond chance" in result
    assert len(list(read_jsonl(workspace.blind_answers))) == 20


def test_a_new_kernel_goes_on_where_the_last_one_stopped(workspace):
    write_evaluation(workspace, planted())
    first = round_of(workspace)
    first.start()
    for _ in range(5):
        choose(first, stage3=True)
    later = round_of(workspace)
    later.start()
    assert len(later.drawn) == 19  # of 24, five were seen
    assert {later.rows[place].key for place in later.drawn} & {
        one.key for one in read_judgements(workspace.blind_answers)
    } == set()
    found = read_human_wins(workspace)
    assert (found.wins, found.ties, found.losses) == (5, 0, 0)


def test_no_difference_is_half_a_win(workspace):
    write_evaluation(workspace, planted(4))
    blind = round_of(workspace)
    blind.start()
    blind.skip()
    choose(blind, stage3=True)
    found = read_human_wins(workspace)
    assert (found.ties, found.wins, found.share.value) == (1, 1, 0.75)


def test_the_agreement_with_the_judge_is_told(workspace):
    write_evaluation(workspace, [answered(number, delta) for number, delta in enumerate((1.0, 1.0, -1.0, 0.0))])
    rows = read_answer_rows(workspace)
    said = [append_judgement(workspace.blind_answers, row, "revision", "draft") for row in rows]
    found = human_wins(said, rows)
    assert (found.with_judge.value, found.with_judge.n) == (2 / 3, 3)
    assert found.left == 0


def test_judgements_about_another_adapters_answers_do_not_count(workspace):
    write_evaluation(workspace, planted(4))
    for row in read_answer_rows(workspace):
        append_judgement(workspace.blind_answers, row, "revision", "draft")
    write_evaluation(workspace, [answered(number, 1.0, stage3=f"Something new {number}.") for number in range(4)])
    assert read_human_wins(workspace) is None


def test_nothing_that_was_judged_here_becomes_training_data(workspace):
    write_evaluation(workspace, planted(4))
    blind = round_of(workspace)
    blind.start()
    choose(blind, stage3=True)
    blind.finish()
    labels = [control.description for control in blind._buttons.children]
    assert labels == ["another round"]
    assert not workspace.overrides.exists()


def test_when_all_prompts_were_judged_it_says_so(workspace):
    write_evaluation(workspace, planted(2))
    blind = round_of(workspace)
    for _ in range(2):
        blind.start()
        while blind.position < len(blind.drawn):
            choose(blind, stage3=False)
    assert "you have seen all" in text_of(blind.status.value)


def test_the_result_stands_beside_the_verdict_in_the_report(workspace, smoke):
    write_evaluation(workspace, planted(6))
    assert "nobody has compared the answers blind yet" in write_run_report(smoke, workspace).read_text("utf-8")
    for row in read_answer_rows(workspace):
        append_judgement(workspace.blind_answers, row, "draft", "draft")
    text = text_of(write_run_report(smoke, workspace).read_text("utf-8"))
    assert "Stage 3 preferred in 0 % (0–39 %) of 6 held-out prompts: 0 won, 0 tied, 6 lost" in text
    assert text.index("6 held-out prompts: 0 won") < text.index("Who wins against Stage 2")
