"""Notebook sessions: what a cell changes stays with the run."""

from __future__ import annotations

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.notebook import colab
from cai_helpers.settings import load_settings


def test_a_changed_setting_is_returned_and_kept_with_the_others(workspace):
    workspace.save_settings(load_settings("smoke", ["prompts.limit=24"]))
    changed = colab.change(workspace, "train.method=sft+dpo", "train.loss_type=[sigmoid, sft]", "train.beta=0.2")
    assert (changed.train.method, changed.train.loss_type, changed.train.beta) == ("sft+dpo", ["sigmoid", "sft"], 0.2)
    assert (changed.prompts.limit, changed.models.base, changed.preset) == (24, "embedded:chat", "smoke")
    assert load_settings(str(workspace.settings_file)) == changed


def test_a_mistake_is_named_and_nothing_is_changed(workspace):
    with pytest.raises(CaiError, match="There is no run in"):
        colab.change(workspace, "train.beta=0.2")
    workspace.save_settings(load_settings("smoke"))
    with pytest.raises(CaiError, match="train.method: Input should be"):
        colab.change(workspace, "train.method=ppo")
    with pytest.raises(CaiError, match="label_smoothing=0.1 has no effect on sigmoid"):
        colab.change(workspace, "train.label_smoothing=0.1")
    assert load_settings(str(workspace.settings_file)) == load_settings("smoke")


def test_a_command_that_trains_keeps_its_own_section_alone(workspace):
    first = load_settings("smoke", ["prompts.limit=24"])
    workspace.save_settings(first)
    workspace.save_settings(load_settings("smoke", ["train.beta=0.4"]), section="train")
    kept = load_settings(str(workspace.settings_file))
    assert (kept.prompts.limit, kept.train.beta) == (24, 0.4)
