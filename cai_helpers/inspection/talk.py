"""Ask Stage 2 and Stage 3 the same and say which answer is better: a pair of a person's own, for the next training."""

from __future__ import annotations

import random
from typing import Literal, NamedTuple

from cai_helpers.curation.overrides import Decision, OwnPair, append_override
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.policies import Policies, load_policies
from cai_helpers.machine.hardware import use_threads
from cai_helpers.models.batches import release_all
from cai_helpers.models.flow import answers_of
from cai_helpers.models.language import STAGE2, STAGE3
from cai_helpers.prompts.split import prompt_id
from cai_helpers.schema import Completion, Message, Messages
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

STAGE_NAME = {STAGE2: "Stage 2", STAGE3: "Stage 3"}
Place = Literal["left", "right"]
WHAT_BECOMES_OF_IT = (
    "Each choice is kept in pairs/overrides.jsonl as a pair of your own. `cai curate` (notebook 03) adds it to the training "
    "rows with your label, before every filter; the next training learns from it, and train.person_weight says how much. "
    "A question that the evaluation asks as well is left out, since training on it would spoil the evaluation."
)
_FINISH = {"length": " (cut off at evaluate.max_tokens)", "stop": ""}


class Exchange(NamedTuple):
    """One question and both answers."""

    messages: Messages  # the conversation, which ends on the question
    answers: dict[str, Completion]  # by stage
    left: str  # the stage whose answer stands on the left

    def stage(self, place: Place) -> str:
        other = STAGE3 if self.left == STAGE2 else STAGE2
        return self.left if place == "left" else other

    def shown(self, place: Place) -> str:
        """The answer at that place, as a person reads it."""
        answer = self.answers[self.stage(place)]
        return f"{answer.text or '(an empty answer)'}{_FINISH[answer.finish]}"

    @property
    def alike(self) -> bool:
        return self.answers[STAGE2].text.strip() == self.answers[STAGE3].text.strip()

    @property
    def pair(self) -> OwnPair:
        return OwnPair(
            messages=self.messages,
            base_response=self.answers[STAGE2].text,
            revised_response=self.answers[STAGE3].text,
        )


class Talk:
    """A conversation with both models. They are loaded at the first question.

    shuffled: which of them stands on the left is drawn anew for each question; else Stage 2 does.
    """

    def __init__(
        self, settings: Settings, workspace: Workspace, shuffled: bool = False, policies: Policies | None = None
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._adapter = workspace.require(workspace.adapter, made_by="train")
        self._policies = policies
        self.shuffled = shuffled
        self.history: Messages = []  # earlier turns, where the person goes on from an answer
        self.exchange: Exchange | None = None
        self.preferred: Place | None = None
        self._nameless = shuffled  # of the exchange on the screen

    @property
    def loaded(self) -> bool:
        """Whether the models are in memory; else the next question takes longer."""
        return self._policies is not None

    @property
    def hides_names(self) -> bool:
        """Whether it must not be told yet who said what."""
        return self._nameless and self.preferred is None

    def ask(self, question: str) -> Exchange:
        """Both answers, drawn with the same seed and the settings of `evaluate`.

        Raises:
            CaiError: there is no question, or a model cannot be loaded.
        """
        if not question.strip():
            raise CaiError("There is no question.", "Write one into the box.")
        messages = [*self.history, Message(role="user", content=question.strip())]
        answers = {stage: self._answer(stage, messages) for stage in (STAGE2, STAGE3)}
        self.exchange = Exchange(messages, answers, self._left(messages))
        self.preferred, self._nameless = None, self.shuffled
        return self.exchange

    def prefer(self, place: Place) -> None:
        """The answer there is better; it is on disk then. A second choice about the same answers counts instead.

        Raises:
            CaiError: nothing was asked, or both answers are the same.
        """
        exchange = self._require_exchange()
        if exchange.alike:
            raise CaiError("Both said the same, so neither is better.", "Ask something else.")
        self._write("revision" if exchange.stage(place) == STAGE3 else "draft")
        self.preferred = place

    def take_back(self) -> None:
        """Undo the choice about the answers on the screen."""
        if self.preferred is not None:
            self._write("undo")
            self.preferred = None

    def go_on(self) -> None:
        """The preferred answer becomes part of the conversation, for both models.

        Raises:
            CaiError: no answer was preferred.
        """
        exchange = self._require_exchange()
        if self.preferred is None:
            raise CaiError("Go on from which answer?", "Say first which one is better.")
        answer = exchange.answers[exchange.stage(self.preferred)].text
        self.history = [*exchange.messages, Message(role="assistant", content=answer)]

    def start_over(self) -> None:
        """Forget the earlier turns."""
        self.history, self.exchange, self.preferred = [], None, None

    def close(self) -> None:
        """Give the memory of the models back; the next question loads them again."""
        self._policies = None
        release_all()

    def _answer(self, stage: str, messages: Messages) -> Completion:
        from cai_helpers.models.sampling import Sampling

        evaluate = self._settings.evaluate
        sampling = Sampling(
            max_new_tokens=evaluate.max_tokens,
            temperature=evaluate.temperature,
            top_p=evaluate.top_p,
            seed=self._settings.seed,
        )
        if self._policies is None:
            use_threads(self._settings.threads)
            self._policies = load_policies(self._settings.models, self._adapter)
        # the key of the evaluation: a held-out prompt is answered as it was there
        key = f"{prompt_id(messages)}/evaluate"
        with self._policies.playing(stage) as generator:
            ((_, completion),) = answers_of(generator, [(0, messages)], sampling, [key], 1)
        return completion

    def _left(self, messages: Messages) -> str:
        if not self.shuffled:
            return STAGE2
        return random.choice((STAGE2, STAGE3))  # unseeded: a person who asks twice shall not know

    def _write(self, decision: Decision) -> None:
        pair = self._require_exchange().pair
        append_override(
            self._workspace.overrides,
            pair.key,
            prompt_id(pair.messages),
            decision,
            note="chat" + (", sides shuffled" if self._nameless else ""),
            pair=pair,
        )

    def _require_exchange(self) -> Exchange:
        if self.exchange is None:
            raise CaiError("There is no answer yet.", "Ask something first.")
        return self.exchange
