"""Out of memory in training: the step is made again in smaller parts, and what comes out is what would have come out."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest
import torch
from tiny_run import adapter_tensors, make_settings, make_workspace, same_tensors

from cai_helpers.errors import CaiError
from cai_helpers.settings import change_settings
from cai_helpers.stages.train import train_policy
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.training.dpo import PolicyTrainer
from cai_helpers.training.kto import UnpairedTrainer
from cai_helpers.training.sft import SupervisedTrainer

pytestmark = pytest.mark.usefixtures("no_training_picture")  # a second each

TRAINERS = {"dpo": PolicyTrainer, "sft": SupervisedTrainer, "kto": UnpairedTrainer}
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


@contextmanager
def memory_for(rows: int, trainer: type, monkeypatch, where: str = "forward"):
    """Training batches of more rows do not fit: in the forward pass, or once half the gradients are there."""
    compute, failed = trainer.compute_loss, []

    def limited(self, model, inputs, *args, **options):
        count = len(inputs["input_ids"]) // (2 if trainer is PolicyTrainer else 1)
        if not model.training or count <= rows:
            return compute(self, model, inputs, *args, **options)
        failed.append(count)
        if where == "forward":
            raise torch.OutOfMemoryError(FULL)
        trained = [each for name, each in self.model.named_parameters() if each.requires_grad and ".layers.0." in name]
        hook = trained[0].register_hook(lambda gradient: out_of_memory(hook))
        return compute(self, model, inputs, *args, **options)

    def out_of_memory(hook) -> None:
        hook.remove()
        raise torch.OutOfMemoryError(FULL)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "compute_loss", limited)
        yield failed


def workspace_of(method: str, root):
    workspace = make_workspace(root)
    write_jsonl(workspace.one_sided_rows, [])
    return workspace


@pytest.mark.parametrize(
    ("method", "where"), [("dpo", "forward"), ("dpo", "backward"), ("sft", "backward"), ("kto", "backward")]
)
def test_training_that_runs_out_of_memory_goes_on_in_halves_to_the_same_adapter(
    method, where, tiny, tmp_path, monkeypatch, capsys
):
    shutil.copytree(tiny, tmp_path / "tiny")  # without dropout: parts of a batch draw other masks than the batch
    config = tmp_path / "tiny" / "stage2" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_dropout": 0.1', '"lora_dropout": 0.0'))
    settings = make_settings(
        tmp_path / "tiny", method=method, batch_size=4, accumulation=2, epochs=1, sft_epochs=1, every_steps=2
    )
    whole, halved = workspace_of(method, tmp_path / "whole"), workspace_of(method, tmp_path / "halved")
    expected = train_policy(settings, whole)
    with memory_for(1, TRAINERS[method], monkeypatch, where) as failed:
        found = train_policy(settings, halved)
    assert failed[:2] == [4, 2] if method != "dpo" else failed
    assert "out of memory at step 1: it is made again" in capsys.readouterr().out
    assert (found.steps, found.best_step) == (expected.steps, expected.best_step)
    ours, theirs = adapter_tensors(halved), adapter_tensors(whole)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=2e-5), name
    losses = [[row["loss"] for row in read_jsonl(each.history) if "loss" in row] for each in (halved, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_row_that_does_not_fit_alone_is_checkpointed_unless_that_is_forbidden(tiny, tmp_path, monkeypatch):
    compute = PolicyTrainer.compute_loss

    def limited(self, model, inputs, *args, **options):
        if model.training and not self.model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError(FULL)
        return compute(self, model, inputs, *args, **options)

    settings = make_settings(tiny, epochs=0.5, gradient_checkpointing=None)
    plain, thrifty, refused = (make_workspace(tmp_path / name) for name in ("plain", "thrifty", "refused"))
    train_policy(settings, plain)
    monkeypatch.setattr(PolicyTrainer, "compute_loss", limited)
    train_policy(settings, thrifty)
    for name, tensor in adapter_tensors(plain).items():
        assert torch.allclose(adapter_tensors(thrifty)[name], tensor, atol=2e-5)
    never = change_settings(settings, ["train.gradient_checkpointing=false"])
    with pytest.raises(CaiError, match=r"with --set train\.gradient_checkpointing=true") as error:
        train_policy(never, refused)
    assert "train.batch_size" not in error.value.todo
    train_policy(change_settings(never, ["train.gradient_checkpointing=true"]), refused)  # what it says works
    assert same_tensors(adapter_tensors(refused), adapter_tensors(thrifty))


def test_the_reference_and_the_evaluation_halve_their_batches_too(tiny, tmp_path, monkeypatch):
    settings = make_settings(tiny, batch_size=4, accumulation=1, epochs=0.5)
    whole, halved = make_workspace(tmp_path / "whole"), make_workspace(tmp_path / "halved")
    expected = train_policy(settings, whole)
    compute, failed = PolicyTrainer.compute_loss, []
    measure = PolicyTrainer.compute_ref_log_probs

    def measured(self, model, inputs):
        if len(inputs["input_ids"]) > 4:
            failed.append("reference")
            raise torch.OutOfMemoryError(FULL)
        return measure(self, model, inputs)

    def evaluated(self, model, inputs, *args, **options):
        if not model.training and len(inputs["input_ids"]) > 4:
            failed.append("evaluation")
            raise torch.OutOfMemoryError(FULL)
        return compute(self, model, inputs, *args, **options)

    monkeypatch.setattr(PolicyTrainer, "compute_ref_log_probs", measured)
    monkeypatch.setattr(PolicyTrainer, "compute_loss", evaluated)
    found = train_policy(settings, halved)
    assert {"reference", "evaluation"} == set(failed)
    assert found.eval_loss == pytest.approx(expected.eval_loss, abs=1e-5)


def test_what_was_begun_and_made_nothing_may_be_begun_with_other_settings(tiny, tmp_path, monkeypatch):
    """The advice of a run that does not fit, followed to the letter, is not refused."""
    workspace = make_workspace(tmp_path)

    def exhausted(self, *args, **options):
        raise torch.OutOfMemoryError(FULL)

    settings = make_settings(tiny, epochs=0.5, gradient_checkpointing=True)
    with monkeypatch.context() as patch:
        patch.setattr(PolicyTrainer, "compute_loss", exhausted)
        with pytest.raises(CaiError, match="cai train --fresh --set train.max_length=32"):
            train_policy(settings, workspace)
    assert train_policy(change_settings(settings, ["train.batch_size=1", "train.accumulation=4"]), workspace).steps
