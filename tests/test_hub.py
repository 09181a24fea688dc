"""What is said of names behind which nothing lies."""

import shutil
from pathlib import Path

import pytest

from cai_helpers.artifacts.record import _source
from cai_helpers.errors import CaiError
from cai_helpers.models.hub import from_hub, hub_name, identity, locate, pinned
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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The Hub's cache with one commit of somebody/tiny-chat, tagged v1."""
    repository = tmp_path / "hub" / "models--somebody--tiny-chat"
    shutil.copytree(locate("embedded:chat"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_pinned_revision_is_loaded_from_its_own_snapshot_and_recorded(revision, cache):
    name = f"somebody/tiny-chat@{revision}"
    assert pinned(name) == ("somebody/tiny-chat", revision)
    assert locate(name) == str(cache / "snapshots" / COMMIT)
    assert load_tokenizer(name)("how").input_ids
    assert identity(name) == name  # what a stage's manifest remembers
    assert _source(name, name).revision == COMMIT  # what the archive's record does


def test_a_revision_that_is_not_here_is_not_taken_for_another_one(cache, monkeypatch):
    asked = []

    def refuse(repository, revision, **options):
        asked.append((repository, revision))
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CaiError, match="somebody/tiny-chat@v2"):
        load_tokenizer("somebody/tiny-chat@v2")
    assert set(asked) == {("somebody/tiny-chat", "v2")}


@pytest.mark.parametrize(
    "name", ["google/gemma-2b-it", "./somebody/x@1", "/models/x@1", "embedded:chat@1", "x@1", "a/b@"]
)
def test_a_path_pins_nothing(name):
    assert pinned(name) is None


def test_a_name_on_the_hub_is_taken_apart_and_a_path_is_none():
    assert hub_name("google/gemma-2b-it") == ("google/gemma-2b-it", None)
    assert hub_name("google/gemma-2b-it@refs/pr/1") == ("google/gemma-2b-it", "refs/pr/1")
    assert [hub_name(name) for name in ("./a/b", "/a/b", "~/b", "a/b/c", "a", "a/", "embedded:chat")] == [None] * 7
