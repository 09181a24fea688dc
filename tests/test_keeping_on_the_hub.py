"""A run kept in a private repository on the Hub. The Hub is a stand-in that speaks HTTP on loopback; the client is
huggingface_hub itself."""

from __future__ import annotations

import pytest
from hub_stand_in import TOKEN, Hub, Repository
from huggingface_hub import constants

from cai_helpers.errors import CaiError
from cai_helpers.keeping.keeper import keep
from cai_helpers.keeping.listing import LIST
from cai_helpers.store import JsonlStore
from cai_helpers.workspace import Workspace

REPOSITORY = ("model", "me/run")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    for name, value in server.constants(tmp_path / "hub").items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    workspace = Workspace(tmp_path / "run")
    JsonlStore(workspace.traces).append([{"id": str(number)} for number in range(20)])
    folder = workspace.checkpoints / "checkpoint-6"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 999)
    (folder / "complete.json").write_text("{}")
    return workspace


def test_a_run_goes_into_a_private_repository_in_one_commit_and_comes_back_on_an_empty_machine(
    hub, workspace, tmp_path
):
    with keep(workspace, "hub:me/run") as keeper:
        assert keeper.save()
        assert keeper.line().startswith("safe at hub:me/run: 20 pairs, checkpoint 6, 20")
    repository = hub.repositories[REPOSITORY]
    assert repository.private
    assert len(repository.commits) == 2  # the first makes it
    assert set(repository.files) - {".gitattributes"} == {
        LIST,
        "pairs/traces.jsonl",
        "checkpoints/checkpoint-6/adapter_model.safetensors",
        "checkpoints/checkpoint-6/complete.json",
    }
    other = Workspace(tmp_path / "elsewhere")
    with keep(other, "hub:me/run"):
        assert other.traces.read_bytes() == workspace.traces.read_bytes()
        weights = "checkpoint-6/adapter_model.safetensors"
        assert (other.checkpoints / weights).read_bytes() == (workspace.checkpoints / weights).read_bytes()


def test_nothing_is_sent_where_nothing_changed_and_what_was_removed_is_removed(hub, workspace):
    with keep(workspace, "hub:me/run") as keeper:
        keeper.save()
        keeper.save()
        assert len(hub.repositories[REPOSITORY].commits) == 2
        for file in (workspace.checkpoints / "checkpoint-6").iterdir():
            file.unlink()
        keeper.save()
    assert set(hub.repositories[REPOSITORY].files) == {".gitattributes", LIST, "pairs/traces.jsonl"}


def test_a_commit_that_fails_is_said_and_made_again(hub, workspace):
    with keep(workspace, "hub:me/run") as keeper:
        hub.fail_commits = 9
        assert not keeper.save()
        assert keeper.line().startswith("NOT kept at hub:me/run since ")
        hub.fail_commits = 0
        assert keeper.save()
    assert hub.repositories[REPOSITORY].files["pairs/traces.jsonl"] == workspace.traces.read_bytes()


def test_of_two_machines_the_second_to_write_is_told_and_overwrites_nothing(hub, workspace, tmp_path):
    other = Workspace(tmp_path / "elsewhere")
    with keep(workspace, "hub:me/run") as keeper:
        keeper.save()
        with keep(other, "hub:me/run") as second:
            JsonlStore(other.traces).append([{"id": "elsewhere"}])
            assert second.save()
        theirs = hub.repositories[REPOSITORY].files["pairs/traces.jsonl"]
        JsonlStore(workspace.traces).append([{"id": "here"}])
        assert not keeper.save()
        assert "another machine has written to hub:me/run" in keeper.line()
    assert hub.repositories[REPOSITORY].files["pairs/traces.jsonl"] == theirs


@pytest.mark.parametrize(
    ("private", "files", "says"), [(False, {}, "is public"), (True, {"model.bin": b"x"}, "no list of a kept run")]
)
def test_a_public_repository_or_one_that_holds_something_else_is_refused(hub, workspace, private, files, says):
    hub.repositories[REPOSITORY] = Repository(private)
    hub.repositories[REPOSITORY].commit(files, "theirs")
    commits = len(hub.repositories[REPOSITORY].commits)
    with pytest.raises(CaiError, match=says):
        keep(workspace, "hub:me/run")
    assert len(hub.repositories[REPOSITORY].commits) == commits
