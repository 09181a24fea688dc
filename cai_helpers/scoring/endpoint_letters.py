"""AI feedback from an OpenAI-compatible endpoint: the log-probabilities of the letter it answers with."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cai_helpers.errors import CaiError
from cai_helpers.models.endpoint import EndpointGenerator
from cai_helpers.models.endpoint_answers import Alternative, Answer
from cai_helpers.models.sampling import Sampling
from cai_helpers.schema import Messages
from cai_helpers.settings import Endpoint

_ALTERNATIVES = 20  # the most that OpenAI gives; other servers give as many or fewer
_ANSWER_TOKENS = 4  # enough for "(A)" in any tokenizer
_AROUND = " ()*.\n\t"  # what may stand about the letter in its token


class EndpointLetters:
    """Asks for one short answer a weighing, with the alternatives to its letter."""

    def __init__(self, settings: Endpoint) -> None:
        self._endpoint = EndpointGenerator(settings, _ALTERNATIVES)
        self._name = f"{settings.model} at {settings.base_url}"

    def log_odds(self, chats: list[Messages]) -> Iterator[tuple[int, float]]:
        """Raises:
        CaiError: a request failed for good, the endpoint gives no log-probabilities, or answers something else.
        """
        sampling = Sampling(max_new_tokens=_ANSWER_TOKENS, temperature=0.0)
        answered = 0
        for index, answer in self._endpoint.answers(chats, sampling, [str(place) for place in range(len(chats))]):
            yield index, self._odds(answer)
            answered += 1
        if answered < len(chats):
            reasons = ", ".join(f"{reason} {count}" for reason, count in self._endpoint.usage.failed.items())
            raise CaiError(
                f"{self._name} left {len(chats) - answered} of {len(chats)} questions unanswered ({reasons}).",
                "Run it again: finished pairs are kept. Raise endpoint.retries if the endpoint is only overloaded.",
            )

    def _odds(self, answer: Answer) -> float:
        if answer.alternatives is None:
            raise CaiError(
                f"{self._name} gives no log-probabilities, which AI feedback is read from.",
                "Take an endpoint that supports logprobs and top_logprobs, score.feedback_model=local, or "
                "score.by=reward_model.",
            )
        for place in answer.alternatives:
            a, b = (_log_sum(place, letter) for letter in "AB")
            if max(a, b) > -math.inf:
                least = min(token.logprob for token in place)  # a letter that is not listed is rarer than all that are
                return max(a, least) - max(b, least)
        raise CaiError(
            f"{self._name} answers {answer.completion.text!r} where (A) or (B) was asked for.",
            "Take another endpoint.model, or score.by=reward_model.",
        )


def _log_sum(place: list[Alternative], letter: str) -> float:
    """Log-probability of all tokens at this place that are the letter."""
    total = sum(math.exp(token.logprob) for token in place if token.token.strip(_AROUND) == letter)
    return math.log(total) if total > 0 else -math.inf
