"""How a model talks: what its chat template makes of a conversation, and the tokens at which an answer ends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cai_helpers.errors import CaiError
from cai_helpers.schema import Completion, Message, Messages

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# Given to the chat template wherever a conversation is rendered, in training as well; templates that do not know it
# pass over it. Drafts, critiques and revisions are answers: thinking aloud would eat their tokens. Llama 3.2 writes today's
# date: a run that goes on tomorrow would see other prompts; this is the date that 3.1 and 3.2 fall back on by themselves.
TEMPLATE_OPTIONS: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
_OPENS, _CLOSES = "<think>", "</think>"
_THOUGHT = re.compile(rf"\A.*{_CLOSES}|{_OPENS}.*\Z", re.DOTALL)  # opened in the prompt, closed or cut off
_WORD = "Fjordlight"  # stands for a text when a template is tried: no template and no trimming changes it


class ChatFormat:
    """A chat template with its tokenizer, and the tokens that end an answer.

    An answer ends at the union of what generation_config.json lists, the tokenizer's end token, and the token that closes
    an assistant turn in the template: Gemma 1 lists `<eos>` alone, and closes its turns with `<end_of_turn>`.

    Raises:
        CaiError: the template cannot write a question with its answer, or a model has no end token at all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None = None) -> None:
        self.tokenizer = tokenizer
        self._added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self.thoughts = 0  # answers out of which thinking was cut
        self.accepts_system = accepts_system(tokenizer)
        self.closing = closing_token(tokenizer)
        listed = [] if generation is None else _as_list(generation.eos_token_id)
        known = {*listed, *_as_list(tokenizer.eos_token_id), *_as_list(self.closing)}
        self.ends: list[int] = sorted(known)
        if generation is not None and not self.ends:
            raise CaiError(
                f"{tokenizer.name_or_path} has no token at which an answer ends.",
                "Take an instruct model, or name the token as eos_token_id in its generation_config.json.",
            )

    def fold(self, chat: Messages) -> Messages:
        """The conversation as the template takes it: where it has no system role, in front of the first user turn."""
        return chat if self.accepts_system else fold_system(chat)

    def render(self, chat: Messages) -> str:
        """The text that the model continues with its answer."""
        return _rendered(self.tokenizer, self.fold(chat), add_generation_prompt=True)

    def render_answered(self, chat: Messages) -> str:
        """The text of a conversation that ends on an answer."""
        return _rendered(self.tokenizer, self.fold(chat))

    def count_tokens(self, chat: Messages) -> int:
        return len(self.tokenizer(self.render(chat), add_special_tokens=False)["input_ids"])

    def completion(self, tokens: list[int]) -> Completion:
        """What was generated up to the first end token, without thinking aloud. Without an end token it was cut off."""
        stop = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        kept = tokens if stop is None else tokens[:stop]
        said = self._after_thinking(kept)
        decoded = self.tokenizer.decode(said, skip_special_tokens=True)
        text = _THOUGHT.sub("", decoded).strip()
        self.thoughts += len(said) < len(kept) or _THOUGHT.search(decoded) is not None
        return Completion(text=text, tokens=len(kept) + (stop is not None), finish="length" if stop is None else "stop")

    def _after_thinking(self, tokens: list[int]) -> list[int]:
        """Cut at the marks of thinking where they are tokens: special ones do not show in the decoded text."""
        if (closes := self._added.get(_CLOSES)) in tokens:
            tokens = tokens[len(tokens) - tokens[::-1].index(closes) :]
        if (opens := self._added.get(_OPENS)) in tokens:
            tokens = tokens[: tokens.index(opens)]
        return tokens

    def require_trainable(self) -> None:
        """Training takes the prompt for the beginning of prompt and answer, so it has to be that.

        Raises:
            CaiError: it is not, under this template.
        """
        question: Messages = [{"role": "user", "content": "a"}]
        before, whole = self.render(question), _rendered(self.tokenizer, [*question, _answer()])
        if not whole.startswith(before):
            raise CaiError(
                f"The chat template of {self.tokenizer.name_or_path} ends a prompt with {before[-24:]!r}, which is not there once "
                "an answer follows: training would see another prompt than generation.",
                "Take a model without compulsory thinking; the instruct variant of the same family usually is one.",
            )

    def require_closed(self) -> None:
        """Training teaches the model to end where an answer does, so the template has to close it with an end token.

        Raises:
            CaiError: it leaves the answer open, or closes it with something at which generation does not stop.
        """
        whole = _rendered(self.tokenizer, [{"role": "user", "content": "a"}, _answer()])
        last = self.tokenizer(whole, add_special_tokens=False)["input_ids"][-2:]  # Gemma's has a newline behind it
        if set(last).isdisjoint(self.ends):
            raise CaiError(
                f"The chat template of {self.tokenizer.name_or_path} does not close an answer with an end token "
                f"({self.readable_ends()}): a model trained on it would not learn to end.",
                "Take an instruct model whose template closes each turn with a token, or name that token as eos_token_id in "
                "its generation_config.json.",
            )

    def line(self) -> str:
        """What was found, for a person."""
        findings = [
            f"answers end at {self.readable_ends()}",
            "system turns are written as such" if self.accepts_system else "system turns go in front of the question",
            *(["thinking is switched off"] if self._could_think() else []),
        ]
        return "; ".join(findings)

    def _could_think(self) -> bool:
        """Whether the template writes another prompt, or refuses to write one, where thinking is asked for."""
        from jinja2 import TemplateError

        question: Messages = [{"role": "user", "content": "a"}]
        try:
            thinking = self.tokenizer.apply_chat_template(
                question, tokenize=False, add_generation_prompt=True, **(TEMPLATE_OPTIONS | {"enable_thinking": True})
            )
        except TemplateError:
            return True
        return thinking != self.render(question)

    def readable_ends(self) -> str:
        """The end tokens as they are written, "<eos>, <end_of_turn>"."""
        return ", ".join(self.tokenizer.convert_ids_to_tokens(self.ends)) or "none"


def accepts_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes a system turn. Gemma's raises, others leave it out without a word."""
    from jinja2 import TemplateError

    chat: Messages = [{"role": "system", "content": _WORD}, {"role": "user", "content": "b"}]
    try:
        return _WORD in _rendered(tokenizer, chat)
    except TemplateError:
        return False


def fold_system(chat: Messages) -> Messages:
    """A system turn put in front of the first user turn, for templates without a system role."""
    if not chat or chat[0]["role"] != "system":
        return chat
    first: Message = {"role": "user", "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}
    return [first, *chat[2:]]


def closing_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the template writes behind an assistant's text, or None: it leaves the turn open.

    Only a special or added token can close: a newline stands inside answers as well. White space before it is skipped;
    what follows it (a newline, Phi's `<|endoftext|>` at the end of a conversation) is not what the model says first.

    Raises:
        CaiError: the template cannot write a question with its answer.
    """
    from jinja2 import TemplateError

    todo = "Take an instruct model whose template knows the roles user and assistant, such as google/gemma-2b-it."
    what = f"The chat template of {tokenizer.name_or_path} cannot write a question with its answer"
    try:
        text = _rendered(tokenizer, [{"role": "user", "content": "a"}, _answer()])
    except TemplateError as error:
        raise CaiError(f"{what}: {error}", todo) from error
    if _WORD not in text:  # templates of models that see take a list of parts and pass over plain text
        raise CaiError(f"{what}: the text of an answer is left out.", todo)
    tail = text.rpartition(_WORD)[2].lstrip()
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    closing = max((content for content in added if content.strip() and tail.startswith(content)), key=len, default=None)
    return None if closing is None else added[closing]


def _answer() -> Message:
    return {"role": "assistant", "content": _WORD}


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: Messages, **options: bool) -> str:
    return tokenizer.apply_chat_template(chat, tokenize=False, **TEMPLATE_OPTIONS, **options)


def _as_list(tokens: int | Iterable[int] | None) -> list[int]:
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)
