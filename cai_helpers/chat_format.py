"""How a model talks: what its chat template makes of a conversation, and the tokens at which an answer ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cai_helpers.errors import CaiError
from cai_helpers.schema import Completion, Messages

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

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
        return self.tokenizer.apply_chat_template(self.fold(chat), tokenize=False, add_generation_prompt=True)

    def count_tokens(self, chat: Messages) -> int:
        return len(self.tokenizer(self.render(chat), add_special_tokens=False)["input_ids"])

    def completion(self, tokens: list[int]) -> Completion:
        """What was generated up to the first end token. Without one it was cut off."""
        stop = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        kept = tokens if stop is None else tokens[:stop]
        text = self.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Completion(text=text, tokens=len(kept) + (stop is not None), finish="length" if stop is None else "stop")

    def readable_ends(self) -> str:
        """The end tokens as they are written, "<eos>, <end_of_turn>"."""
        return ", ".join(self.tokenizer.convert_ids_to_tokens(self.ends)) or "none"


def accepts_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes a system turn. Gemma's raises, others leave it out without a word."""
    from jinja2 import TemplateError

    chat = [{"role": "system", "content": _WORD}, {"role": "user", "content": "b"}]
    try:
        return _WORD in tokenizer.apply_chat_template(chat, tokenize=False)
    except TemplateError:
        return False


def fold_system(chat: Messages) -> Messages:
    """A system turn put in front of the first user turn, for templates without a system role."""
    if not chat or chat[0]["role"] != "system":
        return chat
    first = {"role": "user", "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}
    return [first, *chat[2:]]


def closing_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the template writes behind an assistant's text, or None: it leaves the turn open.

    Only a special or added token can close: a newline stands inside answers as well. White space before it is skipped;
    what follows it (a newline, Phi's `<|endoftext|>` at the end of a conversation) is not what the model says first.

    Raises:
        CaiError: the template cannot write a question with its answer.
    """
    from jinja2 import TemplateError

    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _WORD}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except TemplateError as error:
        raise CaiError(
            f"The chat template of {tokenizer.name_or_path} cannot write a question with its answer: {error}",
            "Take an instruct model whose template knows the roles user and assistant, such as google/gemma-2b-it.",
        ) from error
    tail = text.rpartition(_WORD)[2].lstrip()
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    closing = max((content for content in added if content.strip() and tail.startswith(content)), key=len, default=None)
    return None if closing is None else added[closing]


def _as_list(tokens: int | Iterable[int] | None) -> list[int]:
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)
