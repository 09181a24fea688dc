"""Which of two responses is better, and by how much? One entry for every stage that asks, cached by what is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from cai_helpers import screen
from cai_helpers.errors import StoppedByHand
from cai_helpers.machine.processes import Processes, is_main_process, this_process
from cai_helpers.schema import Messages
from cai_helpers.scoring import ensemble, feedback
from cai_helpers.scoring.questions import Question, Scorer
from cai_helpers.scoring.reward_model import TextScorer
from cai_helpers.sections import RewardSource
from cai_helpers.settings import Settings
from cai_helpers.shares import own_share, take_in
from cai_helpers.store import JsonlStore

_ROWS_A_WRITE = 256  # questions answered between two writes; what a kill loses at most


class ResponsePair(NamedTuple):
    """Two responses to one conversation."""

    messages: Messages
    first: str
    second: str


class PairScores(NamedTuple):
    """Rewards of the two, higher is better. Only their difference can be compared between scorers, and only roughly."""

    first: float
    second: float


class Judged(NamedTuple):
    scores: list[PairScores]  # one a pair
    scored_now: int  # questions put to the scorer; the others were in the store
    notes: list[tuple[str, str]]  # what the scorer has to say of this call: precision, truncation, position bias


def scorer_identity(settings: Settings) -> str:
    """Everything the scores depend on, known without loading anything."""
    if settings.score.by == "ai_feedback":
        return feedback.feedback_identity(settings)
    return ensemble.reward_identity(settings.models)


def scored_by(settings: Settings, source: RewardSource | None) -> Settings:
    """The settings with `source` alone as the scorer; None leaves the one that labels."""
    if source is None:
        return settings
    models = settings.models.model_copy(update={"reward": source, "reward_ensemble": []})
    return settings.model_copy(
        update={"models": models, "score": settings.score.model_copy(update={"by": "reward_model"})}
    )


def judge_pairs(settings: Settings, pairs: list[ResponsePair], store: JsonlStore | None = None) -> Judged:
    """Score both sides of each pair, in the order of `pairs`; nothing is loaded when all answers are in `store`.

    Two equal texts get the same score. store: rows {"id", "scores"}, appended as answers come in, so that a killed call
    resumes and an unchanged question is never asked twice. Under `accelerate launch` the questions are shared out, and each
    process has all the answers; the store must be there for that.

    Raises:
        CaiError: the scorer cannot be loaded, is read the wrong way, or gives a score that is not finite.
    """
    name = scorer_identity(settings)
    asked = [questions_of(pair, settings) for pair in pairs]
    questions = {question_key(name, question): question for both in asked for question in both}
    if store is not None:
        take_in(store)
    processes = this_process() if store is not None else Processes(0, 1)
    processes.wait()
    known = {} if store is None else _known(store, questions)
    missing = {key: question for key, question in questions.items() if key not in known}
    notes: list[tuple[str, str]] = []
    if missing:
        answers, notes = _ask_together(settings, missing, store, processes)
        known |= answers
    scores = [_pair_scores([known[question_key(name, question)] for question in both]) for both in asked]
    return Judged(scores, len(missing), notes)


def _ask_together(
    settings: Settings, missing: dict[str, Question], store: JsonlStore | None, processes: Processes
) -> tuple[dict[str, tuple[float, ...]], list[tuple[str, str]]]:
    """The answers to all questions, and the notes of the scorer of this process."""
    if store is None or processes.count == 1:
        scorer = load_scorer(settings)
        return _ask(scorer, missing, store), scorer.notes()
    notes: list[tuple[str, str]] = []
    with own_share(store, processes) as share:
        own = processes.share(missing, lambda key: sum(map(len, missing[key].responses)))
        if own:
            scorer = load_scorer(settings)
            _ask(scorer, {key: missing[key] for key in own}, share)
            notes = scorer.notes()
    notes.append(("shared", f"by {processes.count} processes; the notes above are of the {len(own)} texts of one"))
    return _known(store, missing), notes


def load_scorer(settings: Settings) -> Scorer:
    """The scorer of the settings, loaded and tried."""
    if settings.score.by == "ai_feedback":
        return feedback.load_feedback(settings)
    return _OneByOne(ensemble.load_reward(settings.models, settings.score.batch_size))


class _OneByOne:
    """A reward model, asked questions of one response."""

    def __init__(self, scorer: TextScorer) -> None:
        self._scorer = scorer
        self.notes = scorer.notes

    def iterate(self, questions: list[Question]) -> Iterator[tuple[int, tuple[float, ...]]]:
        texts = [(question.messages, question.responses[0]) for question in questions]
        for index, score in self._scorer.iterate(texts):
            yield index, (score,)


def question_key(scorer: str, question: Question) -> str:
    content = json.dumps([scorer, question.messages, question.responses], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def questions_of(pair: ResponsePair, settings: Settings) -> list[Question]:
    """One question with both responses for feedback, one a response for reward models; none where there is no choice."""
    if settings.score.by != "ai_feedback":
        return [Question(pair.messages, (response,)) for response in (pair.first, pair.second)]
    return [] if pair.first == pair.second else [Question(pair.messages, (pair.first, pair.second))]


def _pair_scores(answers: list[tuple[float, ...]]) -> PairScores:
    if not answers:  # two equal texts
        return PairScores(feedback.EVEN, feedback.EVEN)
    return PairScores(*(score for answer in answers for score in answer))


def _known(store: JsonlStore, questions: dict[str, Question]) -> dict[str, tuple[float, ...]]:
    return {row["id"]: tuple(row["scores"]) for row in store.rows() if row["id"] in questions}


def _ask(scorer: Scorer, missing: dict[str, Question], store: JsonlStore | None) -> dict[str, tuple[float, ...]]:
    keys = list(missing)
    found: dict[str, tuple[float, ...]] = {}
    unwritten: list[dict] = []
    with screen.bar(len(keys), "score", "text", hidden=not is_main_process()) as bar:
        try:
            for index, scores in scorer.iterate(list(missing.values())):
                found[keys[index]] = scores
                unwritten.append({"id": keys[index], "scores": scores})
                bar.update()
                if store is not None and len(unwritten) >= _ROWS_A_WRITE:
                    store.append(unwritten)
                    unwritten = []
        except KeyboardInterrupt:
            raise StoppedByHand(
                f"Stopped by hand at {bar.n} of {len(keys)} texts.", "Run the same command or cell again to go on."
            ) from None
        finally:
            if store is not None:
                store.append(unwritten)
    return found
