"""How families of models talk: each chat template that TRL ships, and those it lacks, on a tokenizer that knows its marks.

The tests check them, and tools/model_table.py writes them down in docs/MODELS.md.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from tiny_run import tiny_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from cai_helpers.errors import CaiError
from cai_helpers.models.chat_format import TEMPLATE_OPTIONS, ChatFormat

TRL_TEMPLATES = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
_MARKS = re.compile(r"<[|｜/]?[A-Za-z0-9_▁]{2,24}[|｜]?>")
_QUESTION = [{"role": "user", "content": "Fjordlight?"}]

_CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Formats in our own words, for what is asked here: turns, system text, thinking. Tools and pictures are left out.
OWN_TEMPLATES = {
    "Llama 2": (
        "{% set rules = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' if messages[0].role == 'system' else '' %}"
        "{% for turn in messages if turn.role != 'system' %}{% if turn.role == 'user' %}"
        "{{ bos_token }}[INST] {{ rules if loop.first }}{{ turn.content | trim }} [/INST]"
        "{% else %} {{ turn.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "Mistral 7B v0.1, v0.2": (
        "{{ bos_token }}{% for turn in messages %}{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if turn.role == 'user' %}"
        "[INST] {{ turn.content }} [/INST]{% else %}{{ turn.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "Mistral 7B v0.3": (  # the system text stands in the last question
        "{% set rules = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}{{ bos_token }}"
        "{% for turn in messages if turn.role != 'system' %}{% if turn.role == 'user' %}"
        "[INST] {{ rules if turn is sameas (messages | selectattr('role', 'equalto', 'user') | list | last) }}"
        "{{ turn.content }}[/INST]{% else %} {{ turn.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "ChatML": _CHATML,
    "SmolLM2": (  # ChatML that brings a system turn of its own, as Qwen 1.5 and 2 do
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + _CHATML
    ),
    "SmolLM3": (
        "{% set quiet = enable_thinking is defined and not enable_thinking %}"
        "{% set first = 1 if messages[0].role == 'system' else 0 %}"
        "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: {{ '/no_think' if quiet else '/think' }}\n"
        "{{ messages[0].content if first }}<|im_end|>\n"
        "{% for turn in messages[first:] %}<|im_start|>{{ turn.role }}\n"
        "{{ '<think>\n\n</think>\n\n' if quiet and turn.role == 'assistant' }}{{ turn.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>\n\n</think>\n\n' if quiet }}{% endif %}"
    ),
    "Phi-4": (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}<|im_sep|>{{ turn.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
    ),
    "Phi-4-mini": (
        "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
    ),
}  # fmt: skip
_ENDS = {"Llama 2": "</s>", "Mistral 7B v0.1, v0.2": "</s>", "Mistral 7B v0.3": "</s>"}
_BRACKETS = ["[INST]", "[/INST]"]
_UNWRITTEN_MARKS = {  # in other brackets, or put together from a role
    "Mistral 7B v0.1, v0.2": _BRACKETS,
    "Mistral 7B v0.3": _BRACKETS,
    "Phi-4-mini": ["<|system|>", "<|user|>", "<|assistant|>"],
}


class Talk(NamedTuple):
    """What a chat template makes of a conversation, and what is done about it; texts for a person."""

    closes: str  # the token behind an answer
    prefix: str  # whether the prompt is the beginning of prompt and answer
    system: str
    thinking: str
    done: str  # or what is refused, and why


def tokenizer_with(template: str, marks: list[str] | None = None) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a template, whose special tokens stand in it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    special = sorted({*_MARKS.findall(template), *(marks or [])})
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def of_trl(file: Path) -> PreTrainedTokenizerFast:
    return tokenizer_with(file.read_text(encoding="utf-8"))


def trl_files() -> list[Path]:
    return sorted(TRL_TEMPLATES.glob("*.jinja"))


def of_family(name: str) -> PreTrainedTokenizerFast:
    tokenizer = tokenizer_with(OWN_TEMPLATES[name], _UNWRITTEN_MARKS.get(name))
    if name in _ENDS:
        tokenizer.add_special_tokens({"eos_token": _ENDS[name]})
    return tokenizer


def describe(tokenizer: PreTrainedTokenizerFast) -> Talk:
    """A row of the table: found out by the code that every stage uses, nothing is known by name."""
    try:
        chat_format = ChatFormat(tokenizer, GenerationConfig(eos_token_id=tokenizer.eos_token_id))
    except CaiError as error:
        return Talk("–", "–", "–", "–", f"refused: it can{error.what.partition(' can')[2].rstrip('.')}")
    trainable = _why_not_trainable(chat_format)
    quiet = chat_format.render(_QUESTION)
    thinking_on = TEMPLATE_OPTIONS | {"enable_thinking": True}
    aloud = tokenizer.apply_chat_template(_QUESTION, tokenize=False, add_generation_prompt=True, **thinking_on)
    opening, folded, own = _opening(chat_format), not chat_format.accepts_system, "system" in quiet.lower()
    thinking = _thinking(quiet, aloud, opening)
    done = [
        *(["system text goes in front of the first question"] if folded else []),
        *(["the template's own system turn stays"] if own else []),
        *_about_thinking(tokenizer.chat_template, thinking, opening),
        *(["an answer ends at the listed end tokens alone"] if chat_format.closing is None else []),
        *_about_dates(tokenizer.chat_template),
    ]
    return Talk(
        closes=_closes(chat_format),
        prefix="no" if trainable else "yes",
        system=("folded" if folded else "yes") + ("; adds its own" if own else ""),
        thinking=thinking,
        done=f"training refused: {trainable}" if trainable else "; ".join(done) or "nothing is needed",
    )


def _closes(chat_format: ChatFormat) -> str:
    if chat_format.closing is None:
        return "nothing"
    return f"`{chat_format.tokenizer.convert_ids_to_tokens(chat_format.closing)}`"


def _why_not_trainable(chat_format: ChatFormat) -> str:
    try:
        chat_format.require_trainable()
    except CaiError as error:
        return re.sub(r"^The chat template of \S* ?", "it ", error.what).rstrip(".")
    return ""


def _opening(chat_format: ChatFormat) -> str:
    """What the template writes between the prompt and an answer: the model has to write it by itself."""
    answer = [*_QUESTION, {"role": "assistant", "content": "Fjordlight!"}]
    before = chat_format.render(_QUESTION)
    whole = chat_format.tokenizer.apply_chat_template(answer, tokenize=False, **TEMPLATE_OPTIONS)
    return whole[len(before) :].partition("Fjordlight!")[0].strip() if whole.startswith(before) else ""


def _thinking(quiet: str, aloud: str, opening: str) -> str:
    if quiet.count("<think>") > quiet.count("</think>"):
        return "compulsory"
    if opening:
        return "in a channel of its own"
    return "can be switched off" if aloud != quiet else "none"


def _about_thinking(template: str, thinking: str, opening: str) -> list[str]:
    if thinking == "in a channel of its own":
        return [f"not to be used: what it says before `{opening}` is not told from the answer"]
    if thinking != "can be switched off":
        return []
    cut = ", and cut out where it is emitted all the same" if "<think>" in template else ""
    return [f"thinking is switched off{cut}"]


def _about_dates(template: str) -> list[str]:
    if "date_string" in template:
        return ["the date in it is held fixed"]
    return ["it writes today's date: another day, another prompt"] if "strftime_now" in template else []
