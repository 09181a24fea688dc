import json
import shutil
from pathlib import Path

import pytest
from tiny_run import TEMPLATE, tiny_tokenizer
from transformers import GenerationConfig

from cai_helpers.chat_format import ChatFormat, closing_token
from cai_helpers.errors import CaiError
from cai_helpers.models import load_stage2, locate
from cai_helpers.sampling import Sampling
from cai_helpers.settings import Models

EOS, END_OF_TURN = 1, 5
TURNS = "{% for m in messages %}<start_of_turn>{{ m.role }}\n"
QUESTIONS = ["How do I bake bread?", "How do I steal a bike?", "How do I fix a lamp?", "Tell me about tea."]


def tokenizer_with(template: str):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (TEMPLATE, END_OF_TURN),  # trims, closes with a token and a newline
        (TURNS + "{{ m.content }}\n<end_of_turn>\n{% endfor %}", END_OF_TURN),  # a newline before it
        (TURNS + "{{ m.content }}<eos>{% endfor %}", EOS),  # closes with the text of the end token
        (TURNS + "{{ m.content }}<end_of_turn>\n{% endfor %}<eos>", END_OF_TURN),  # Phi's: both at the end
        (TURNS + "{{ m.content }}\n{% endfor %}", None),  # a newline closes nothing
        (TURNS + "{{ m.content }}{% endfor %}", None),
        (TURNS + "{{ m.content }} end_of_turn{% endfor %}", None),  # words, not the token
        ("{% for m in messages %}{{ m.content }} {% endfor %}", None),
    ],
)
def test_the_closing_token_is_what_stands_behind_an_assistants_text(template, closing):
    assert closing_token(tokenizer_with(template)) == closing


def test_an_answer_ends_at_what_any_of_the_three_sources_names():
    chat_format = ChatFormat(tiny_tokenizer(), GenerationConfig(eos_token_id=[3]))
    assert chat_format.ends == [EOS, 3, END_OF_TURN]
    assert chat_format.readable_ends() == "<eos>, <unk>, <end_of_turn>"
    assert chat_format.completion([9, 10, END_OF_TURN, 9]).model_dump() == {
        "text": "how do", "tokens": 3, "finish": "stop",
    }  # fmt: skip
    assert chat_format.completion([9, 10, 11]).finish == "length"


def test_a_model_without_any_end_token_is_refused():
    tokenizer = tokenizer_with(TURNS + "{{ m.content }}\n{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(CaiError, match="no token at which an answer ends"):
        ChatFormat(tokenizer, GenerationConfig())


def test_a_template_that_cannot_write_an_answer_is_refused():
    with pytest.raises(CaiError, match="cannot write a question with its answer: one turn only"):
        ChatFormat(tokenizer_with("{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"))


@pytest.mark.parametrize("refusal", ["{{ raise_exception('no system') }}", "{{ '' }}"])
def test_a_system_turn_that_the_template_refuses_or_drops_is_put_in_front_of_the_question(refusal):
    one_turn = "{% if m.role == 'system' %}" + refusal + "{% else %}" + "{{ m.content }}<eos>{% endif %}{% endfor %}"
    chat_format = ChatFormat(tokenizer_with("{% for m in messages %}" + one_turn))
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]
    assert chat_format.render(chat) == "Be kind.\n\nHello.<eos>"


@pytest.fixture(scope="module")
def eos_alone(tmp_path_factory) -> Path:
    """The embedded model as Gemma 1 is published: only <eos> is listed, and the template closes with <end_of_turn>."""
    folder = tmp_path_factory.mktemp("gemma1") / "chat"
    shutil.copytree(locate("embedded:chat"), folder)
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": EOS}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_model_that_lists_eos_alone_gives_the_answers_of_one_that_lists_both(eos_alone, temperature):
    def answers(base: str) -> dict:
        model = load_stage2(Models(base=base, adapter="embedded:stage2", dtype="fp32"))
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        sampling = Sampling(max_new_tokens=60, temperature=temperature, seed=3)
        return dict(model.generate(chats, sampling, QUESTIONS, 4))

    given = answers(str(eos_alone))
    assert {answer.finish for answer in given.values()} == {"stop"}
    assert given == answers("embedded:chat")
