"""Reward models. A score comes from a model or there is none: no heuristics, no fallback."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import this_machine
from cai_helpers.models.batches import in_token_batches
from cai_helpers.models.chat_format import ChatFormat
from cai_helpers.models.hub import from_hub, identity, locate
from cai_helpers.models.language import load_tokenizer, load_weights
from cai_helpers.schema import Messages, transcript
from cai_helpers.scoring.sanity import check_sanity, check_spread, norming_texts
from cai_helpers.sections import RewardSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# fp16 is taken where its scores are this near to those of fp32, on so many texts, on the very machine.
_FP16_TOLERANCE, _FP16_TEXTS = 0.05, 8
_FP32_TOLERANCE = 0.001  # of one score in fp32, alone and in a batch; measured differences are below 1e-6


class TextScorer(Protocol):
    """Gives a reward to (conversation, response) pairs; higher is better."""

    identity: str  # what the scores depend on: model, input form, lengths

    def __call__(self, pairs: list[tuple[Messages, str]]) -> list[float]: ...

    def iterate(self, pairs: list[tuple[Messages, str]]) -> Iterator[tuple[int, float]]:
        """The same, yielded as (index, score) batch by batch."""

    def notes(self) -> list[tuple[str, str]]:
        """What a person should know of the scores given so far, as (what, figure)."""


class _Encoded(NamedTuple):
    ids: list[int]
    types: list[int] | None  # segment of each token, where the tokenizer makes them


class RewardModel:
    """A sequence classifier: its one logit is the score, or the weighted probabilities of its labels are.

    Raises:
        CaiError: the classifier has not one logit and no labels are named, or a named label is unknown.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: RewardSource, batch_size: int
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._source = source
        self._weights = _label_weights(model.config, source)
        self._format = ChatFormat(tokenizer) if source.input == "chat" else None
        self._batch_size = batch_size
        self.identity = source_identity(source)
        self.precision = "fp32"
        self.scored = 0
        self.truncated = 0  # inputs whose question lost its beginning
        self._pad = self._agree_on_padding()

    def __call__(self, pairs: list[tuple[Messages, str]]) -> list[float]:
        scores = [math.nan] * len(pairs)
        for index, score in self.iterate(pairs):
            scores[index] = score
        return scores

    def notes(self) -> list[tuple[str, str]]:
        cut = f"{self.truncated} of {self.scored} questions lost their beginning at {self._source.max_length} tokens"
        return [("scored in", self.precision), ("truncated inputs", cut)]

    def use_fp16_if_it_agrees(self) -> None:
        """Halve the weights where that moves no score of the norming texts by more than 0.05; else stay in fp32."""
        texts = norming_texts()[:_FP16_TEXTS]
        exact, whole = self(texts), self._model
        self._model = copy.deepcopy(whole).half()
        try:
            apart = max(abs(whole_score - half) for whole_score, half in zip(exact, self(texts), strict=True))
        except CaiError:  # a score that is not finite: fp16 overflows in this model
            apart = math.inf
        if apart <= _FP16_TOLERANCE:
            self.precision = f"fp16, which agrees with fp32 to {apart:.3f} on {len(texts)} texts"
        else:
            self._model = whole
            self.precision = f"fp32: fp16 is {apart:.3f} off on {len(texts)} texts here"
        self.scored = self.truncated = 0

    def _agree_on_padding(self) -> int:
        """The token that rows are filled up with: the one that the model takes for padding.

        A classifier on a decoder reads its score at the last token that is none. So a token that its config names is taken as
        it is, whatever the tokenizer pads with; where it names none that there is, one is chosen that ends no text.
        """
        config = self._model.config.get_text_config()
        size = self._model.get_input_embeddings().num_embeddings
        named = getattr(config, "pad_token_id", None)
        if named is None or not 0 <= named < size:  # some configs say -1
            question: Messages = [{"role": "user", "content": "a"}]
            last = self._encode(question, "b").ids[-1]
            own = self._tokenizer
            special = (own.pad_token_id, own.unk_token_id, own.bos_token_id, own.eos_token_id)
            known = (token for token in (*special, *range(size)) if token is not None and 0 <= token < size)
            config.pad_token_id = named = next(token for token in known if token != last)
        return named

    def require_same_in_a_batch(self) -> None:
        """
        Raises:
            CaiError: a short text gets another score when it is padded to the length of a longer one.
        """
        texts = sorted((self._encode(*text) for text in norming_texts()), key=lambda row: len(row.ids))
        short, long = texts[0], texts[-1]
        alone, padded = self._score([short])[0], self._score([short, long])[0]
        tolerance = (_FP16_TOLERANCE if self.precision.startswith("fp16") else _FP32_TOLERANCE) * (1 + abs(alone))
        self.truncated = 0
        if not abs(alone - padded) <= tolerance:  # nan as well
            raise CaiError(
                f"The reward model {self.identity} gives {alone:.3f} to a text alone and {padded:.3f} to the same text beside a "
                "longer one: what fills up the shorter row changes its score.",
                "Check pad_token_id in its config.json, and models.reward.input; or take another reward model.",
            )

    def iterate(self, pairs: list[tuple[Messages, str]]) -> Iterator[tuple[int, float]]:
        """Longest first, in batches of as many tokens as `batch_size` of the longest inputs have; halved on out-of-memory.

        Raises:
            CaiError: a score is not finite, or an answer alone exceeds the model's length.
        """
        encoded = [self._encode(messages, response) for messages, response in pairs]
        self.scored += len(pairs)
        sizes = [len(row.ids) for row in encoded]
        tokens = self._batch_size * self._source.max_length
        for indices, scores in in_token_batches(sizes, tokens, lambda rows: self._score([encoded[i] for i in rows])):
            for index, score in zip(indices, scores, strict=True):
                if not math.isfinite(score):
                    raise CaiError(
                        f"The reward model {self.identity} gave {score} to the response {pairs[index][1][:80]!r}.",
                        "Its weights or its precision are broken: load it again, or set models.reward to another one.",
                    )
                yield index, score

    def _encode(self, messages: Messages, response: str) -> _Encoded:
        encode = self._encode_pair if self._source.input == "pair" else self._encode_chat
        return encode(messages, response)

    def _encode_pair(self, messages: Messages, response: str) -> _Encoded:
        """tokenizer(question, answer), as the default model's card does it; a longer question loses its beginning.

        The question of a multi-turn conversation is its readable transcript ("User: … / Assistant: …").
        """
        question = transcript(messages)
        answer_tokens = len(self._tokenizer(response, add_special_tokens=False)["input_ids"])
        room = self._source.max_length - self._tokenizer.num_special_tokens_to_add(pair=True) - answer_tokens
        if room < 1:
            raise CaiError(
                f"A response of {answer_tokens} tokens is longer than the reward model reads ({self._source.max_length}).",
                "Lower generate.draft_tokens, or raise models.reward.max_length if the model allows it.",
            )
        self.truncated += len(self._tokenizer(question, add_special_tokens=False)["input_ids"]) > room
        self._tokenizer.truncation_side = "left"  # the end of the question is what the answer answers
        encoded = self._tokenizer(question, response, truncation="only_first", max_length=self._source.max_length)
        return _Encoded(encoded["input_ids"], encoded.get("token_type_ids"))

    def _encode_chat(self, messages: Messages, response: str) -> _Encoded:
        """The conversation with the response under the model's chat template; the oldest tokens are dropped."""
        assert self._format is not None, "made for this kind of input"
        text = self._format.render_answered([*messages, {"role": "assistant", "content": response}])
        # the template has written <bos> already, where the model wants one
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        self.truncated += len(ids) > self._source.max_length
        ids = ids[-self._source.max_length :]
        return _Encoded(ids, None)

    def _score(self, rows: list[_Encoded]) -> list[float]:
        import torch

        width = max(len(row.ids) for row in rows)
        # right padding: the classifier reads the last token that is not padding
        ids = torch.tensor([row.ids + [self._pad] * (width - len(row.ids)) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": torch.tensor([_mask(row, width) for row in rows])}
        types = [row.types + [0] * (width - len(row.ids)) for row in rows if row.types is not None]
        if types:
            inputs["token_type_ids"] = torch.tensor(types)
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            logits = self._model(**inputs).logits.float()
        if self._weights is None:
            return logits[:, 0].tolist()
        return (logits.softmax(dim=-1) @ torch.tensor(self._weights, device=logits.device)).tolist()


def source_identity(source: RewardSource) -> str:
    labels = ", ".join(f"{weight:+g}·P({label})" for label, weight in sorted(source.labels.items()))
    labelled = f", score {labels}" if labels else ""
    return f"{identity(source.model)}, {source.input} input, {source.max_length} tokens{labelled}"


def load_reward_model(source: RewardSource, batch_size: int) -> RewardModel:
    """The reward model of `source`, loaded and tried.

    Raises:
        CaiError: it cannot be loaded, has not one logit, lacks a label, or ranks an answer below unrelated words.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = load_weights(AutoModelForSequenceClassification, source.model, classifier=True, dtype=torch.float32)
    if source.input == "chat":
        tokenizer = load_tokenizer(source.model)
    else:
        tokenizer = from_hub(
            lambda: AutoTokenizer.from_pretrained(locate(source.model), trust_remote_code=False), source.model
        )
    machine = this_machine()
    scorer = RewardModel(model.to(machine.device), tokenizer, source, batch_size)
    if machine.device == "cuda":
        scorer.use_fp16_if_it_agrees()
    scorer.require_same_in_a_batch()
    if source.labels:
        check_spread(scorer)
    else:
        check_sanity(scorer)
    return scorer


def _label_weights(config: PretrainedConfig, source: RewardSource) -> list[float] | None:
    """The weight of each label's probability; None where one logit is the score."""
    if not source.labels:
        if config.num_labels != 1:
            raise CaiError(
                f"{source.model} has {config.num_labels} labels ({', '.join(config.id2label.values())}); a reward model "
                "has one logit.",
                "Name what its labels are worth, such as models.reward.labels={harmful: -1}, or take a reward model.",
            )
        return None
    names = [config.id2label[index] for index in range(config.num_labels)]
    if unknown := source.labels.keys() - set(names):
        raise CaiError(
            f"{source.model} has no label {', '.join(sorted(unknown))}; it has {', '.join(names)}.",
            "Write the labels as the model spells them.",
        )
    if config.num_labels == 1:
        raise CaiError(
            f"{source.model} has one logit, whose softmax is always 1.", "Leave out models.reward.labels for it."
        )
    return [source.labels.get(name, 0.0) for name in names]


def _mask(row: _Encoded, width: int) -> list[int]:
    return [1] * len(row.ids) + [0] * (width - len(row.ids))
