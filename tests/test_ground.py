"""A workspace that vanishes while it is written to: renamed away, or with an empty folder in its place."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import adapter_tensors, make_settings, make_workspace, same_tensors
from typer.testing import CliRunner

from cai_helpers import ground, store
from cai_helpers.cli import app
from cai_helpers.curation.overrides import append_override
from cai_helpers.errors import WorkspaceVanished
from cai_helpers.stages.train import train_policy
from cai_helpers.store import JsonlStore, read_jsonl, write_json
from cai_helpers.training.watch.history import TrainingHistory
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_training_picture")


def take_away(root: Path, replaced: bool) -> Path:
    """As an unmounted drive leaves it: nothing under the name, or the empty folder it was mounted on."""
    moved = root.rename(root.with_name("moved"))
    if replaced:
        root.mkdir()
    return moved


def is_untouched(root: Path, replaced: bool) -> bool:
    return list(root.iterdir()) == [] if replaced else not root.exists()


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("uninterrupted"))
    train_policy(make_settings(tiny), workspace)
    return workspace


def vanish_in_training(monkeypatch, workspace: Workspace, step: int, replaced: bool, after: str) -> None:
    """Take the workspace away once training has come to `step` and `after`, a method of its history, is through."""
    method = getattr(TrainingHistory, after)

    def then_gone(self, args, state, control, **kwargs):
        method(self, args, state, control, **kwargs)
        evaluated = after != "on_log" or "eval_loss" in kwargs["logs"]
        if state.global_step == step and evaluated and workspace.root.exists():
            take_away(workspace.root, replaced)

    monkeypatch.setattr(TrainingHistory, after, then_gone)


@pytest.mark.parametrize(
    ("step", "after", "saved", "rescued", "replaced"),
    [
        (1, "on_step_end", "none of this call", "checkpoint-1", True),  # the next to write is the log
        (6, "on_log", "checkpoint-3", "checkpoint-6", True),  # transformers, which makes what folders it needs
        (6, "on_save", "checkpoint-6", "checkpoint-8", False),
    ],
)
def test_training_stops_saves_on_this_machine_and_goes_on_from_there(
    tiny, tmp_path, monkeypatch, uninterrupted, step, after, saved, rescued, replaced
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    workspace, settings = make_workspace(tmp_path / "run"), make_settings(tiny)
    with monkeypatch.context() as patch:
        vanish_in_training(patch, workspace, step, replaced, after)
        with pytest.raises(WorkspaceVanished) as caught:
            train_policy(settings, workspace)
    assert is_untouched(workspace.root, replaced)
    assert f"the newest checkpoint in it is {saved}." in caught.value.what
    copy = Path(re.search(r"saved on this machine, in (\S+):", caught.value.what)[1])
    assert copy.name == rescued

    if replaced:
        workspace.root.rmdir()
    (tmp_path / "moved").rename(workspace.root)  # the drive is there again
    shutil.copytree(copy, workspace.checkpoints / copy.name)
    ground.forget(workspace.root)  # as a new process
    train_policy(settings, workspace)
    assert f"going on from {rescued}" in (workspace.logs / "run.log").read_text()
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(uninterrupted))


@pytest.mark.parametrize("replaced", [False, True])
def test_the_command_that_trains_ends_with_exit_code_1(tiny, tmp_path, monkeypatch, replaced):
    workspace = make_workspace(tmp_path / "run")
    write_json(tmp_path / "tiny.json", make_settings(tiny).model_dump(mode="json"))
    vanish_in_training(monkeypatch, workspace, 4, replaced, "on_step_end")
    command = ["train", "--preset", str(tmp_path / "tiny.json"), "--workspace", str(workspace.root)]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 1
    assert "is not the folder any more that was being written to" in ended.output
    assert "the newest checkpoint in it is checkpoint-3" in ended.output
    assert is_untouched(workspace.root, replaced)


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True])
def test_the_command_that_generates_ends_with_exit_code_1_and_says_how_much_is_saved(workspace, monkeypatch, replaced):
    append = JsonlStore.append

    def then_gone(self, rows):
        append(self, rows)
        if self.path == workspace.traces and self.path.read_bytes().count(b"\n") >= 5:
            take_away(workspace.root, replaced)

    monkeypatch.setattr(JsonlStore, "append", then_gone)
    monkeypatch.setattr(store, "_SECONDS_A_WRITE", 0)  # else a quick machine writes all nine at once
    command = ["generate", "--preset", "smoke", "--limit", "9", "--workspace", str(workspace.root)]
    command += ["--set", "generate.batch_size=2", "--set", "generate.protocol=single/short", "--set", "threads=1"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 1
    saved = len(list(read_jsonl(workspace.root.with_name("moved") / "pairs" / "traces.jsonl")))
    assert saved >= 5
    said = re.search(r"(\d) of 9 pairs of this call were saved in it\.", ended.output)
    assert said is not None, ended.output
    assert 0 < int(said[1]) <= saved
    assert is_untouched(workspace.root, replaced)


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_that_writes_makes_the_folder_again(workspace, smoke, replaced):
    workspace.save_settings(smoke)
    store = JsonlStore(workspace.traces)
    store.append([{"id": "a"}])
    take_away(workspace.root, replaced)
    writers = [
        lambda: store.append([{"id": "b"}]),
        lambda: append_override(workspace.overrides, "k" * 16, "p", "drop"),
        lambda: workspace.say("test", "a line"),
        lambda: workspace.save_settings(smoke),
        lambda: workspace.begin("generate", {}),
        lambda: write_json(workspace.metrics, {}),
        lambda: ground.make_folder(workspace.checkpoints),
        lambda: workspace.held().__enter__(),
        lambda: Workspace(workspace.root).held().__enter__(),
    ]
    for write in writers:
        with pytest.raises(WorkspaceVanished):
            write()
        assert is_untouched(workspace.root, replaced)


def test_a_stage_whose_folder_vanishes_says_so_and_not_that_its_input_is_missing(workspace, smoke):
    workspace.save_settings(smoke)
    with pytest.raises(WorkspaceVanished, match="another folder has its name now"), workspace.held():  # noqa: PT012
        take_away(workspace.root, replaced=True)
        workspace.require(workspace.pairs, made_by="score")


def test_a_root_of_the_same_number_on_another_disk_is_another_folder(workspace, smoke, monkeypatch):
    """The topmost folder of every ext4 disk has the number 2."""
    workspace.save_settings(smoke)
    before = Path.stat

    def on_another_disk(path, **options):
        status = before(path, **options)
        return os.stat_result((*status[:2], status.st_dev + 1, *status[3:])) if path == workspace.root else status

    monkeypatch.setattr(Path, "stat", on_another_disk)
    with pytest.raises(WorkspaceVanished, match="another folder has its name now"):
        write_json(workspace.metrics, {})
    assert not workspace.metrics.exists()


def test_a_notebook_that_starts_again_takes_the_folder_that_is_there_now(workspace, monkeypatch, smoke):
    from cai_helpers.notebook import colab

    monkeypatch.setenv("CAI_WORKSPACE", str(workspace.root))
    colab.open_run("first", "smoke", keep="none")
    shutil.rmtree(workspace.root)
    with pytest.raises(WorkspaceVanished):
        workspace.save_settings(smoke)
    session = colab.open_run("first", "smoke", keep="none")
    assert json.loads(session.workspace.settings_file.read_text())["preset"] == "smoke"


def test_a_folder_that_was_never_opened_is_made_with_all_above_it(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {})
    assert (tmp_path / "a" / "b" / "c.json").exists()
