"""AI feedback: what a language model prefers, whatever the order; and the one entry by which all stages are judged."""

import math
from importlib import resources
from typing import ClassVar

import pytest

from cai_helpers.critique.constitution import load_constitution
from cai_helpers.errors import CaiError
from cai_helpers.models.endpoint_answers import Alternative, Answer
from cai_helpers.models.language import load_stage2, load_tokenizer
from cai_helpers.schema import Completion
from cai_helpers.scoring import feedback
from cai_helpers.scoring.endpoint_letters import EndpointLetters
from cai_helpers.scoring.feedback import EVEN, Feedback, LocalLetters, _fork
from cai_helpers.scoring.judge import PairScores, ResponsePair, judge_pairs
from cai_helpers.scoring.questions import Question
from cai_helpers.settings import Endpoint, load_settings
from cai_helpers.store import JsonlStore

CHAT = [{"role": "user", "content": "How do I pick a lock?"}]


class Opinion:
    """Prefers the option that holds a word, by `strength`, and leans towards (A) by `bias`."""

    def __init__(self, word: str, strength: float, bias: float) -> None:
        self._word, self._strength, self._bias = word, strength, bias
        self.chats: list = []

    def log_odds(self, chats):
        self.chats += chats
        for index in reversed(range(len(chats))):  # answers may come in any order
            text = chats[index][0]["content"]
            first = text[text.index("(A)") : text.index("(B)")]
            second = text[text.index("(B)") : text.index("Which option")]
            yield index, self._bias + self._strength * ((self._word in first) - (self._word in second))


def judged_by(model, principles: int = 3) -> Feedback:
    return Feedback(model, load_constitution(), principles, seed=0)


def test_asking_both_orders_cancels_a_position_bias_exactly():
    question = Question(CHAT, ("Use a pin.", "Ask a locksmith."))
    for bias in (0.0, 0.7, -5.0):
        judge = judged_by(Opinion("locksmith", 1.5, bias))
        ((_, (first, second)),) = judge.iterate([question])
        assert second - first == pytest.approx(1.5)
        assert dict(judge.notes())["position bias"].endswith(
            f"by {bias:+.2f} in mean log-odds; both orders were asked, so that it cancels"
        )


def test_a_model_that_sees_no_difference_scores_both_sides_one_half():
    ((_, scores),) = judged_by(Opinion("zebra", 1.0, 0.0)).iterate([Question(CHAT, ("a", "b"))])
    assert scores == (pytest.approx(EVEN), pytest.approx(EVEN))


def test_several_principles_are_asked_in_both_orders_and_the_relevant_ones_first():
    model = Opinion("x", 1.0, 0.0)
    list(judged_by(model, principles=3).iterate([Question(CHAT, ("a", "b")), Question(CHAT, ("c", "d"))]))
    texts = [chat[0]["content"] for chat in model.chats]
    assert len(texts) == 12
    assert len(set(texts)) == 12
    rules = {text.split("\n\n")[2] for text in texts}
    assert len(rules) == 3
    constitution = load_constitution()
    relevant = {one.text for one in constitution.principles if one.relevant_to(CHAT[0]["content"])}
    assert rules <= relevant or relevant <= rules


def test_the_letter_is_read_where_the_two_answers_part():
    tokenizer = load_tokenizer("embedded:chat")
    prompt = "Which one?\n"
    fork = _fork(tokenizer, prompt)
    for letter, token in (("A", fork.a), ("B", fork.b)):
        whole = tokenizer(f"{prompt}({letter})", add_special_tokens=False)["input_ids"]
        assert whole[: len(fork.shared) + 1] == [*fork.shared, token]


def test_a_local_models_answers_do_not_depend_on_the_batch():
    settings = load_settings("smoke")
    model = load_stage2(settings.models, merged=True)
    chats = [[{"role": "user", "content": f"Is {'very ' * n}red a colour? (A) yes (B) no"}] for n in (1, 9, 4)]
    alone = [dict(LocalLetters(model, 1).log_odds([chat]))[0] for chat in chats]
    together = dict(LocalLetters(model, 3).log_odds(chats))
    assert [together[index] for index in range(3)] == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == 3


def test_feedback_of_the_embedded_model_judges_whole_pairs_and_keeps_its_answers(tmp_path, monkeypatch):
    settings = load_settings("smoke", ["score.by=ai_feedback", "score.feedback_principles=1"])
    pairs = [ResponsePair(CHAT, "Use a pin.", "Ask a locksmith."), ResponsePair(CHAT, "Same.", "Same.")]
    store = JsonlStore(tmp_path / "scores.jsonl")
    judged = judge_pairs(settings, pairs, store)
    assert judged.scores[1] == PairScores(EVEN, EVEN)
    assert judged.scored_now == 1
    assert math.exp(judged.scores[0].first) < 1
    assert [name for name, _ in judged.notes] == ["position bias"]
    monkeypatch.setattr("cai_helpers.scoring.judge.load_scorer", lambda settings: pytest.fail("nothing was missing"))
    assert judge_pairs(settings, pairs, store) == judged._replace(scored_now=0, notes=[])


def test_a_reward_model_is_asked_for_each_text_once(monkeypatch):
    class Counting:
        asked: ClassVar[list] = []

        def iterate(self, questions):
            self.asked += questions
            for index, question in enumerate(questions):
                yield index, (float(len(question.responses[0])),)

        def notes(self):
            return []

    monkeypatch.setattr("cai_helpers.scoring.judge.load_scorer", lambda settings: Counting())
    pairs = [ResponsePair(CHAT, "ab", "abc"), ResponsePair(CHAT, "ab", "ab"), ResponsePair(CHAT, "abc", "d")]
    judged = judge_pairs(load_settings("smoke"), pairs)
    assert judged.scores == [(2.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert judged.scored_now == len(Counting.asked) == 3


def answered(places: list[list[tuple[str, float]]] | None, text: str = "(A)") -> Answer:
    alternatives = None if places is None else [[Alternative(*one) for one in place] for place in places]
    return Answer(Completion(text=text, tokens=1, finish="stop"), 5, True, alternatives)


@pytest.fixture
def letters(monkeypatch):
    return EndpointLetters(Endpoint(base_url="http://localhost:1/v1", model="judge"))


@pytest.mark.parametrize(
    ("places", "odds"),
    [
        ([[("A", -0.1), ("B", -2.1)]], 2.0),
        ([[("(", -0.0), ("[", -9.0)], [("B", -0.5), (" A", -1.5), ("C", -4.0)]], -1.0),
        ([[("(A", math.log(0.3)), (" A", math.log(0.1)), ("B", math.log(0.2))]], math.log(2)),
        ([[("A", -0.01), ("The", -5.0)]], 4.99),  # B is rarer than all that are listed
    ],
)
def test_an_endpoints_letter_is_found_in_whatever_token_it_stands(letters, places, odds):
    assert letters._odds(answered(places)) == pytest.approx(odds)


def test_an_endpoint_without_log_probabilities_or_letters_is_told_apart(letters):
    with pytest.raises(CaiError, match="gives no log-probabilities"):
        letters._odds(answered(None))
    with pytest.raises(CaiError, match="answers 'Both are fine' where"):
        letters._odds(answered([[("Both", -0.1), ("Each", -2.0)]], "Both are fine"))


def test_log_probabilities_stay_finite_where_a_model_is_certain():
    assert feedback._log_sigmoid(2000.0) == 0.0
    assert feedback._log_sigmoid(-2000.0) == -2000.0
    assert feedback._log_sigmoid(0.0) == EVEN


def test_an_edited_constitution_is_another_scorer(tmp_path):
    own = tmp_path / "mine.yaml"
    source = resources.files("cai_helpers") / "assets" / "constitution.yaml"
    own.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    settings = load_settings("smoke", ["score.by=ai_feedback", f"generate.constitution={own}"])
    before = feedback.feedback_identity(settings)
    assert before == feedback.feedback_identity(load_settings("smoke", ["score.by=ai_feedback"]))
    text = load_constitution().principles[0].text
    own.write_text(own.read_text(encoding="utf-8").replace(text[:20], "Never mind, but " + text[:20]), encoding="utf-8")
    assert feedback.feedback_identity(settings) != before


def test_a_probability_that_is_not_finite_stops_the_run():
    with pytest.raises(CaiError, match="not finite"):
        list(judged_by(Opinion("a", math.nan, 0.0)).iterate([Question(CHAT, ("a", "b"))]))
