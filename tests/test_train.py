"""Training: the loss is the paper's, the reference is Stage 2, a killed run resumes into the same weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_run import (
    adapter_tensors,
    check,
    make_settings,
    make_trainer,
    make_workspace,
    preference_row,
    same_tensors,
    sequence_log_probability,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_helpers.errors import CaiError, NotEnoughPairs, SettingsChanged
from cai_helpers.schema import PreferenceRow
from cai_helpers.stages.train import train_policy
from cai_helpers.store import read_jsonl, write_json, write_jsonl
from cai_helpers.training.dpo import PolicyTrainer
from cai_helpers.training.policy.lora import REFERENCE
from cai_helpers.training.rows.pairs import encode, keep_fitting, read_rows
from cai_helpers.training.watch import checkpoints
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_training_picture")  # a second each


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """One uninterrupted run of 12 steps that the tests look at, and must not change."""
    workspace = make_workspace(tmp_path_factory.mktemp("trained"))
    return workspace, train_policy(make_settings(tiny), workspace)


def test_a_run_learns_and_reports_what_it_did(trained):
    workspace, report = trained
    assert (report.pairs, report.eval_pairs, report.steps, report.epochs) == (24, 6, 12, 2.0)
    assert report.loss_first == pytest.approx(math.log(2), abs=1e-5)
    assert report.loss_last < 0.65
    assert report.margin_first == pytest.approx(0, abs=1e-5)
    assert report.margin_last > 0.1
    assert (report.accuracy_first, report.accuracy_last) == (0.5, 1.0)
    assert report.eval_loss < 0.65
    assert (workspace.reports / "training.png").stat().st_size > 10_000
    assert json.loads(workspace.metrics.read_text())["train"]["best_step"] == report.best_step
    assert ("loss first → last", f"0.6931 → {report.loss_last:.4f}") in report.lines()


def test_history_has_a_row_for_each_logging_step_and_each_evaluation(trained):
    workspace, _ = trained
    rows = list(read_jsonl(workspace.history))
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 6, 8, 9, 10, 12]  # each second, each third
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 9, 12]
    assert set(rows[0]) == {
        "step", "epoch", "seconds", "loss", "accuracy", "margin", "rewards_chosen", "rewards_rejected", "logps_chosen",
        "logps_rejected", "lr", "grad_norm", "tokens", "tokens_per_s", "memory_gib",
    }  # fmt: skip
    assert all(row["tokens_per_s"] > 0 for row in rows if "loss" in row)


def test_a_finished_run_is_not_repeated(tiny, trained):
    workspace, report = trained
    before = workspace.history.stat().st_mtime_ns
    assert train_policy(make_settings(tiny, log_steps=7), workspace) == report  # how often it speaks changes nothing
    assert workspace.history.stat().st_mtime_ns == before


def test_the_saved_adapter_alone_on_the_original_base_is_the_trained_policy(tiny, trained):
    workspace, report = trained
    assert {path.name for path in workspace.adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
    }
    config = json.loads((workspace.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny / "base")

    settings = make_settings(tiny)
    policy = make_trainer(settings, make_workspace(workspace.root.parent / "other"))
    policy._load_from_checkpoint(str(workspace.checkpoints / f"checkpoint-{report.best_step}"))
    base = AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)
    alone = PeftModel.from_pretrained(base, workspace.adapter).eval()
    tokens = torch.tensor([[2, 4, 7, 6, 9, 10, 11, 5, 6, 4, 8, 6]])
    with torch.no_grad():
        expected = policy.model.eval()(input_ids=tokens).logits
        assert torch.equal(alone(input_ids=tokens).logits, expected)
        with alone.disable_adapter():
            assert not torch.allclose(alone(input_ids=tokens).logits, expected, atol=0.1)


@pytest.mark.parametrize("adapter", [True, False], ids=["stage 2", "fresh LoRA"])
def test_loss_margin_and_gradient_of_a_batch_are_those_of_the_paper(tiny, tmp_path, adapter):
    settings = make_settings(tiny, adapter=adapter, lora_dropout=0, lora_r=4, lora_alpha=8)
    trainer = make_trainer(settings, make_workspace(tmp_path))
    torch.manual_seed(1)
    trained = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # away from the reference, or every log-ratio is 0
            parameter.add_(torch.randn_like(parameter) * 0.2)
    reference = AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)
    if adapter:
        reference = PeftModel.from_pretrained(reference, tiny / "stage2").merge_and_unload()
    reference.eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")

    ratios = []  # (chosen, rejected): log pi(y|x) - log pi_ref(y|x)
    trainer.model.eval()
    rows = read_rows(Workspace(tmp_path).train_rows)
    both = trainer._reference_order(trainer.train_dataset)[:2]
    for row in both:
        pair = encode(rows[row], tokenizer)
        for side in (pair.chosen, pair.rejected):
            with torch.no_grad():
                anchor = sequence_log_probability(reference, pair.prompt, side)
            ratios.append(sequence_log_probability(trainer.model, pair.prompt, side) - anchor)
    ratios = torch.stack(ratios).view(2, 2)
    margins = settings.train.beta * (ratios[:, 0] - ratios[:, 1])
    loss = -torch.log(1 / (1 + torch.exp(-margins))).mean()  # eq. 7
    gradients = torch.autograd.grad(loss, list(trained.values()))

    measured = trainer.measure(2)[0]
    assert measured.loss == pytest.approx(loss.item(), abs=1e-5)
    assert measured.margin == pytest.approx(margins.mean().item(), abs=1e-5)
    assert measured.reference_error == pytest.approx(0, abs=1e-5)
    assert abs(measured.loss - math.log(2)) > 0.01
    batch = trainer.data_collator(list(trainer.train_dataset.select(both)))
    trainer.compute_loss(trainer.model, batch).backward()
    for parameter, expected in zip(trained.values(), gradients, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-5)


def test_tokens_are_those_of_trl(tiny, tmp_path):
    trainer = make_trainer(make_settings(tiny), make_workspace(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    rows = read_rows(Workspace(tmp_path).train_rows)
    for row, theirs in zip(rows, trainer.train_dataset, strict=True):
        assert encode(row, tokenizer) == (theirs["prompt_ids"], theirs["chosen_ids"], theirs["rejected_ids"])


def test_a_wrong_reference_is_caught_before_the_first_update(tiny, tmp_path):
    right = make_trainer(make_settings(tiny), make_workspace(tmp_path / "right"))
    found = check(right, make_settings(tiny))
    assert found["start"] == "loss 0.6931 (ln 2 is 0.6931), margin +0.0000, largest reward +0.0000"
    assert found["end token"] == "48 of 48 answers close with one of <eos>, <end_of_turn>"
    assert found["sides"] == "chosen and rejected differ in 30 of 30 pairs"
    assert found["prompt"] == "its tokens begin both sides in 30 of 30 pairs, as in the chat template"
    assert found["whole rows"] == "0 cut; the longest has 37 of 64 tokens; 0 left out as too long"
    assert found["pad token"] == "'<pad>' (id 0), never seen by the loss"
    assert found["reference log-probabilities"].startswith("60, computed once, sha256 ")

    workspace = make_workspace(tmp_path / "wrong")
    # stores the log-probabilities of the base, under the key that the next trainer looks for
    make_trainer(make_settings(tiny, adapter=False), workspace)
    with pytest.raises(CaiError, match="the reference is not the policy that training starts from"):
        check(make_trainer(make_settings(tiny), workspace), make_settings(tiny))


def test_a_frozen_copy_that_is_not_stage_2_is_caught(tiny, tmp_path):
    trainer = make_trainer(make_settings(tiny), make_workspace(tmp_path))
    frozen = next(parameter for name, parameter in trainer.model.named_parameters() if f".{REFERENCE}." in name)
    frozen.data[0, 0] += 1e-6
    with pytest.raises(CaiError, match="'ref' in memory is not the one in .*: 1 of 28 tensors differ"):
        check(trainer, make_settings(tiny))


def test_a_base_weight_that_would_train_is_caught(tiny, tmp_path):
    trainer = make_trainer(make_settings(tiny), make_workspace(tmp_path))
    trainer.model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(CaiError, match="Something else than the policy's LoRA would train: .*norm.weight"):
        check(trainer, make_settings(tiny))


KILLED_RUN = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_train
from cai_helpers.training.dpo import PolicyTrainer
from cai_helpers.stages.train import train_policy
from cai_helpers.workspace import Workspace

training_step = PolicyTrainer.training_step
def die(self, *args, **kwargs):
    if self.state.global_step == 8:
        os._exit(9)
    return training_step(self, *args, **kwargs)
PolicyTrainer.training_step = die
train_policy(test_train.make_settings(Path({tiny!r})), Workspace({root!r}))
"""


@pytest.fixture(scope="module")
def killed(warm, tiny, tmp_path_factory) -> Path:
    """What is left of a run whose process ended in its ninth step; a folder to copy."""
    workspace = make_workspace(tmp_path_factory.mktemp("killed"))
    script = KILLED_RUN.format(tests=str(Path(__file__).parent), tiny=str(tiny), root=str(workspace.root))
    process = warm.python(script)
    assert process.code == 9, process.err[-2000:]
    assert [path.name for path in checkpoints.in_order(workspace.checkpoints)] == ["checkpoint-3", "checkpoint-6"]
    return workspace.root


def test_a_killed_run_resumes_into_the_same_weights_bit_for_bit(tiny, trained, killed, tmp_path):
    workspace = Workspace(shutil.copytree(killed, tmp_path / "copy"))
    whole, expected = trained
    report = train_policy(make_settings(tiny), workspace)
    assert report.resumed_from == 6
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))
    rows, whole_rows = list(read_jsonl(workspace.history)), list(read_jsonl(whole.history))
    assert [row["step"] for row in rows] == [row["step"] for row in whole_rows]
    first_after = next(row for row in rows if row["step"] == 8)
    assert first_after["loss"] < 0.65  # Stage 2 again would be at ln 2 = 0.693
    assert first_after["loss"] == next(row for row in whole_rows if row["step"] == 8)["loss"]
    assert report.loss_last == expected.loss_last


def test_a_fresh_lora_with_dropout_resumes_into_the_same_weights_too(tiny, tmp_path, monkeypatch):
    whole, workspace = make_workspace(tmp_path / "whole"), make_workspace(tmp_path / "killed")
    settings = make_settings(tiny, adapter=False, lora_dropout=0.2, epochs=1)
    report = train_policy(settings, whole)
    assert report.reference == f"the base model {tiny / 'base'}, with the new LoRA switched off"

    training_step = PolicyTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PolicyTrainer, "training_step", interrupted)
    with pytest.raises(CaiError, match="Stopped by hand at step 4 of 6"):
        train_policy(settings, workspace)
    monkeypatch.undo()
    assert train_policy(settings, workspace).resumed_from == 3
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))


def test_the_history_of_a_resumed_run_says_what_that_of_an_uninterrupted_one_says(tiny, trained, killed, tmp_path):
    """From a checkpoint of a step that would not be logged for itself."""
    workspace = Workspace(shutil.copytree(killed, tmp_path / "copy"))
    shutil.rmtree(workspace.checkpoints / "checkpoint-6")
    assert train_policy(make_settings(tiny), workspace).resumed_from == 3
    of_the_call = ("seconds", "tokens", "tokens_per_s", "memory_gib")
    resumed, whole = (
        [{name: value for name, value in row.items() if name not in of_the_call} for row in read_jsonl(each.history)]
        for each in (workspace, trained[0])
    )
    assert resumed == whole


def test_a_damaged_checkpoint_is_skipped_and_the_result_is_the_same(tiny, trained, killed, tmp_path, capsys):
    workspace = Workspace(shutil.copytree(killed, tmp_path / "copy"))
    weights = workspace.checkpoints / "checkpoint-6" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    assert train_policy(make_settings(tiny), workspace).resumed_from == 3
    assert "checkpoint-6 is not used: adapter_model.safetensors is not what was written" in capsys.readouterr().out
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(trained[0]))


def test_a_lost_adapter_is_written_again_without_training(tiny, tmp_path, capsys):
    workspace = make_workspace(tmp_path)
    settings = make_settings(tiny, epochs=0.5)
    first = train_policy(settings, workspace)
    before = adapter_tensors(workspace)
    (workspace.adapter / "adapter_model.safetensors").unlink()
    again = train_policy(settings, workspace)
    assert same_tensors(adapter_tensors(workspace), before)
    assert (again.steps, again.eval_loss, again.resumed_from) == (3, first.eval_loss, 3)
    assert "models/lora_adapters changed or disappeared" in capsys.readouterr().out


def test_the_best_checkpoint_is_kept_and_becomes_the_adapter(tiny, tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path)
    losses = iter([0.6, 0.4, 0.5, 0.55, 0.58, 0.59])
    evaluate = PolicyTrainer.log

    def planted(self, logs, *args):
        if "eval_loss" in logs:
            logs["eval_loss"] = next(losses)
        return evaluate(self, logs, *args)

    monkeypatch.setattr(PolicyTrainer, "log", planted)
    report = train_policy(make_settings(tiny, every_steps=2), workspace)
    assert [path.name for path in checkpoints.in_order(workspace.checkpoints)] == [
        "checkpoint-4", "checkpoint-10", "checkpoint-12",
    ]  # fmt: skip
    assert (report.best_step, report.eval_loss, report.eval_loss_last) == (4, 0.4, 0.59)
    kept = load_file(workspace.checkpoints / "checkpoint-4" / "adapter_model.safetensors")
    assert same_tensors(adapter_tensors(workspace), kept)


def test_another_seed_trains_in_another_order_into_another_adapter_and_is_no_resumption(tiny, tmp_path):
    seeds = {}
    for seed in (0, 1):
        settings = make_settings(tiny, epochs=0.5, log_steps=1).model_copy(update={"seed": seed})
        seeds[seed] = make_workspace(tmp_path / str(seed))
        train_policy(settings, seeds[seed])
    first = {seed: next(read_jsonl(workspace.history)) for seed, workspace in seeds.items()}
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=1e-5)  # Stage 2 still, ln 2
    assert abs(first[0]["logps_chosen"] - first[1]["logps_chosen"]) > 1e-3  # of other pairs
    assert not same_tensors(adapter_tensors(seeds[0]), adapter_tensors(seeds[1]))
    with pytest.raises(SettingsChanged, match="seed was 0, now 1"):
        train_policy(settings, seeds[0])


def test_changed_settings_are_refused_with_the_difference_and_fresh_keeps_the_old_results(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    train_policy(make_settings(tiny, epochs=0.5), workspace)
    with pytest.raises(SettingsChanged, match=r"train\.beta was 0\.1, now 0\.3"):
        train_policy(make_settings(tiny, epochs=0.5, beta=0.3), workspace)
    write_jsonl(workspace.eval_rows, map(preference_row, range(100, 105)))
    with pytest.raises(SettingsChanged, match="input eval rows was"):
        train_policy(make_settings(tiny, epochs=0.5), workspace)
    train_policy(make_settings(tiny, epochs=0.5, beta=0.3), workspace, fresh=True)
    archive = next((workspace.root / "archive").iterdir())
    assert (archive / "models" / "lora_adapters" / "adapter_model.safetensors").exists()
    assert (archive / "checkpoints" / "checkpoint-3" / "complete.json").exists()


def test_too_few_pairs_are_refused_with_the_counts_and_the_reasons(tiny, tmp_path):
    workspace = make_workspace(tmp_path, train=5, held_out=2)
    write_json(workspace.curation_stats, {"kept": 7, "dropped": {"unparsed": 41, "identical": 16}})
    counts = "7 usable pairs.*min_pairs = 10, 41 dropped as unparsed, 16 dropped as identical"
    with pytest.raises(NotEnoughPairs, match=counts):
        train_policy(make_settings(tiny), workspace)
    assert not workspace.checkpoints.exists()


def test_training_before_curation_names_the_stage_that_is_missing(tiny, tmp_path):
    with pytest.raises(CaiError, match="made by the curate stage"):
        train_policy(make_settings(tiny), Workspace(tmp_path))


def test_pairs_that_would_be_cut_are_left_out_and_counted(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    rows = read_rows(workspace.train_rows)
    lengths = sorted(encode(row, tokenizer).length for row in rows)
    assert lengths == [24] * 18 + [37] * 6
    fitting = keep_fitting(rows, tokenizer, 36)
    assert (len(fitting.rows), fitting.too_long, fitting.longest) == (18, 6, 24)
    with pytest.raises(NotEnoughPairs, match="22 usable pairs.*8 are longer than train.max_length = 32 tokens"):
        train_policy(make_settings(tiny, min_pairs=30, max_length=32), workspace)


def test_a_pair_of_equal_sides_is_refused(tiny):
    row = preference_row(1)
    row["rejected"] = row["chosen"]
    with pytest.raises(CaiError, match="Row row1: chosen and rejected are the same"):
        encode(PreferenceRow.model_validate(row), AutoTokenizer.from_pretrained(tiny / "base"))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_good_checkpoints(tiny, tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path)
    compute_loss = PolicyTrainer.compute_loss

    def broken(self, model, inputs, **kwargs):
        loss = compute_loss(self, model, inputs, **kwargs)
        return loss * math.nan if self.state.global_step == 4 and model.training else loss

    monkeypatch.setattr(PolicyTrainer, "compute_loss", broken)
    with pytest.raises(CaiError, match="The loss is not finite at step 5.*(?s:.*)Halve train.learning_rate"):
        train_policy(make_settings(tiny), workspace)
    [left] = checkpoints.in_order(workspace.checkpoints)
    assert (left.name, checkpoints.fault(left)) == ("checkpoint-3", None)
    assert not workspace.adapter.exists()


def test_running_out_of_memory_says_what_to_change(tiny, tmp_path, monkeypatch):
    def exhausted(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PolicyTrainer, "training_step", exhausted)
    with pytest.raises(CaiError, match=r"--set train\.gradient_checkpointing=true"):
        train_policy(make_settings(tiny), make_workspace(tmp_path))


def test_gradient_checkpointing_changes_no_weight(tiny, tmp_path):
    plain, thrifty = make_workspace(tmp_path / "plain"), make_workspace(tmp_path / "thrifty")
    train_policy(make_settings(tiny, epochs=0.5), plain)
    train_policy(make_settings(tiny, epochs=0.5, gradient_checkpointing=True), thrifty)
    assert same_tensors(adapter_tensors(thrifty), adapter_tensors(plain))


def test_a_base_in_half_precision_trains_a_lora_in_fp32(tiny, tmp_path):
    workspace = make_workspace(tmp_path)
    report = train_policy(make_settings(tiny, dtype="bf16", epochs=1), workspace)
    assert {tensor.dtype for tensor in adapter_tensors(workspace).values()} == {torch.float32}
    assert report.loss_first == pytest.approx(math.log(2), abs=1e-3)
    assert report.loss_last < 0.69
    with pytest.raises(CaiError, match="fp16 training needs a GPU"):
        train_policy(make_settings(tiny, dtype="fp16"), make_workspace(tmp_path / "fp16"))


def test_a_policy_whose_numbers_are_broken_is_refused(tiny, tmp_path, monkeypatch):
    broken = torch.tensor([math.nan, -1.0]), torch.tensor([-1.0, -1.0])
    monkeypatch.setattr(PolicyTrainer, "compute_ref_log_probs", lambda self, model, inputs: broken)
    with pytest.raises(CaiError, match="log-probabilities that are not finite"):
        train_policy(make_settings(tiny), make_workspace(tmp_path))


def test_the_reference_is_computed_once(tiny, tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path)
    first = make_trainer(make_settings(tiny), workspace)

    def refuse(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(PolicyTrainer, "compute_ref_log_probs", refuse)
    again = make_trainer(make_settings(tiny), workspace)
    for side in ("ref_chosen_logps", "ref_rejected_logps"):
        assert list(again.train_dataset[side]) == list(first.train_dataset[side])
        assert list(again.eval_dataset[side]) == list(first.eval_dataset[side])
