"""Supervised fine-tuning: only answers count, a stopped run resumes into the same weights, and DPO begins at its end."""

from __future__ import annotations

import json
import math

import pytest
import tiny_run
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_run import adapter_tensors, make_settings, make_workspace, preference_row, same_tensors
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_helpers.errors import CaiError, SettingsChanged
from cai_helpers.machine.hardware import this_machine
from cai_helpers.stages.train import train_policy
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.training.dpo import PolicyTrainer, build_trainer, check_flight
from cai_helpers.training.memory_plan import MemoryPlan
from cai_helpers.training.policy.lora import REFERENCE
from cai_helpers.training.policy.reference_store import reference_of
from cai_helpers.training.rows.pairs import Fitting, Preferences, encode, keep_fitting, read_rows, revisions
from cai_helpers.training.sft import SupervisedTrainer, build_supervised, check_supervised
from cai_helpers.training.watch.history import Progress
from cai_helpers.training.watch.views import OF_REVISIONS, view_of
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_training_picture")  # a second each


def sft_settings(tiny, method: str = "sft", **train):
    return make_settings(tiny, method=method, sft_epochs=2, sft_learning_rate=3e-2, **train)


def supervised(tiny, workspace: Workspace, **train) -> SupervisedTrainer:
    settings = sft_settings(tiny, **train)
    rows, held_out = read_rows(workspace.train_rows), read_rows(workspace.eval_rows)
    tokenizer = AutoTokenizer.from_pretrained(settings.models.base)
    return build_supervised(settings, workspace.checkpoints, rows, held_out, tokenizer, "fp32", this_machine())


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """An uninterrupted supervised run of 12 steps, to be looked at and not changed."""
    workspace = make_workspace(tmp_path_factory.mktemp("tuned"))
    return workspace, train_policy(sft_settings(tiny), workspace)


def test_a_supervised_run_learns_reports_and_leaves_an_adapter_for_the_original_base(tiny, tuned):
    workspace, report = tuned
    assert (report.rows, report.eval_rows, report.steps, report.epochs) == (24, 6, 12, 2.0)
    assert report.loss_last < report.loss_first - 0.15
    assert report.eval_loss < report.loss_first
    assert dict(report.checks)["start"] == f"{tiny / 'stage2'}: its 28 tensors equal the file"
    assert (workspace.reports / "training.png").stat().st_size > 10_000
    assert json.loads(workspace.metrics.read_text())["train"]["best_step"] == report.best_step
    rows = list(read_jsonl(workspace.history))
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 6, 8, 9, 10, 12]
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 9, 12]
    measured = {"loss", "token_accuracy", "lr", "grad_norm", "tokens", "tokens_per_s", "memory_gib"}
    assert set(rows[0]) == {"step", "epoch", "seconds"} | measured

    kept = load_file(workspace.checkpoints / "sft" / f"checkpoint-{report.best_step}" / "adapter_model.safetensors")
    assert same_tensors(adapter_tensors(workspace), kept)
    base = AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)
    alone = PeftModel.from_pretrained(base, workspace.adapter).eval()
    pair = encode(read_rows(workspace.eval_rows)[0], AutoTokenizer.from_pretrained(tiny / "base"))
    with torch.no_grad():
        learned = -tiny_run.sequence_log_probability(alone, pair.prompt, pair.chosen) / len(pair.chosen)
    assert learned < report.loss_first - 0.15


def test_a_finished_supervised_run_is_not_repeated_and_another_method_is_refused(tiny, tuned, capsys):
    workspace, report = tuned
    assert train_policy(sft_settings(tiny), workspace) == report
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SettingsChanged, match=r"train\.method was 'sft', now 'dpo'"):
        train_policy(sft_settings(tiny, method="dpo"), workspace)


def test_loss_and_gradient_are_the_mean_over_answer_tokens_and_no_other(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    trainer = supervised(tiny, workspace)
    trainer.model.eval()  # Stage 2 has dropout
    rows = read_rows(workspace.train_rows)[:2]
    pairs = [encode(row, trainer.processing_class) for row in rows]
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    total = sum(tiny_run.sequence_log_probability(trainer.model, pair.prompt, pair.chosen) for pair in pairs)
    loss = -total / sum(len(pair.chosen) for pair in pairs)
    gradients = torch.autograd.grad(loss, trained)

    batch = trainer.data_collator(list(trainer.train_dataset.select(range(2))))
    theirs = trainer.compute_loss(trainer.model, batch)
    assert theirs.item() == pytest.approx(loss.item(), abs=1e-5)
    theirs.backward()
    for parameter, expected in zip(trained, gradients, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-5)


def test_what_is_wrong_with_the_batches_or_the_start_is_caught_before_the_first_update(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    rows, models = read_rows(workspace.train_rows), sft_settings(tiny).models
    trainer = supervised(tiny, workspace)
    answers = [encode(row, trainer.processing_class) for row in rows]
    counted, masked = sum(len(pair.chosen) for pair in answers), sum(len(pair.prompt) for pair in answers)
    found = dict(check_supervised(trainer, rows, models))
    assert found["labels"] == f"{counted} answer tokens count, {masked} prompt tokens are masked; no row is cut"

    right = trainer.train_dataset
    trainer.train_dataset = right.map(lambda row: {"labels": row["input_ids"]})
    with pytest.raises(CaiError, match="the labels of row 1 are not those of its answer"):
        check_supervised(trainer, rows, models)
    trainer.train_dataset = right.select(range(20))
    with pytest.raises(CaiError, match="24 rows became 20"):
        check_supervised(trainer, rows, models)
    next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad).data[0, 0] += 1e-6
    with pytest.raises(CaiError, match="'default' in memory is not the one in .*: 1 of 28 tensors differ"):
        check_supervised(trainer, rows, models)


def test_a_row_that_would_be_cut_is_caught(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    with pytest.raises(CaiError, match="row 1 is cut or has other tokens"):
        check_supervised(
            supervised(tiny, workspace, max_length=33), read_rows(workspace.train_rows), sft_settings(tiny).models
        )


@pytest.mark.parametrize("fresh_adapter", [False, True], ids=["Stage 2 with dropout", "new LoRA on the merged Stage 2"])
def test_a_stopped_supervised_run_resumes_into_the_same_weights_bit_for_bit(
    tiny, tuned, tmp_path, monkeypatch, fresh_adapter
):
    settings = sft_settings(tiny, fresh_adapter=fresh_adapter)
    whole, workspace = tuned[0], make_workspace(tmp_path / "stopped")
    if fresh_adapter:
        whole = make_workspace(tmp_path / "whole")
        train_policy(settings, whole)
    training_step = SupervisedTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SupervisedTrainer, "training_step", interrupted)
    with pytest.raises(CaiError, match="Stopped by hand at step 8 of 12"):
        train_policy(settings, workspace)
    monkeypatch.setattr(SupervisedTrainer, "training_step", training_step)
    seen: list[Progress] = []
    report = train_policy(settings, workspace, watch=seen.append)
    assert report.resumed_from == 6
    assert seen[-1].view is view_of(seen[-1].rows) is OF_REVISIONS
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))
    rows, whole_rows = (list(read_jsonl(one.history)) for one in (workspace, whole))
    assert [(row["step"], row.get("loss")) for row in rows] == [(row["step"], row.get("loss")) for row in whole_rows]
    if fresh_adapter:  # rank 4 of Stage 2 and 16 of the new one; the checkpoint holds the new one alone
        assert {len(tensor) for name, tensor in adapter_tensors(workspace).items() if "lora_A" in name} == {20}


@pytest.mark.parametrize("fresh_adapter", [False, True], ids=["Stage 2", "merged"])
def test_dpo_after_it_starts_from_it_and_has_it_as_its_reference(tiny, tmp_path, monkeypatch, capsys, fresh_adapter):
    workspace = make_workspace(tmp_path)
    settings = sft_settings(tiny, "sft+dpo", fresh_adapter=fresh_adapter, epochs=1, beta=0.2)
    training_step = PolicyTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PolicyTrainer, "training_step", interrupted)
    with pytest.raises(CaiError, match="Stopped by hand at step 4 of 6"):
        train_policy(settings, workspace)
    monkeypatch.setattr(PolicyTrainer, "training_step", training_step)
    capsys.readouterr()
    report = train_policy(settings, workspace)
    assert "sft: complete since" in capsys.readouterr().out  # the supervised phase is not made again
    assert report.resumed_from == 3
    assert (report.sft.steps, report.steps) == (12, 6)
    assert report.loss_first == pytest.approx(math.log(2), abs=1e-5)
    assert report.reference.startswith("a frozen copy of the supervised result: its 28 tensors equal the file")
    assert ("Stage 2 merged in" in report.reference) == fresh_adapter
    assert report.margin_last > 0.05
    assert len(list(read_jsonl(workspace.logs / "history_sft.jsonl"))) == 13

    # what the reference's log-probabilities were taken from: the supervised model, not Stage 2
    stored = json.loads((workspace.checkpoints / "reference" / "train.json").read_text())["ref_chosen_logps"]
    before = make_workspace(tmp_path / "before")
    tiny_run.make_trainer(make_settings(tiny), before)
    stage2 = json.loads((before.checkpoints / "reference" / "train.json").read_text())["ref_chosen_logps"]
    assert sum(stored) > sum(stage2) + 24


def test_a_frozen_copy_that_is_not_the_supervised_result_is_caught(tiny, tuned, tmp_path):
    settings, workspace = make_settings(tiny), make_workspace(tmp_path)
    rows, held_out = read_rows(workspace.train_rows), read_rows(workspace.eval_rows)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    trainer = build_trainer(
        settings, workspace.checkpoints, rows, held_out, tokenizer, "fp32", this_machine(),
        reference_of(workspace, "key", print), tuned[0].adapter,
    )  # fmt: skip
    data = Preferences(Fitting(rows, 0, 37), Fitting(held_out, 0, 37))
    checks = dict(check_flight(trainer, settings.models, data))
    assert "a frozen copy of the supervised result" in checks["reference"]
    next(parameter for name, parameter in trainer.model.named_parameters() if f".{REFERENCE}." in name).data += 1e-3
    with pytest.raises(CaiError, match="'ref' in memory is not the one in .*lora_adapters"):
        check_flight(trainer, settings.models, data)


def test_only_revisions_that_won_are_learned_from(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    drafts = [preference_row(number) | {"chosen_side": "base"} for number in range(24)]
    write_jsonl(workspace.train_rows, [*drafts[:20], *map(preference_row, range(20, 24))])
    fitting = keep_fitting(read_rows(workspace.train_rows), AutoTokenizer.from_pretrained(tiny / "base"), 64)
    assert [row.id for row in revisions(fitting).rows] == ["row20", "row21", "row22", "row23"]
    write_jsonl(workspace.train_rows, drafts)
    with pytest.raises(CaiError, match="0 winning revisions to learn from and 6 held out"):
        train_policy(sft_settings(tiny), workspace)


def test_a_supervised_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, monkeypatch):
    compute_loss = SupervisedTrainer.compute_loss

    def broken(self, model, inputs, **kwargs):
        loss = compute_loss(self, model, inputs, **kwargs)
        return loss * math.nan if self.state.global_step == 4 and model.training else loss

    monkeypatch.setattr(SupervisedTrainer, "compute_loss", broken)
    workspace = make_workspace(tmp_path)
    with pytest.raises(CaiError, match="The loss is not finite at step 5"):
        train_policy(sft_settings(tiny), workspace)
    assert not workspace.adapter.exists()


def test_an_empty_machine_goes_on_from_the_copies_of_the_supervised_phase_and_fresh_does_not(
    tiny, tuned, tmp_path, monkeypatch, capsys
):
    settings = sft_settings(tiny, copy_to=str(tmp_path / "drive"))
    training_step = SupervisedTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", interrupted)
        with pytest.raises(CaiError, match="Stopped by hand"):
            train_policy(settings, make_workspace(tmp_path / "lost"))
    workspace = make_workspace(tmp_path / "new")
    report = train_policy(settings, workspace)
    assert "fetched checkpoint-3, checkpoint-6 from" in capsys.readouterr().out
    assert (report.resumed_from, report.copies.split(" to ")[0]) == (6, "2 checkpoints copied")
    assert report.loss_first == tuned[1].loss_first  # the history came along
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(tuned[0]))
    assert train_policy(settings, workspace, fresh=True).resumed_from is None


@pytest.mark.parametrize(("method", "longest", "sides"), [("sft", 35, 1), ("kto", 37, 1), ("dpo", 37, 2)])
def test_every_method_plans_its_memory_before_a_model_is_loaded(tiny, tmp_path, monkeypatch, method, longest, sides):
    planned = []

    def plan(settings, dtype, machine, longest, sides):
        planned.append((longest, sides))
        return MemoryPlan(weights=2**40, adapters=0, activations=0, head=0, limit=2**30, device="a card")

    monkeypatch.setattr("cai_helpers.training.run.plan_memory", plan)
    monkeypatch.setattr("cai_helpers.training.trainer.load_base", lambda *_: pytest.fail("a model was loaded"))
    workspace = make_workspace(tmp_path)
    write_jsonl(workspace.one_sided_rows, [])
    with pytest.raises(CaiError, match="Training does not fit: it takes about 1024.0 of 1.0 GiB on a card"):
        train_policy(make_settings(tiny, method=method), workspace)
    assert planned == [(longest, sides)]
