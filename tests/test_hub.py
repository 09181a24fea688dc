"""What is said of names behind which nothing lies."""

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.models.hub import from_hub, locate
from cai_helpers.models.language import load_tokenizer


@pytest.mark.parametrize("name", ["./stage2", "../stage2", "~/stage2", "{tmp}/stage2", "runs/first/stage2", "stage2/"])
def test_a_folder_that_is_not_there_is_called_a_folder(name, tmp_path):
    name = name.replace("{tmp}", str(tmp_path))
    with pytest.raises(CaiError) as caught:
        load_tokenizer(name)
    assert caught.value.what.startswith(f"There is no folder {name}")
    assert "Check the path" in caught.value.todo


def test_the_part_of_a_path_that_is_missing_is_named(tmp_path):
    with pytest.raises(CaiError, match=f"its part {tmp_path / 'gone'} is missing already"):
        load_tokenizer(str(tmp_path / "gone" / "stage2"))


def test_an_embedded_model_that_is_not_there_names_those_that_are():
    with pytest.raises(CaiError) as caught:
        load_tokenizer("embedded:chatt")
    assert caught.value.todo == "Take one of embedded:chat, embedded:reward, embedded:stage2."


def test_a_name_of_the_hub_is_looked_for_on_the_hub(tmp_path, monkeypatch):
    """Also where a folder of the owner's name lies here."""
    (tmp_path / "google").mkdir()
    monkeypatch.chdir(tmp_path)
    assert from_hub(lambda: "loaded", "google/gemma-2b-it") == "loaded"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/stage2") == str(tmp_path / "stage2")
