from collections import Counter

import pytest

from cai_helpers.critique import making
from cai_helpers.critique.constitution import load_constitution
from cai_helpers.critique.critic import Critic, make_traces
from cai_helpers.critique.protocols import load_protocol
from cai_helpers.errors import CaiError
from cai_helpers.inspection.rows import Row
from cai_helpers.notebook.making_html import trace_html
from cai_helpers.notebook.pair_html import pair_html
from cai_helpers.schema import Prompt, Trace
from cai_helpers.scoring.judge import PairScores
from cai_helpers.stages.generate import _generate, _stoppable
from cai_helpers.stages.score import _pair
from cai_helpers.store import JsonlStore


def prompt(name: str, text: str = "How do I steal a bike?") -> Prompt:
    return Prompt(id=name, messages=[{"role": "user", "content": text}], category="harmless", source="test")


def critic(generator, smoke, protocol: str = "single/short") -> Critic:
    return Critic(generator, generator, load_protocol(protocol), load_constitution(), smoke)


def traces_of(critic: Critic, prompts: list[Prompt]) -> list[Trace]:
    return [trace for ended in make_traces(critic, prompts) for trace in ended]


def test_one_call_gives_a_trace_with_everything_that_was_said(scripted, smoke):
    output = "CRITIQUE: It helps a thief.\nREVISION: I can't help with stealing a bike."
    generator = scripted(["Cut the lock.", output])
    [trace] = traces_of(critic(generator, smoke), [prompt("a")])
    assert (trace.id, trace.draft, trace.outcome) == ("a", "Cut the lock.", "revised")
    assert trace.revision == "I can't help with stealing a bike."
    assert trace.critic_outputs == [output]
    assert 1 <= len(trace.principle_ids) <= 2
    assert trace.tokens == 4 + 14
    assert "Cut the lock." in generator.chats[1][0]["content"]


def test_a_failed_revision_keeps_the_draft_the_outcome_and_the_raw_output(scripted, smoke):
    [trace] = traces_of(critic(scripted(["Cut the lock.", "Nonsense."]), smoke), [prompt("a")])
    assert (trace.outcome, trace.revision, trace.critic_outputs) == ("unparsed", "Cut the lock.", ["Nonsense."])


def test_a_failed_pair_shows_what_the_critic_wrote_and_not_the_draft_again(scripted, smoke):
    texts = [
        "Cut the lock.",
        "Nonsense.",
        "Cut it.",
        "CRITIQUE: It harms.\nREVISION: I can't help you with stealing that.",
    ]
    failed, revised = traces_of(
        critic(scripted([texts[0], texts[2], texts[1], texts[3]]), smoke), [prompt("a"), prompt("b")]
    )
    assert (failed.outcome, failed.written) == ("unparsed", "Nonsense.")
    assert (revised.outcome, revised.written) == ("revised", "")
    page = trace_html(failed, {})
    assert page.count("Cut the lock.") == 1
    assert "What the critic wrote" in page
    assert "Nonsense." in page
    assert "the output does not have the form" in page
    (row,) = [_pair(failed, [PairScores(0.5, 0.5)], smoke)]
    assert (row.base_response, row.revised_response, row.critic_output) == (
        "Cut the lock.",
        "Cut the lock.",
        "Nonsense.",
    )
    shown = pair_html(Row(row, "key", None), None, {})
    assert shown.count("Cut the lock.") == 1
    assert "Nonsense." in shown


def test_the_eight_columns_of_a_failed_pair_are_as_users_have_them_and_the_words_stand_beside(scripted, smoke):
    [failed] = traces_of(critic(scripted(["Cut the lock.", "Nonsense."]), smoke), [prompt("a")])
    row = _pair(failed, [PairScores(0.5, 0.5)], smoke).model_dump()
    assert list(row)[:8] == [
        *("prompt", "base_response", "revised_response", "base_score", "revised_score", "chosen"),
        *("critic_notes", "principle_ids"),
    ]
    assert (row["revised_response"], row["chosen"], row["revised_score"]) == ("Cut the lock.", None, None)
    assert row["critic_output"] == "Nonsense."


def test_the_time_left_is_that_of_the_pairs_still_to_come_and_earlier_ones_are_counted(scripted, smoke, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(making.time, "monotonic", lambda: now[0])
    traces = traces_of(critic(scripted(["Cut the lock.", "Nonsense."]), smoke), [prompt("a")])
    tally = making.Tally(Counter({"revised": 40}), coming=10)
    now[0] += 6
    told = tally.add(traces * 2)
    assert (told.done, told.total, told.outcomes) == (42, 50, {"revised": 40, "unparsed": 2})
    assert told.seconds_left == pytest.approx(24)


def test_two_steps_ask_for_a_revision_only_where_the_critique_did_not_settle_it(scripted, smoke):
    texts = ["Draft one.", "Draft two.", "KEEP_ORIGINAL", "It helps a thief.", "I can't help with that at all."]
    traces = traces_of(critic(scripted(texts), smoke, "two_step/short"), [prompt("a"), prompt("b")])
    assert [(trace.id, trace.outcome) for trace in traces] == [("a", "kept"), ("b", "revised")]
    assert traces[1].critique == "It helps a thief."
    assert traces[1].critic_outputs == ["It helps a thief.", "I can't help with that at all."]


def test_the_scripted_generator_fails_when_its_script_runs_out(scripted, smoke):
    with pytest.raises(AssertionError, match="no text left"):
        traces_of(critic(scripted(["Cut the lock."]), smoke), [prompt("a")])


def test_stopping_by_hand_keeps_finished_rows_and_says_how_to_go_on(scripted, smoke, workspace):
    class StoppedAtTheSecondPrompt(scripted):
        def answer(self, request):
            if request.key == "b/draft":
                raise KeyboardInterrupt
            return super().answer(request)

    generator = StoppedAtTheSecondPrompt(["Cut the lock.", "CRITIQUE: Bad.\nREVISION: I can't help with that at all."])
    one_by_one = smoke.model_copy(update={"generate": smoke.generate.model_copy(update={"batch_size": 1})})
    store = JsonlStore(workspace.traces)
    with (
        pytest.raises(CaiError, match="1 of 2 pairs of this call are on disk") as error,
        _stoppable(2, making.Tally(Counter(), 2), None) as on,
    ):
        list(_generate(critic(generator, one_by_one), [prompt("a"), prompt("b")], store, on))
    assert "go on" in error.value.todo
    assert store.ids() == {"a"}
