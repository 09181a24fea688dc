"""Onto the Hub: private, one commit each, nothing twice, and nobody else's work overwritten. The Hub is a stand-in that
speaks HTTP on loopback; the client is huggingface_hub itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
from hub_stand_in import TOKEN, Hub, Repository
from huggingface_hub import constants
from typer.testing import CliRunner

from cai_helpers.cli import app

pytestmark = pytest.mark.slow


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def push(hub, small_run, tmp_path, monkeypatch):
    """`cai push` in this process, which reaches the stand-in."""
    for name, value in hub.constants(tmp_path / "hub").items():
        monkeypatch.setattr(constants, name, value)

    def run(*options: str, token: str = TOKEN, code: int = 0) -> str:
        monkeypatch.setenv("HF_TOKEN", token)
        done = CliRunner().invoke(app, ["push", "--workspace", str(small_run.root), *options])
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_the_command_itself_finds_the_hub_by_hf_endpoint(hub, small_run, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [
        sys.executable,
        "-m",
        "cai_helpers.cli",
        "push",
        "--workspace",
        str(small_run.root),
        "--dataset",
        "me/pairs",
    ]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert hub.repositories["dataset", "me/pairs"].private


BOTH = ("--to", "me/policy", "--dataset", "me/pairs")


def test_what_is_pushed_lies_there_whole_in_one_commit_each_and_a_second_push_changes_nothing(hub, push, small_run):
    listed = push(*BOTH, "--dry-run")
    assert "adapter_model.safetensors (" in listed
    assert hub.repositories == {}
    assert not [request for request in hub.requests if not request.startswith(("GET", "HEAD"))]

    assert push(*BOTH).count("commit ") == 2
    model, pairs = hub.repositories["model", "me/policy"], hub.repositories["dataset", "me/pairs"]
    assert model.private
    assert pairs.private
    assert [len(repository.commits) for repository in (model, pairs)] == [2, 2]  # the first is the Hub's own
    assert model.files["adapter_model.safetensors"] == (small_run.adapter / "adapter_model.safetensors").read_bytes()
    assert 'PeftModel.from_pretrained(model, "me/policy")' in model.files["USE.md"].decode()
    assert 'load_dataset("me/pairs")' in model.files["USE.md"].decode()
    assert "- me/pairs\n" in model.files["README.md"].decode().split("\n---\n")[0]
    assert pairs.files["README.md"].startswith(b"---\nlicense")
    with zipfile.ZipFile(small_run.zip) as archive:
        rows = archive.read("stage3_constitutional/dpo_dataset/train.parquet")
    assert pairs.files["dpo_dataset/train.parquet"] == rows

    asked, sent = len(hub.requests), len(hub.uploaded)
    assert "all of it is there already" in push(*BOTH)
    assert [len(repository.commits) for repository in (model, pairs)] == [2, 2]
    assert len(hub.uploaded) == sent
    assert not [request for request in hub.requests[asked:] if not request.startswith(("GET", "HEAD"))]


def test_a_push_that_was_cut_off_goes_on_and_sends_no_large_file_twice(hub, push):
    hub.fail_commits = 99
    said = push("--to", "me/policy", code=1)
    assert "The Hub did not take it for me/policy" in said
    assert "Run the same command again" in said
    sent = list(hub.uploaded)
    assert sent
    hub.fail_commits = 0
    push("--to", "me/policy")
    assert hub.uploaded == sent
    assert len(hub.repositories["model", "me/policy"].commits) == 2


def test_what_it_did_not_write_is_not_overwritten_without_a_yes(hub, push):
    hub.repositories["model", "me/policy"] = repository = Repository(private=True)
    repository.commit({"README.md": b"my own words", "mine.txt": b"precious"}, "mine")
    assert "OVERWRITES what it did not write  README.md" in " ".join(
        push("--to", "me/policy", "--dry-run").split("   ")
    )
    said = push("--to", "me/policy", code=1)
    assert "me/policy holds README.md, which `cai push` did not write" in said
    assert repository.files["README.md"] == b"my own words"
    assert len(repository.commits) == 2


def test_its_own_files_are_replaced_and_what_it_wrote_and_wants_no_more_goes(hub, push):
    push("--to", "me/policy")
    repository = hub.repositories["model", "me/policy"]
    noted = json.loads(repository.files["cai_written.json"])
    old = b"an older card of ours"
    from hub_stand_in import blob

    noted |= {"USE.md": ["", blob(old)], "gone.txt": ["", blob(b"gone")]}
    changes = {
        "USE.md": old,
        "gone.txt": b"gone",
        "theirs.txt": b"theirs",
        "cai_written.json": json.dumps(noted).encode(),
    }
    repository.commit(changes, "as an earlier version had left it")
    push("--to", "me/policy")
    assert repository.files["USE.md"] != old
    assert "gone.txt" not in repository.files
    assert repository.files["theirs.txt"] == b"theirs"


def test_a_public_repository_takes_nothing_unless_that_is_said(hub, push):
    hub.repositories["model", "me/policy"] = repository = Repository(private=False)
    assert "nothing is made public unless you say so" in push("--to", "me/policy", code=1)
    assert len(repository.commits) == 1
    push("--to", "me/policy", "--public")
    assert len(repository.commits) == 2
    push("--dataset", "me/open", "--public")
    assert not hub.repositories["dataset", "me/open"].private


def test_a_token_without_the_right_is_told_in_words(hub, push):
    assert "with the right to write" in push("--to", "me/policy", token="hf_wrong", code=1)
    assert hub.repositories == {}


def test_a_hub_that_is_away_is_told_in_words(hub, push, small_run):
    hub.shutdown()
    hub.server_close()
    assert "the Hub cannot be reached" in push("--to", "me/policy", code=1)


def test_without_a_repository_or_with_a_malformed_one_nothing_is_asked(hub, push):
    assert "No repository is named" in push(code=1)
    assert "policy is no name on the Hub" in push("--to", "policy", code=1)
    assert hub.requests == []
