"""A workspace of somebody else writes and sends nowhere: what leaves it is named by the person, in the command at hand."""

from __future__ import annotations

import pytest
from tiny_run import make_settings, make_workspace

from cai_helpers.errors import CaiError
from cai_helpers.settings import change_settings, load_settings
from cai_helpers.stages.train import train_policy

pytestmark = pytest.mark.usefixtures("no_training_picture")


@pytest.mark.parametrize("setting", ["train.copy_to={place}", "train.report_to=wandb"])
def test_where_only_a_file_says_that_training_writes_or_sends_elsewhere_it_does_not_begin(setting, tiny, tmp_path):
    workspace, place = make_workspace(tmp_path / "theirs"), tmp_path / "mine" / "copies"
    place.parent.mkdir()
    name, value = setting.format(place=place).split("=")
    workspace.save_settings(change_settings(make_settings(tiny, epochs=0.5), [f"{name}={value}"]))
    opened = load_settings(str(workspace.settings_file))
    with pytest.raises(CaiError, match=f"only a settings file names {value}") as refused:
        train_policy(opened, workspace)
    assert f"repeat --set {name}={value}" in refused.value.todo
    assert not place.exists()
    assert not workspace.checkpoints.exists()


def test_repeated_by_the_person_or_put_right_it_begins(tiny, tmp_path):
    workspace, place = make_workspace(tmp_path / "run"), tmp_path / "copies"
    workspace.save_settings(make_settings(tiny, epochs=0.5, copy_to=str(place)))
    file = str(workspace.settings_file)
    assert load_settings(file, ["train.copy_to=null"]).by_file_alone == frozenset()
    assert change_settings(load_settings(file), ["train.beta=0.2"]).by_file_alone == {"train.copy_to"}
    train_policy(load_settings(file, [f"train.copy_to={place}"]), workspace)
    assert [path.name.split("-")[0] for path in place.iterdir()] == ["training"]


def test_whether_a_person_named_it_stands_in_no_file(tiny, tmp_path):
    workspace = make_workspace(tmp_path / "run")
    workspace.save_settings(make_settings(tiny, copy_to=str(tmp_path / "copies")))
    for name in ("by_file_alone", "_by_file_alone"):
        assert name not in workspace.settings_file.read_text()
        text = workspace.settings_file.read_text().replace('"preset"', f'"{name}": [], "preset"')
        (tmp_path / "forged.json").write_text(text)
        with pytest.raises(CaiError, match="by_file_alone"):
            load_settings(str(tmp_path / "forged.json"))
