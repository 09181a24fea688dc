"""A sweep: short runs side by side, the reference computed once, the best by a stated rule trained in full."""

from __future__ import annotations

import json

import pytest
from tiny_run import make_settings, make_workspace
from trl import DPOTrainer
from typer.testing import CliRunner

from cai_helpers.cli import app
from cai_helpers.errors import CaiError
from cai_helpers.settings import load_settings
from cai_helpers.sweep import RULE, Run, choose, in_full, parse_sweep, sweep
from cai_helpers.training.dpo import PolicyTrainer
from cai_helpers.workspace import Workspace


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch):
    monkeypatch.setattr("cai_helpers.pages.training_picture.save_training_plot", lambda workspace: None)


def run(value: float, accuracy: float, margin: float, kl: float) -> Run:
    return Run(value=value, accuracy=accuracy, margin=margin, kl=0.01, kl_in_full=kl, steps=10, pairs=20)


CHOICES = {
    "the most accurate": ([run(1, 0.70, 9, 0.1), run(2, 0.95, 2, 0.1), run(3, 0.80, 9, 0.1)], 2),
    "within one pair the larger margin": ([run(1, 0.90, 5, 0.1), run(2, 0.95, 2, 0.1)], 1),
    "far from the reference is passed over": ([run(1, 1.00, 50, 0.9), run(2, 0.80, 2, 0.1)], 2),
    "unless all are": ([run(1, 1.00, 50, 0.9), run(2, 0.80, 2, 0.7)], 1),
    "of equals the first": ([run(1, 0.90, 5, 0.1), run(2, 0.90, 5, 0.1)], 1),
}


@pytest.mark.parametrize(("runs", "chosen"), CHOICES.values(), ids=CHOICES)
def test_the_rule_chooses(runs, chosen):
    assert choose(runs).value == chosen


def test_three_times_the_training_is_expected_to_go_nine_times_as_far():
    assert in_full(0.01, 1, 3) == pytest.approx(0.09)
    assert in_full(0.01, 2, 1) == 0.01


def test_a_sweep_is_read():
    assert parse_sweep("beta=0.05,0.1, 0.3") == ("beta", [0.05, 0.1, 0.3])
    assert parse_sweep("train.lora_r=4,8") == ("lora_r", [4, 8])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("betta=1,2", "'betta' is no number of the train section"),
        ("loss_type=ipo,robust", "'loss_type' is no number"),
        ("gradient_checkpointing=0,1", "'gradient_checkpointing' is no number"),
        ("beta=0.1", "does not give two or more different numbers"),
        ("beta=0.1,0.1", "does not give two or more different numbers"),
        ("beta=0.1,high", "does not give two or more different numbers"),
        ("beta", "does not give two or more different numbers"),
    ],
)
def test_what_is_no_sweep_is_refused(request_, message):
    with pytest.raises(CaiError, match=message):
        parse_sweep(request_)


def test_a_value_out_of_range_is_refused_before_anything_trains(tiny, tmp_path):
    with pytest.raises(CaiError, match="train.beta: Input should be greater than 0"):
        sweep(make_settings(tiny), make_workspace(tmp_path), "beta=0.1,-1")
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_needs_pairs(tiny, tmp_path):
    with pytest.raises(CaiError, match="train.method=sft learns from the better side alone"):
        sweep(make_settings(tiny, method="sft"), make_workspace(tmp_path), "beta=0.1,0.2")


def count_reference_passes(monkeypatch) -> list[str]:
    computed, original = [], DPOTrainer._precompute_ref_logps

    def counted(self, dataset, name, batch_size):
        computed.append(name)
        return original(self, dataset, name, batch_size)

    monkeypatch.setattr(DPOTrainer, "_precompute_ref_logps", counted)
    return computed


def test_a_sweep_resumes_shares_the_reference_and_goes_on_with_the_chosen_value(tiny, tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path)
    settings = make_settings(tiny, epochs=1, sweep_epochs=0.5)
    workspace.save_settings(settings)
    computed = count_reference_passes(monkeypatch)
    command = ["train", "--workspace", str(tmp_path), "--sweep", "learning_rate=1e-5,3e-3"]

    training_step = PolicyTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.args.learning_rate == 3e-3:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PolicyTrainer, "training_step", interrupted)
    stopped = CliRunner().invoke(app, command)
    assert (stopped.exit_code, "Stopped by hand at step 0 of 3" in stopped.output) == (130, True)
    monkeypatch.setattr(PolicyTrainer, "training_step", training_step)

    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.output.count("complete since") == 1  # the first run
    assert computed == ["train", "eval"]  # by two short runs and the full one, together
    assert f"chosen               learning_rate=0.003 ({RULE})" in result.output
    short, chosen = (Workspace(tmp_path / "sweep" / f"learning_rate={value}") for value in ("1e-05", "0.003"))
    assert json.loads(short.metrics.read_text())["train"]["steps"] == 3
    assert chosen.adapter.exists()
    metrics = json.loads(workspace.metrics.read_text())
    assert metrics["train"]["steps"] == 6
    assert [one["value"] for one in metrics["sweep"]["runs"]] == [1e-5, 3e-3]
    slow, fast = metrics["sweep"]["runs"]
    assert fast["margin"] > slow["margin"]
    assert fast["kl"] > slow["kl"] >= 0
    assert load_settings(str(workspace.settings_file)).train.learning_rate == 3e-3

    again = CliRunner().invoke(app, ["train", "--workspace", str(tmp_path), "--sweep", "beta=0.1,0.5", "--fresh"])
    assert again.exit_code == 0, again.output
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["beta=0.1", "beta=0.5"]
    assert list(tmp_path.glob("archive/*/sweep/learning_rate=0.003/models/lora_adapters"))
    assert list(tmp_path.glob("archive/*/models/lora_adapters"))
    assert computed == ["train", "eval"] * 2


def test_the_supervised_phase_is_made_once_and_a_swept_number_that_changes_the_reference_computes_it_again(
    tiny, tmp_path, monkeypatch
):
    workspace = make_workspace(tmp_path)
    settings = make_settings(tiny, method="sft+dpo", sft_epochs=0.5, sft_learning_rate=3e-2, sweep_epochs=0.5)
    computed = count_reference_passes(monkeypatch)
    report, chosen = sweep(settings, workspace, "ld_alpha=0.3,1")
    assert computed == ["train", "eval"] * 2
    adapters = [
        path.read_bytes() for path in tmp_path.glob("sweep/*/checkpoints/sft/adapter/adapter_model.safetensors")
    ]
    shared = workspace.checkpoints / "sft" / "adapter" / "adapter_model.safetensors"
    assert set(adapters) == {shared.read_bytes()}
    assert len(list(tmp_path.glob("sweep/*/checkpoints/sft/checkpoint-*"))) == 1  # trained by the first alone
    assert chosen.train.ld_alpha == report.chosen
    assert chosen.train.epochs == settings.train.epochs
