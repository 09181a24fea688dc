import json
import shutil
from pathlib import Path

import pytest
from template_families import TRL_TEMPLATES, of_trl, trl_files
from tiny_run import TEMPLATE, make_settings, make_workspace, preference_row, tiny_tokenizer
from tokenizers import AddedToken
from transformers import GenerationConfig

from cai_helpers.doctor import examine
from cai_helpers.errors import CaiError
from cai_helpers.models.chat_format import ChatFormat, closing_token
from cai_helpers.models.hub import locate
from cai_helpers.models.language import load_stage2, load_tokenizer
from cai_helpers.models.sampling import Sampling
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Models
from cai_helpers.stages.train import train_policy
from cai_helpers.store import write_jsonl
from cai_helpers.training.rows.pairs import encode

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


CLOSING = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "cohere2": "<|END_RESPONSE|>", "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "gemma4": "<turn|>",
    "gptoss": "<|return|>", "lfm2": "<|im_end|>", "llama3": "<|eot_id|>", "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>", "phi3": "<|end|>", "qwen": "<|im_end|>",
}  # fmt: skip
OF_PICTURES = ("idefics3", "smolvlm", "llava_next")  # take a list of parts, and pass over plain text
OPEN_ENDED = {"glm4moe.jinja": None, "glm4moe_training.jinja": "<|user|>"}  # closes with the next turn's opening
ALWAYS_THINKS = ("deepseek",)


@pytest.mark.parametrize("file", trl_files(), ids=lambda file: file.stem)
def test_every_template_that_trl_ships_is_understood_or_refused(file):
    tokenizer = of_trl(file)
    if file.name.startswith(OF_PICTURES):
        with pytest.raises(CaiError, match="cannot write a question with its answer"):
            ChatFormat(tokenizer)
        return
    chat_format = ChatFormat(tokenizer, GenerationConfig(eos_token_id=EOS))
    if file.name in OPEN_ENDED:
        closing = OPEN_ENDED[file.name]
    else:
        closing = CLOSING[max((name for name in CLOSING if file.name.startswith(name)), key=len)]
    assert chat_format.closing == (None if closing is None else tokenizer.convert_tokens_to_ids(closing))
    assert {EOS, chat_format.closing} - {None} <= set(chat_format.ends)
    system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]
    assert chat_format.render(system).index("Be kind.") < chat_format.render(system).index("Hello.")
    if file.name.startswith(ALWAYS_THINKS):
        with pytest.raises(CaiError, match="training would see another prompt"):
            chat_format.require_trainable()
        return
    chat_format.require_trainable()
    pair = encode(PreferenceRow.model_validate(preference_row(1)), tokenizer)
    assert chat_format.completion(pair.chosen).text.endswith("no sorry lock is wrong it")
    opened = chat_format.render([{"role": "user", "content": "Hello."}])
    assert opened.count("<think>") == opened.count("</think>")  # switched off, or never there


def test_qwens_thinking_is_switched_off_and_said():
    chat_format = ChatFormat(of_trl(TRL_TEMPLATES / "qwen3.jinja"))
    assert chat_format.render([{"role": "user", "content": "Hello."}]).endswith("<think>\n\n</think>\n\n")
    assert (
        chat_format.line()
        == "answers end at <eos>, <|im_end|>; system turns are written as such; thinking is switched off"
    )
    gemma = ChatFormat(of_trl(TRL_TEMPLATES / "gemma.jinja"))
    assert gemma.line() == "answers end at <eos>, <end_of_turn>; system turns go in front of the question"


@pytest.mark.parametrize("special", [True, False])
def test_thinking_aloud_is_cut_out_of_answers_and_counted(special):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=special), AddedToken("</think>", special=special)])
    opens, closes = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    chat_format = ChatFormat(tokenizer)
    how, do = tokenizer.convert_tokens_to_ids(["how", "do"])

    def text(*tokens: int) -> str:
        return chat_format.completion([*tokens, END_OF_TURN]).text

    assert text(how, do) == "how do"
    assert chat_format.thoughts == 0
    assert text(opens, do, do, closes, how) == "how"
    assert text(do, do, closes, how) == "how"  # opened by the prompt
    assert text(opens, do, do) == ""  # nothing but thinking
    assert chat_format.thoughts == 3
    assert chat_format.completion([opens, how, closes, do, END_OF_TURN]).tokens == 5  # they were generated all the same


def test_thinking_written_in_words_is_cut_out_too():
    chat_format = ChatFormat(load_tokenizer("embedded:chat"))
    tokens = chat_format.tokenizer("<think>It is a\nthief.</think> Ask a friend.", add_special_tokens=False)[
        "input_ids"
    ]
    assert chat_format.completion(tokens).text == "Ask a friend."
    assert chat_format.thoughts == 1


def test_the_doctor_says_how_the_model_talks(smoke, workspace, eos_alone):
    models = smoke.models.model_copy(update={"base": str(eos_alone)})
    [check] = [
        check
        for check in examine(smoke.model_copy(update={"models": models}), workspace)
        if check.name == "chat format"
    ]
    assert check.ok
    assert check.found == "answers end at <eos>, <end_of_turn>; system turns go in front of the question"


@pytest.mark.slow
@pytest.mark.usefixtures("no_training_picture")
@pytest.mark.parametrize("method", ["dpo", "sft", "kto"])
def test_training_takes_the_prompts_that_generation_took_thinking_switched_off(tiny, tmp_path, method):
    base = Path(shutil.copytree(tiny / "base", tmp_path / "base"))
    thinks = "{% if enable_thinking is not defined or enable_thinking %}{{ raise_exception('thinks') }}{% endif %}"
    (base / "chat_template.jinja").write_text(thinks + TEMPLATE)
    workspace = make_workspace(tmp_path / "run")
    if method == "kto":
        write_jsonl(workspace.one_sided_rows, [])
    settings = make_settings(tiny, method=method, epochs=1, sft_epochs=1, batch_size=4)
    settings = settings.model_copy(update={"models": settings.models.model_copy(update={"base": str(base)})})
    train_policy(settings, workspace)
    assert json.loads((workspace.adapter / "generation_config.json").read_text())["eos_token_id"] == [EOS, END_OF_TURN]
