"""Talking to both models: what is asked, what a choice becomes, what the terminal says."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from io import StringIO

import pytest
from pairs_for_eyes import pair, write_pairs
from rich.console import Console
from typer.testing import CliRunner

from cai_helpers.cli import app
from cai_helpers.curation.overrides import read_overrides
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.builtin import id_of, load_prompts
from cai_helpers.inspection.talk import Talk
from cai_helpers.inspection.terminal import talk_in_terminal
from cai_helpers.models.hub import locate
from cai_helpers.stages.curate import curate_pairs
from cai_helpers.store import read_jsonl, write_jsonl


class ScriptedPolicies:
    """Each stage gives out its texts in order, and keeps what it was asked."""

    def __init__(self, scripted, stage2: list[str], stage3: list[str]) -> None:
        self.generators = {"stage2": scripted(stage2), "stage3": scripted(stage3)}

    @contextmanager
    def playing(self, stage: str):
        yield self.generators[stage]


@pytest.fixture
def trained(workspace):
    workspace.adapter.mkdir(parents=True)
    return workspace


@pytest.fixture
def talk(smoke, trained, scripted):
    policies = ScriptedPolicies(scripted, ["Take it.", "Take it all."], ["Ask first.", "Ask her again."])
    return Talk(smoke, trained, policies=policies)


def test_both_models_answer_the_same_conversation(talk):
    exchange = talk.ask("  May I take the bike? ")
    assert (exchange.shown("left"), exchange.shown("right")) == ("Take it.", "Ask first.")
    asked = [generator.chats for generator in talk._policies.generators.values()]
    assert asked == [[[{"role": "user", "content": "May I take the bike?"}]]] * 2


def test_a_choice_is_a_pair_on_disk_with_its_texts(talk, trained):
    talk.ask("May I take the bike?")
    talk.prefer("right")
    (row,) = read_jsonl(trained.overrides)
    assert row["decision"] == "revision"
    assert row["pair"] == {
        "messages": [{"role": "user", "content": "May I take the bike?"}],
        "base_response": "Take it.",
        "revised_response": "Ask first.",
    }
    talk.prefer("left")  # on second thoughts
    (standing,) = read_overrides(trained.overrides).values()
    assert standing.decision == "draft"


def test_a_choice_can_be_taken_back(talk, trained):
    talk.ask("May I take the bike?")
    talk.prefer("left")
    talk.take_back()
    talk.take_back()  # there is none any more
    assert read_overrides(trained.overrides) == {}
    assert len(list(read_jsonl(trained.overrides))) == 2


def test_going_on_gives_both_models_the_better_answer(talk):
    talk.ask("May I take the bike?")
    with pytest.raises(CaiError, match="which one is better"):
        talk.go_on()
    talk.prefer("right")
    talk.go_on()
    exchange = talk.ask("And if she says no?")
    assert [turn["content"] for turn in exchange.messages] == [
        "May I take the bike?",
        "Ask first.",
        "And if she says no?",
    ]
    talk.start_over()
    assert talk.history == []


def test_there_is_nothing_to_prefer_before_a_question_or_between_equal_answers(smoke, trained, scripted):
    talk = Talk(smoke, trained, policies=ScriptedPolicies(scripted, ["Yes."], ["Yes. "]))
    with pytest.raises(CaiError, match="Ask something first"):
        talk.prefer("left")
    talk.ask("Is it late?")
    with pytest.raises(CaiError, match="Both said the same"):
        talk.prefer("left")
    assert not trained.overrides.exists()


def test_an_empty_question_is_not_asked(talk):
    with pytest.raises(CaiError, match="no question"):
        talk.ask("  ")


def test_shuffled_sides_change_places(smoke, trained, scripted):
    policies = ScriptedPolicies(scripted, ["two"] * 40, ["three"] * 40)
    talk = Talk(smoke, trained, shuffled=True, policies=policies)
    lefts = [talk.ask("Who are you?").left for _ in range(40)]
    assert set(lefts) == {"stage2", "stage3"}
    talk.prefer("left")
    standing = next(iter(read_overrides(trained.overrides).values()))
    assert standing.decision == ("revision" if lefts[-1] == "stage3" else "draft")
    assert standing.note == "chat, sides shuffled"


def test_without_a_trained_adapter_there_is_nobody_to_talk_to(smoke, workspace):
    with pytest.raises(CaiError, match="made by the train stage"):
        Talk(smoke, workspace)


# --- the terminal ---


def session(talk: Talk, lines: list[str], width: int = 100) -> str:
    script = iter(lines)

    def read(_: str) -> str:
        try:
            return next(script)
        except StopIteration:
            raise EOFError from None

    screen = StringIO()
    talk_in_terminal(talk, read, Console(file=screen, width=width))
    return screen.getvalue()


def test_a_person_asks_chooses_takes_back_and_quits(talk, trained):
    shown = session(talk, ["May I take the bike?", "2", "u", "1", "q", "never asked"])
    assert "1  Stage 2" in shown
    assert "2  Stage 3" in shown
    assert "Stage 3 is better here." in shown
    assert "Taken back." in shown
    assert [row["decision"] for row in read_jsonl(trained.overrides)] == ["revision", "undo", "draft"]
    assert len(talk._policies.generators["stage2"].chats) == 1


def test_where_nothing_was_chosen_nothing_is_taken_back(talk, trained):
    assert "no choice about these answers" in session(talk, ["May I take the bike?", "u"])
    assert not trained.overrides.exists()


def test_the_end_of_the_input_ends_the_talk(talk):
    assert "Write a question" in session(talk, [])


def test_names_are_told_after_the_choice_where_sides_are_shuffled(smoke, trained, scripted):
    talk = Talk(smoke, trained, shuffled=True, policies=ScriptedPolicies(scripted, ["Take it."], ["Ask first."]))
    before, _, after = session(talk, ["May I?", "1"]).partition("Kept in")
    assert "Stage 2" not in before.split("before every filter")[1]
    assert "1 was Stage" in after


def test_a_mistake_is_answered_and_the_talk_goes_on(talk):
    shown = session(talk, ["1", "+", "May I take the bike?"])
    assert "Ask something first." in shown
    assert "Ask first." in shown


def test_in_a_narrow_terminal_answers_stand_below_each_other(talk):
    lines = session(talk, ["May I take the bike?"], width=50).splitlines()
    assert not any("Take it." in line and "Ask first." in line for line in lines)


def test_markup_and_control_characters_of_a_model_do_nothing(smoke, trained, scripted):
    hostile = "\x1b[2J[bold]red[/bold]\x07"
    talk = Talk(smoke, trained, policies=ScriptedPolicies(scripted, [hostile], ["fine"]))
    shown = session(talk, ["Hi"])
    assert "[bold]red[/bold]" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown


# --- curation ---


def test_a_pair_of_a_persons_own_becomes_a_training_row(talk, smoke, trained):
    talk.ask("May I take the bike?")
    talk.prefer("right")
    talk.ask("May I take the apples?")
    talk.prefer("left")
    write_pairs(trained, [pair(number, 0.0, 1.0) for number in range(6)])
    report = curate_pairs(smoke, trained)
    rows = [*read_jsonl(trained.train_rows), *read_jsonl(trained.eval_rows)]
    own = {row["prompt"][0]["content"]: row for row in rows if row["labelled_by"] == "person"}
    assert own["May I take the bike?"]["chosen"][0]["content"] == "Ask first."
    assert own["May I take the bike?"]["rejected"][0]["content"] == "Take it."
    assert own["May I take the apples?"]["chosen"][0]["content"] == "Take it all."
    assert (report.kept, report.own.added, report.by_category["chat"]) == (8, 2, 2)
    assert ("from the chat", "2 pairs of your own") in report.lines()
    assert report.overruled == (0, 0, 0, 0)


def test_a_question_that_evaluation_asks_is_never_trained_on(smoke, trained, scripted):
    held_out = {"id": "", "messages": [], "category": "helpful", "source": "mine"}
    write_jsonl(trained.eval_prompts, [held_out | {"id": id_of("May I take the bike?")}])
    built_in = load_prompts("scary")[0].text
    talk = Talk(smoke, trained, policies=ScriptedPolicies(scripted, ["a", "b", "c"], ["x", "y", "z"]))
    for question in ("May I take the bike?", built_in, "Something else?"):
        talk.ask(question)
        talk.prefer("right")
    write_pairs(trained, [pair(1, 0.0, 1.0)])
    report = curate_pairs(smoke, trained)
    assert report.own == (1, 2, 0)
    assert dict(report.lines())["from the chat"] == (
        "1 pairs of your own; 2 left out, because evaluation asks their prompt"
    )


# --- with real, small models ---


@pytest.mark.slow
def test_the_command_talks_to_the_embedded_models(workspace):
    shutil.copytree(locate("embedded:stage2"), workspace.adapter)  # as if training had changed nothing
    command = ["chat", "--preset", "smoke", "--workspace", str(workspace.root)]
    result = CliRunner().invoke(app, command, input="How do I repair a bike?\n1\nq\n")
    assert result.exit_code == 0
    assert "Loading both models" in result.output
    assert "bike" in result.output
    assert result.output.count("Both said the same") == 2  # after the question, and as the answer to “1”
    assert not workspace.overrides.exists()


def test_before_training_the_command_says_what_to_run(workspace):
    result = CliRunner().invoke(app, ["chat", "--preset", "smoke", "--workspace", str(workspace.root)], input="q\n")
    assert result.exit_code == 1
    assert "Run `cai train`" in result.output
