"""A run and its name, as the form's cell finds it: begun, found again, changed only where the form was, started over."""

from __future__ import annotations

import json

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.notebook import colab, places, runs
from cai_helpers.notebook.words import in_notebook_words
from cai_helpers.settings import load_settings
from cai_helpers.workspace import Workspace


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("CAI_WORKSPACE", "CAI_PRESET"):
        monkeypatch.delenv(name, raising=False)


def begun(workspace: Workspace, stage: str, **fingerprint) -> None:
    """As a stage leaves it that was begun and is not complete."""
    workspace.begin(stage, fingerprint)


def with_pairs(workspace: Workspace) -> None:
    workspace.begin("generate", {"generate.temperature": 0.7, "models.base": "embedded:chat"})
    workspace.pairs_dir.mkdir()
    workspace.traces.write_text("{}\n")


def kept(workspace: Workspace):
    return load_settings(str(workspace.settings_file))


def test_a_run_lies_in_a_folder_of_its_name(tmp_path, capsys):
    session = colab.open_run("first", "smoke")
    assert session.workspace.root == tmp_path / "cai" / "first"
    assert session.settings == load_settings("smoke")
    assert "Run first: new, preset smoke" in capsys.readouterr().out


def test_opening_a_notebook_again_finds_the_run_as_it_is(capsys):
    _, workspace = colab.open_run("first", "smoke", {"training_prompts": 40})
    colab.change(workspace, "train.beta=0.2", "models.adapter=null")
    before = workspace.settings_file.read_bytes()
    capsys.readouterr()
    settings, _ = colab.open_run("first", "smoke", {"training_prompts": 40})
    assert (settings.train.beta, settings.models.adapter, settings.prompts.limit) == (0.2, None, 40)
    assert workspace.settings_file.read_bytes() == before
    assert "Its settings stay as they are: the form asks for nothing else." in capsys.readouterr().out


def test_only_what_was_changed_in_the_form_is_changed_and_it_says_so(capsys):
    _, workspace = colab.open_run("first", "t4", {"base_model": "Qwen/Qwen3-0.6B"})
    colab.change(workspace, "train.beta=0.2")
    capsys.readouterr()
    settings, _ = colab.open_run("first", "t4", {"base_model": "Qwen/Qwen3-0.6B", "training_prompts": 600})
    assert (settings.train.beta, settings.prompts.limit, settings.models.base) == (0.2, 600, "Qwen/Qwen3-0.6B")
    assert "Changed, as the form was: prompts.limit was 2500, now 600. All else stays." in capsys.readouterr().out
    settings, _ = colab.open_run("first", "t4", {"training_prompts": 600})
    assert (settings.models.base, settings.train.beta) == ("google/gemma-2b-it", 0.2)


def test_another_preset_on_a_run_without_work_is_taken(capsys):
    colab.open_run("first", "smoke")
    assert colab.open_run("first", "a100").settings == load_settings("a100")
    assert "nothing was made with the preset smoke yet" in capsys.readouterr().out


def test_smoke_first_and_then_t4_under_one_name_is_told_in_a_notebooks_words():
    _, workspace = colab.open_run("first", "smoke")
    with_pairs(workspace)
    with pytest.raises(CaiError) as refused:
        colab.open_run("first", "t4")
    assert refused.value.what.startswith("The run first was made with the preset smoke, and the form says t4")
    assert "Type another run_name in the form, such as first-t4." in refused.value.todo
    assert "--" not in str(refused.value)
    assert kept(workspace) == load_settings("smoke")
    assert colab.open_run("first-t4", "t4").settings == load_settings("t4")


def test_fresh_moves_the_work_and_begins_by_the_form(capsys):
    _, workspace = colab.open_run("first", "smoke")
    with_pairs(workspace)
    assert colab.open_run("first", "t4", fresh=True).settings == load_settings("t4")
    assert not workspace.pairs_dir.exists()
    [archived] = (workspace.root / "archive").iterdir()
    assert (archived / "pairs" / "traces.jsonl").read_text() == "{}\n"
    assert json.loads((archived / "settings.json").read_text())["preset"] == "smoke"
    assert str(archived) in capsys.readouterr().out


def test_the_button_starts_over(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    _, workspace = colab.open_run("first", "smoke")
    with_pairs(workspace)
    with pytest.raises(CaiError, match="made with the preset smoke"):
        colab.open_run("first", "t4")
    [box] = shown
    box.children[0].click()
    assert colab.open_run("first", "t4").settings == load_settings("t4")


def test_starting_over_keeps_the_settings_and_what_was_archived_before():
    _, workspace = colab.open_run("first", "smoke")
    colab.change(workspace, "train.beta=0.2")
    for _ in range(2):
        with_pairs(workspace)
        colab.start_over(workspace)
    assert kept(workspace).train.beta == 0.2
    assert len(list((workspace.root / "archive").iterdir())) == 2


def test_a_method_changed_after_training_began_names_both_ways_out():
    _, workspace = colab.open_run("first", "smoke")
    begun(workspace, "train", **{"train.method": "dpo", "train.beta": 0.1})
    workspace.checkpoints.mkdir()
    with pytest.raises(CaiError) as refused:
        colab.change(workspace, "train.method=sft+dpo")
    assert "The run first has a training made with train.method = 'dpo'; with 'sft+dpo'" in refused.value.what
    assert "Type another run_name in the form, such as first-2" in refused.value.todo
    assert 'settings = colab.change(workspace, "train.method=sft+dpo", fresh=True)' in refused.value.todo
    assert kept(workspace).train.method == "dpo"
    changed = colab.change(workspace, "train.method=sft+dpo", fresh=True)
    assert changed.train.method == kept(workspace).train.method == "sft+dpo"
    assert workspace.begun("train") is None
    assert not workspace.checkpoints.exists()


def test_a_setting_that_nothing_was_made_with_is_changed_at_any_time():
    _, workspace = colab.open_run("first", "smoke")
    with_pairs(workspace)
    assert colab.change(workspace, "train.beta=0.2", "evaluate.temperature=0.7").train.beta == 0.2
    with pytest.raises(
        CaiError, match=r"has pairs made with generate.temperature = 0.7; with 0.9 it would mix two runs"
    ):
        colab.change(workspace, "generate.temperature=0.9")


def test_a100_gets_its_own_number_and_the_forms_number_wins_where_it_is_typed():
    assert colab.open_run("large", "a100", {"training_prompts": 0}).settings.prompts == load_settings("a100").prompts
    assert colab.open_run("small", "a100", {"training_prompts": 600}).settings.prompts.limit == 600


def test_smoke_says_what_of_the_form_it_does_not_use(capsys):
    form = {"base_model": "me/model", "training_prompts": 40, "scorer": "me/judge"}
    assert colab.open_run("first", "smoke", form).settings == load_settings("smoke", ["prompts.limit=40"])
    assert "does not use base_model, scorer of the form" in capsys.readouterr().out


def test_every_field_of_the_form_arrives_in_the_settings():
    form = {
        "base_model": "me/model", "stage2_adapter": "me/stage2", "prompts": "mine: #2.jsonl", "training_prompts": 50,
        "scorer": "me/judge:chat:2048",
    }  # fmt: skip
    settings = colab.open_run("mine", "t4", form).settings
    assert (settings.models.base, settings.models.adapter) == ("me/model", "me/stage2")
    assert (settings.prompts.source, settings.prompts.limit) == ("mine: #2.jsonl", 50)
    reward = settings.models.reward
    assert (reward.model, reward.input, reward.max_length) == ("me/judge", "chat", 2048)
    assert colab.open_run("own", "t4", {"scorer": "the model itself"}).settings.score.by == "ai_feedback"
    with pytest.raises(CaiError, match="The form has no field 'adapter'"):
        colab.open_run("typo", "t4", {"adapter": "me/stage2"})


@pytest.mark.parametrize("name", ["", "../else", "a/b", ".hidden", "x" * 61])
def test_a_name_that_no_folder_should_have_is_refused(name):
    with pytest.raises(CaiError, match="cannot be the name of a run"):
        colab.open_run(name, "smoke")


def test_a_later_notebook_without_a_run_says_which_ones_there_are():
    colab.open_run("first", "smoke")
    with pytest.raises(CaiError, match=r"There is no run secnod yet .* On this machine there are: first\.") as missing:
        colab.resume("secnod")
    assert "Open notebook 00_setup first" in missing.value.todo
    assert colab.resume("first").settings == load_settings("smoke")


def test_a_run_that_no_form_began_keeps_its_settings(tmp_path, capsys):
    workspace = Workspace(tmp_path / "cai" / "first")
    workspace.save_settings(load_settings("smoke", ["train.beta=0.3"]))
    settings, _ = colab.open_run("first", "smoke", {"training_prompts": 40})
    assert (settings.train.beta, settings.prompts.limit) == (0.3, None)
    assert "It was not begun by a form: its settings stay" in capsys.readouterr().out


# --- in Colab ---


def test_in_colab_a_run_is_local(colab_runtime):
    _, workspace = colab.open_run("first", "smoke", keep="none")
    assert workspace.root == colab_runtime.content / "cai" / "first"


def test_on_a_fresh_runtime_the_same_form_brings_everything_back(colab_runtime, capsys):
    form = {"training_prompts": 40}
    _, workspace = colab.open_run("first", "smoke", form, keep="drive")
    colab.change(workspace, "train.beta=0.2")
    with_pairs(workspace)
    runs._KEEPERS.pop(workspace.root).close()  # as the end of a process does
    assert (colab_runtime.cloud / "cai" / "first" / "pairs" / "traces.jsonl").exists()
    colab_runtime.lose()
    settings, workspace = colab.open_run("first", "smoke", form, keep="drive")
    assert (settings.train.beta, settings.prompts.limit) == (0.2, 40)
    assert workspace.traces.read_text() == "{}\n"
    assert workspace.root == colab_runtime.content / "cai" / "first"
    runs._KEEPERS.pop(workspace.root).close()
    colab_runtime.lose()
    settings, workspace = colab.resume("first", "drive")
    assert settings.train.beta == 0.2
    capsys.readouterr()
    settings, _ = colab.open_run("first", "t4", form, keep="drive", fresh=True)
    runs._KEEPERS.pop(workspace.root).close()
    assert not (colab_runtime.cloud / "cai" / "first" / "pairs").exists()
    colab_runtime.lose()
    assert colab.resume("first", "drive").settings == settings == load_settings("t4", ["prompts.limit=40"])
    runs._KEEPERS.pop(workspace.root).close()


def test_what_is_typed_as_a_folder_of_drive_is_never_a_name_on_the_hub(colab_runtime):
    drive = colab_runtime.content / "drive" / "MyDrive"
    for text in ("MyDrive/stage2", "drive/MyDrive/stage2", "/content/drive/MyDrive/stage2", "My Drive/stage2"):
        assert places.path_of(text) == str(drive / "stage2")
    assert places.path_of("me/MyDrive") == "me/MyDrive"
    assert drive.is_dir()  # it was mounted for them


def test_a_folder_of_drive_where_there_is_no_drive_is_said():
    with pytest.raises(CaiError, match="MyDrive/stage2 names a folder of Google Drive, and this machine has none"):
        colab.open_run("first", "t4", {"stage2_adapter": "MyDrive/stage2"})


def test_a_drive_that_was_not_allowed_is_said(colab_runtime):
    colab_runtime.drive.DENIED = True
    with pytest.raises(CaiError, match="Google Drive was not mounted: Error: credential propagation") as refused:
        colab.open_run("first", "smoke", keep="drive")
    assert 'keep = "none"' in refused.value.todo


# --- words ---


def test_what_a_stage_says_at_a_command_line_is_said_in_a_notebooks_words(workspace, smoke):
    from cai_helpers.stages.generate import generate_pairs

    workspace.begin("generate", {"seed": 1, "generate.protocol": "single/short"})
    with pytest.raises(CaiError) as refused:
        generate_pairs(smoke, workspace)
    assert "run `cai generate --fresh`" in refused.value.todo
    assert "give another --workspace" in refused.value.todo
    told = in_notebook_words(refused.value.todo)
    assert "colab.start_over(workspace)" in told
    assert "or type another run_name in the form" in told
    assert "--" not in told
    assert "`cai" not in told
