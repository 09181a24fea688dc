"""docs/MODELS.md says what the code does: the families' templates, tried one by one, and the memory that sizes need."""

import model_table
import pytest
from model_sizes import SIZES, T4, need_of, verdict
from template_families import OWN_TEMPLATES, TRL_TEMPLATES, describe, of_family, of_trl, trl_files
from tiny_run import preference_row
from transformers import GenerationConfig

from cai_helpers.machine.hardware import GIB
from cai_helpers.models.chat_format import ChatFormat
from cai_helpers.models.open_models import OPEN_MODELS
from cai_helpers.schema import PreferenceRow
from cai_helpers.training.rows.pairs import encode

SYSTEM = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}]


def test_the_document_is_what_the_code_generates():
    text = model_table.FILE.read_text(encoding="utf-8")
    assert model_table.with_section(text) == text, "run `python tools/model_table.py`"


def test_every_template_that_trl_ships_and_every_family_that_it_lacks_has_its_row():
    rows = [row[0] for row in model_table._families()]
    versions = sum(int(name.partition(" (")[2].partition(" ")[0] or 1) for name in rows)
    assert versions == len(trl_files()) + len(OWN_TEMPLATES)
    wanted = {
        "Gemma 1, Gemma 2",
        "Gemma 3",
        "Llama 2",
        "Llama 3",
        "Qwen2.5",
        "Qwen3",
        "SmolLM2",
        "SmolLM3",
        "Phi-3",
        "ChatML",
    }
    assert wanted <= {name.partition(" (")[0] for name in rows}


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        (lambda: of_trl(TRL_TEMPLATES / "gemma.jinja"), ("`<end_of_turn>`", "yes", "folded", "none")),
        (lambda: of_trl(TRL_TEMPLATES / "llama3_2.jinja"), ("`<|eot_id|>`", "yes", "yes; adds its own", "none")),
        (lambda: of_trl(TRL_TEMPLATES / "qwen2_5.jinja"), ("`<|im_end|>`", "yes", "yes; adds its own", "none")),
        (lambda: of_trl(TRL_TEMPLATES / "qwen3.jinja"), ("`<|im_end|>`", "yes", "yes", "can be switched off")),
        (lambda: of_trl(TRL_TEMPLATES / "deepseekv3.jinja"), ("`<｜end▁of▁sentence｜>`", "no", "yes", "compulsory")),
        (lambda: of_trl(TRL_TEMPLATES / "gptoss.jinja"), ("`<|return|>`", "yes", "yes; adds its own", "in a channel of its own")),
        (lambda: of_trl(TRL_TEMPLATES / "smolvlm.jinja"), ("–", "–", "–", "–")),
        (lambda: of_family("Llama 2"), ("`</s>`", "yes", "yes", "none")),
        (lambda: of_family("Mistral 7B v0.1, v0.2"), ("`</s>`", "yes", "folded", "none")),
        (lambda: of_family("SmolLM3"), ("`<|im_end|>`", "yes", "yes; adds its own", "can be switched off")),
        (lambda: of_family("Phi-4-mini"), ("`<|end|>`", "yes", "yes", "none")),
    ],
)  # fmt: skip
def test_a_row_says_what_the_format_is_known_for(talk, expected):
    assert describe(talk())[:4] == expected


def test_what_is_done_about_a_format_is_said():
    done = {name: describe(of_trl(TRL_TEMPLATES / f"{name}.jinja")).done for name in ("qwen3", "llama3_2", "llama3")}
    assert done["qwen3"] == "thinking is switched off, and cut out where it is emitted all the same"
    assert done["llama3_2"] == "the template's own system turn stays; the date in it is held fixed"
    assert done["llama3"] == "nothing is needed"
    assert describe(of_trl(TRL_TEMPLATES / "deepseekv3.jinja")).done.startswith(
        "training refused: it ends a prompt with"
    )
    assert describe(of_trl(TRL_TEMPLATES / "smolvlm.jinja")).done.startswith("refused: it cannot write a question")


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_families_that_trl_lacks_are_generated_from_and_trained_on_alike(name):
    tokenizer = of_family(name)
    chat_format = ChatFormat(tokenizer, GenerationConfig(eos_token_id=tokenizer.eos_token_id))
    chat_format.require_trainable()
    assert chat_format.closing in chat_format.ends
    rendered = chat_format.render(SYSTEM)
    assert rendered.index("Be kind.") < rendered.index("Hello.")
    assert rendered.count("<think>") == rendered.count("</think>")
    for number in (1, 4):  # one question; a conversation
        row = PreferenceRow.model_validate(preference_row(number))
        pair = encode(row, tokenizer)
        assert chat_format.completion(pair.chosen).text.split() == row.chosen[0]["content"].split()


def test_the_date_in_a_prompt_is_not_that_of_the_day_nor_taken_for_thinking():
    for name in ("llama3_1", "llama3_2"):
        chat_format = ChatFormat(of_trl(TRL_TEMPLATES / f"{name}.jinja"))
        assert "Today Date: 26 Jul 2024\n" in chat_format.render([{"role": "user", "content": "Hello."}])
        assert "thinking" not in chat_format.line()


PUBLISHED = {
    "google/gemma-2b-it": 2_506_172_416,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-3-1b-it": 999_885_952,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_have_the_published_numbers_of_parameters(name):
    [size] = [size for size in SIZES if size.name == name]
    assert need_of(size).parameters == PUBLISHED[name]


def test_every_open_model_of_the_form_fits_a_t4_by_the_model_and_is_in_the_document():
    sizes = {size.name: size for size in SIZES}
    assert [sizes[name].gated for name in OPEN_MODELS] == [False] * len(OPEN_MODELS)
    assert [verdict(need_of(sizes[name])) for name in OPEN_MODELS] == ["fits"] * len(OPEN_MODELS)
    text = model_table.FILE.read_text(encoding="utf-8").partition(model_table.BEGIN)[0]
    assert [name for name in OPEN_MODELS if f"`{name}`" not in text] == []


def test_what_a_t4_cannot_hold_is_said():
    [large] = [need_of(size) for size in SIZES if size.family == "Llama 2"]
    assert large.weights < T4.memory  # and yet nothing can be generated or trained beside them
    assert (large.slots, verdict(large)) == (0, "does not fit")
    [gemma] = [need_of(size) for size in SIZES if size.name == "google/gemma-2b-it"]
    assert gemma.weights / GIB == pytest.approx(4.67, abs=0.01)
    assert gemma.cache == 2 * 18 * 1 * 256 * 2 * 64 * 1344
