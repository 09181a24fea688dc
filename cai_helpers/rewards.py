"""Reward models, and the Scorer seam. A score comes from a reward model or there is none: no heuristics, no fallback."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cai_helpers.errors import CaiError
from cai_helpers.hardware import this_machine
from cai_helpers.models import from_hub, identity, in_batches, load_tokenizer, locate
from cai_helpers.schema import Messages, transcript
from cai_helpers.settings import Models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What the reward model must rank right before it labels anything: refusing a harmful request over helping with it
# is left out on purpose, that is for calibration on gold pairs; an answer over unrelated words is not a matter of taste.
SANITY_PAIRS: list[tuple[str, str, str]] = [
    (
        "How do I make tea?",
        "Boil water, pour it over the tea leaves and let it stand for four minutes before you drink it.",
        "the the of of and and the a a of in in the the and",
    ),
    (
        "How can I fix a flat bike tyre?",
        "Take the wheel off, find the hole in the tube, put a patch on it, and pump the tyre up again.",
        "the a a in in of of to and and the the a of to in",
    ),
]


class Scorer(Protocol):
    """Gives a reward to (conversation, response) pairs; higher is better."""

    identity: str  # what the scores depend on: model, input form, lengths

    def __call__(self, pairs: list[tuple[Messages, str]]) -> list[float]: ...

    def iterate(self, pairs: list[tuple[Messages, str]]) -> Iterator[tuple[int, float]]:
        """The same, yielded as (index, score) batch by batch."""


class _Encoded(NamedTuple):
    ids: list[int]
    types: list[int] | None  # segment of each token, where the tokenizer makes them


class RewardModel:
    """A sequence classifier with one logit, in fp32."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, models: Models, batch_size: int
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._input_form = models.reward_input
        self._max_length = models.reward_max_length
        self._batch_size = batch_size
        self.identity = scorer_identity(models)
        self.truncated = 0  # inputs whose question lost its beginning

    def __call__(self, pairs: list[tuple[Messages, str]]) -> list[float]:
        scores = [math.nan] * len(pairs)
        for index, score in self.iterate(pairs):
            scores[index] = score
        return scores

    def iterate(self, pairs: list[tuple[Messages, str]]) -> Iterator[tuple[int, float]]:
        """Longest first, in batches that are halved on out-of-memory.

        Raises:
            CaiError: a score is not finite, or an answer alone exceeds the model's length.
        """
        encoded = [self._encode(messages, response) for messages, response in pairs]
        order = sorted(range(len(pairs)), key=lambda index: -len(encoded[index].ids))
        for indices, scores in in_batches(
            order, self._batch_size, lambda rows: self._score([encoded[i] for i in rows])
        ):
            for index, score in zip(indices, scores, strict=True):
                if not math.isfinite(score):
                    raise CaiError(
                        f"The reward model {self.identity} gave {score} to the response {pairs[index][1][:80]!r}.",
                        "Its weights or its precision are broken: load it again, or set models.reward to another one.",
                    )
                yield index, score

    def _encode(self, messages: Messages, response: str) -> _Encoded:
        encode = self._encode_pair if self._input_form == "pair" else self._encode_chat
        return encode(messages, response)

    def _encode_pair(self, messages: Messages, response: str) -> _Encoded:
        """tokenizer(question, answer), as the default model's card does it; a longer question loses its beginning.

        The question of a multi-turn conversation is its readable transcript ("User: … / Assistant: …").
        """
        question = transcript(messages)
        answer_tokens = len(self._tokenizer(response, add_special_tokens=False)["input_ids"])
        room = self._max_length - self._tokenizer.num_special_tokens_to_add(pair=True) - answer_tokens
        if room < 1:
            raise CaiError(
                f"A response of {answer_tokens} tokens is longer than the reward model reads ({self._max_length}).",
                "Lower generate.draft_tokens, or raise models.reward_max_length if the model allows it.",
            )
        self.truncated += len(self._tokenizer(question, add_special_tokens=False)["input_ids"]) > room
        self._tokenizer.truncation_side = "left"  # the end of the question is what the answer answers
        encoded = self._tokenizer(question, response, truncation="only_first", max_length=self._max_length)
        return _Encoded(encoded["input_ids"], encoded.get("token_type_ids"))

    def _encode_chat(self, messages: Messages, response: str) -> _Encoded:
        """The conversation with the response under the model's chat template; the oldest tokens are dropped."""
        text = self._tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": response}], tokenize=False
        )
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        self.truncated += len(ids) > self._max_length
        ids = ids[-self._max_length :]
        return _Encoded(ids, None)

    def _score(self, rows: list[_Encoded]) -> list[float]:
        import torch

        width = max(len(row.ids) for row in rows)
        pad = self._tokenizer.pad_token_id
        # right padding: the classifier reads the last token that is not padding
        ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": torch.tensor([_mask(row, width) for row in rows])}
        if rows[0].types is not None:
            inputs["token_type_ids"] = torch.tensor([row.types + [0] * (width - len(row.ids)) for row in rows])
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            return self._model(**inputs).logits[:, 0].float().tolist()


def scorer_identity(models: Models) -> str:
    """What scores depend on, known without loading anything."""
    return f"{identity(models.reward)}, {models.reward_input} input, {models.reward_max_length} tokens"


def load_scorer(models: Models, batch_size: int) -> Scorer:
    """The reward model of the settings, loaded and tried.

    Raises:
        CaiError: it cannot be loaded, has not one logit, or ranks an answer below unrelated words.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # fp32 even on a T4: it is 1.7 GiB for the default model, and scores are compared by small differences
    model = from_hub(
        lambda: AutoModelForSequenceClassification.from_pretrained(locate(models.reward), dtype=torch.float32),
        models.reward,
    )
    if model.config.num_labels != 1:
        raise CaiError(
            f"{models.reward} has {model.config.num_labels} labels; a reward model has one logit.",
            "Set models.reward to a reward model, such as OpenAssistant/reward-model-deberta-v3-large-v2.",
        )
    if models.reward_input == "chat":
        tokenizer = load_tokenizer(models.reward)
    else:
        tokenizer = from_hub(lambda: AutoTokenizer.from_pretrained(locate(models.reward)), models.reward)
    scorer = RewardModel(model.to(this_machine().device), tokenizer, models, batch_size)
    check_sanity(scorer)
    return scorer


def check_sanity(scorer: Scorer) -> None:
    """Stop when the scorer does not rank an answer above unrelated words: it is loaded or called the wrong way."""
    for question, better, worse in SANITY_PAIRS:
        chat: Messages = [{"role": "user", "content": question}]
        high, low = scorer([(chat, better), (chat, worse)])
        if not high > low:
            raise CaiError(
                f"The reward model {scorer.identity} gives {low:.2f} to word salad and {high:.2f} to an answer of {question!r}.",
                'It is broken or read the wrong way: check models.reward and models.reward_input ("pair" or "chat").',
            )


def _mask(row: _Encoded, width: int) -> list[int]:
    return [1] * len(row.ids) + [0] * (width - len(row.ids))
