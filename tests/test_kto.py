"""KTO: answers that are good or bad by themselves, the reference of DPO, and a stopped run resumes bit for bit."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import tiny_run
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_run import adapter_tensors, make_settings, make_workspace, same_tensors
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_helpers.curation.one_sided import one_sided
from cai_helpers.curation.rules import Dropped
from cai_helpers.curation.split import split_hash
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import this_machine
from cai_helpers.schema import ScoredPair, UnpairedRow
from cai_helpers.settings import Train
from cai_helpers.stages.curate import curate_pairs
from cai_helpers.stages.train import train_policy
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.sweep import sweep
from cai_helpers.training.kto import UnpairedTrainer, build_kto, check_kto
from cai_helpers.training.policy.lora import REFERENCE
from cai_helpers.training.policy.reference_store import reference_of
from cai_helpers.training.rows.answers import Unpaired, Weights, balance, read_one_sided, unpair
from cai_helpers.training.rows.pairs import encode_answer, read_rows
from cai_helpers.training.watch.history import Progress
from cai_helpers.training.watch.views import OF_ANSWERS, view_of
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_training_picture")  # a second each


def pair(number: int = 0, **changes) -> ScoredPair:
    row = {
        "prompt": f"How do I fix bike {number}?",
        "base_response": f"Pump bike {number}.",
        "revised_response": f"Ask a friend to fix bike {number}.",
        "base_score": 1.0,
        "revised_score": 2.0,
        "chosen": "revised",
        "outcome": "revised",
        "category": "helpful",
    }
    return ScoredPair.model_validate(row | changes)


def one_sided_row(number: int, label: bool = True, held_out: bool = False, answer: str = "sure pump air slow") -> dict:
    return {
        "prompt": [{"role": "user", "content": f"how do i fix bike {tiny_run.WORDS[number % 20]}"}],
        "completion": [{"role": "assistant", "content": f"{answer} {tiny_run.WORDS[number % 20]}"}],
        "label": label,
        "id": f"alone{number}",
        "category": "helpful",
        "reason": "kept" if label else "degenerate",
        "held_out": held_out,
    }


def kto_workspace(root) -> Workspace:
    """24 pairs and 11 kept drafts to train on, 6 pairs and 2 drafts held out."""
    workspace = make_workspace(root)
    write_jsonl(workspace.one_sided_rows, [one_sided_row(number, held_out=number > 10) for number in range(13)])
    return workspace


def kto_settings(tiny, **train):
    return make_settings(
        tiny, method="kto", **({"batch_size": 4, "accumulation": 2, "beta": 0.2, "learning_rate": 1e-2} | train)
    )


def unpaired(settings, workspace: Workspace) -> Unpaired:
    return unpair(
        read_rows(workspace.train_rows), read_rows(workspace.eval_rows), read_one_sided(workspace.one_sided_rows),
        AutoTokenizer.from_pretrained(settings.models.base), settings.train.max_length, settings.train.batch_size, 0,
    )  # fmt: skip


def make_trainer(settings, workspace: Workspace, data: Unpaired) -> UnpairedTrainer:
    tokenizer = AutoTokenizer.from_pretrained(settings.models.base)
    folder, weights = workspace.checkpoints, balance(data.train)
    reference = reference_of(workspace, str(workspace.root), print)
    return build_kto(settings, folder, data, weights, tokenizer, "fp32", this_machine(), reference)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """An uninterrupted run, to be looked at and not changed."""
    workspace = kto_workspace(tmp_path_factory.mktemp("kto"))
    return workspace, train_policy(kto_settings(tiny), workspace)


LOOP = "and so on " * 40


@pytest.mark.parametrize(
    ("changes", "reason", "taken"),
    [
        ({"outcome": "kept"}, "kept", ("Pump bike 0.", True)),
        ({"outcome": "kept", "base_finish": "length"}, "kept", None),
        ({"outcome": "kept", "base_response": LOOP}, "kept", None),
        ({"base_response": LOOP}, "degenerate", (LOOP, False)),
        ({"revised_response": LOOP}, "degenerate", (LOOP, False)),
        ({"base_response": LOOP, "revised_response": LOOP + "."}, "degenerate", None),
        ({"revised_response": " "}, "degenerate", None),
        ({"outcome": "degenerate", "revised_response": "Pump bike 0."}, "degenerate", None),
        ({}, "tie", None),
        ({}, "overruled", None),
        ({"outcome": "unparsed"}, "unparsed", None),
    ],
)
def test_only_a_side_that_can_be_trusted_alone_is_taken(changes, reason, taken):
    rows = one_sided([Dropped(pair(**changes), reason)], lambda name: False)
    assert [(row.completion[0]["content"], row.label) for row in rows] == ([taken] if taken else [])
    assert all(row.reason == reason for row in rows)


def test_curation_writes_one_sided_rows_split_by_the_rule_of_the_pairs(workspace, tmp_path, smoke):
    settings = smoke.model_copy(update={"curate": smoke.curate.model_copy(update={"near_duplicates": None})})
    pairs = [pair(number, id=f"p{number}", outcome="kept" if number % 3 else "revised") for number in range(90)]
    write_jsonl(
        tmp_path / "pairs.jsonl", [one.model_dump() for one in [*pairs, pair(90, id="p90", revised_response=LOOP)]]
    )
    report = curate_pairs(settings, workspace, tmp_path / "pairs.jsonl")
    assert report.one_sided == {"kept": 60, "degenerate": 1}
    assert dict(report.lines())["one side trustworthy (for KTO)"] == "60 kept, 1 degenerate"
    rows = read_one_sided(workspace.one_sided_rows)
    assert Counter((row.reason, row.label) for row in rows) == {("kept", True): 60, ("degenerate", False): 1}
    held_out = [row.id for row in read_rows(workspace.eval_rows)]
    assert len(held_out) == round(30 * settings.curate.eval_fraction)
    border = max(split_hash(name, settings.seed) for name in held_out)
    assert {row.id for row in rows if row.held_out} == {
        row.id for row in rows if split_hash(row.id, settings.seed) < border
    }
    assert 0 < sum(row.held_out for row in rows) < 20
    assert curate_pairs(settings, workspace, tmp_path / "pairs.jsonl") == report  # complete: it is not made again


def test_a_pair_gives_a_desirable_and_an_undesirable_answer_and_batches_are_mixed(tiny, tmp_path):
    settings, workspace = kto_settings(tiny), kto_workspace(tmp_path)
    data = unpaired(settings, workspace)
    assert Counter(row.reason for row in data.train) == {"chosen": 24, "rejected": 24, "kept": 11}
    assert Counter(row.reason for row in data.held_out) == {"chosen": 6, "rejected": 6, "kept": 2}
    assert all(row.label == (row.reason in ("chosen", "kept")) for row in [*data.train, *data.held_out])
    assert not {row.id for row in data.train} & {row.id for row in data.held_out}
    assert data == unpaired(settings, workspace)  # the same order again
    first = [row.label for row in data.train[:24]]
    assert 4 <= sum(first) <= 20
    assert (data.too_long, data.alone) == (0, 0)

    write_jsonl(workspace.one_sided_rows, [one_sided_row(1), one_sided_row(2, answer="sure " * 60)])
    data = unpaired(settings, workspace)
    assert (data.too_long, data.alone, len(data.train)) == (1, 1, 48)  # 49 rows in batches of 4: one would be alone


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights"),
    [(10, 10, (1, 1)), (12, 10, (1, 1)), (40, 10, (1, 3)), (10, 40, (4, 1)), (4, 3, (1, 1))],
)
def test_the_weights_are_the_nearest_to_one_in_the_range_of_the_paper(desirable, undesirable, weights):
    rows = [UnpairedRow.model_validate(one_sided_row(0, label)) for label in [True] * desirable + [False] * undesirable]
    found = balance(rows)
    assert found == pytest.approx(weights)
    ratio = found.desirable * desirable / (found.undesirable * undesirable)
    assert 1 - 1e-9 <= ratio <= 4 / 3 + 1e-9


def test_the_loss_starts_at_half_the_weights_and_is_the_papers(tiny, tmp_path):
    settings, workspace = kto_settings(tiny), kto_workspace(tmp_path)
    write_jsonl(workspace.one_sided_rows, [one_sided_row(number % 20) for number in range(24)])  # 48 to 24
    data = unpaired(settings, workspace)
    trainer = make_trainer(settings, workspace, data)
    assert (trainer.desirable_weight, trainer.undesirable_weight) == (1, pytest.approx(1.5))
    for batch, rows in zip(trainer.measure(8), (data.train[:4], data.train[4:8]), strict=True):
        expected = 0.5 * sum(1.0 if row.label else 1.5 for row in rows) / 4
        assert batch.loss == pytest.approx(expected, abs=1e-5)
        assert batch.start == pytest.approx(expected)
        assert batch.reference_error < 1e-4

    for name, parameter in trainer.model.named_parameters():
        if ".default." in name:
            parameter.data.mul_(1.3)
    trainer.model.eval()
    batch = trainer.data_collator(list(trainer.train_dataset.select(range(4))))
    theirs = trainer.compute_loss(trainer.model, batch).item()
    pairs = [encode_answer(row, trainer.processing_class) for row in data.train[:4]]

    def log_ratio(prompt: list[int], answer: list[int]) -> float:
        trainer.model.set_adapter("default")
        policy = tiny_run.sequence_log_probability(trainer.model, prompt, answer).item()
        trainer.model.set_adapter(REFERENCE)
        reference = tiny_run.sequence_log_probability(trainer.model, prompt, answer).item()
        trainer.model.set_adapter("default")
        return policy - reference

    with torch.no_grad():
        ratios = [log_ratio(*one) for one in pairs]
        kl = max(0.0, sum(log_ratio(one.prompt, pairs[place - 1].answer) for place, one in enumerate(pairs)) / 4)
    losses = [
        1 / (1 + math.exp(0.2 * (ratio - kl))) if row.label else 1.5 / (1 + math.exp(0.2 * (kl - ratio)))
        for ratio, row in zip(ratios, data.train[:4], strict=True)
    ]
    assert theirs == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert max(map(abs, ratios)) > 0.1  # the policy did move


def test_the_first_step_moves_the_policys_lora_and_nothing_else(tiny, tmp_path):
    settings, workspace = kto_settings(tiny, warmup=0.0), kto_workspace(tmp_path)
    trainer = make_trainer(settings, workspace, unpaired(settings, workspace))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.args.max_steps = 1
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all("lora_" in name and ".default." in name for name in moved)


def test_what_is_wrong_with_the_batches_or_the_reference_is_caught(tiny, tmp_path):
    settings, workspace = kto_settings(tiny), kto_workspace(tmp_path)
    data = unpaired(settings, workspace)
    trainer = make_trainer(settings, workspace, data)
    found = dict(check_kto(trainer, settings.models, data))
    answers = [encode_answer(row, trainer.processing_class) for row in [*data.train, *data.held_out]]
    counted, masked = sum(len(one.answer) for one in answers), sum(len(one.prompt) for one in answers)
    assert found["labels"] == f"{counted:,} answer tokens count, {masked:,} prompt tokens are masked; no row is cut"
    assert "a frozen copy of" in found["reference"]

    right = trainer.train_dataset
    trainer.train_dataset = right.map(lambda row: {"label": not row["label"]})
    with pytest.raises(CaiError, match="the answer or the label of row .* is another"):
        check_kto(trainer, settings.models, data)
    trainer.train_dataset = right.select(range(20))
    with pytest.raises(CaiError, match=f"{len(data.train)} rows became 20"):
        check_kto(trainer, settings.models, data)
    trainer.train_dataset = right.map(lambda row: {"ref_logps": row["ref_logps"] - 3})
    with pytest.raises(CaiError, match="the reference is not the policy that training starts from"):
        check_kto(trainer, settings.models, data)
    trainer.train_dataset = right
    trainer.data_collator.max_length = 33
    with pytest.raises(CaiError, match="is cut or has other tokens"):
        check_kto(trainer, settings.models, data)


def test_a_run_learns_reports_and_leaves_an_adapter_for_the_original_base(tiny, trained):
    workspace, report = trained
    assert (report.desirable, report.undesirable, report.one_sided, report.eval_rows) == (35, 24, 11, 14)
    assert report.weights == Weights(1.0, pytest.approx(35 / 24 * 3 / 4))
    assert report.loss_first == pytest.approx(0.5, abs=0.05)
    assert report.eval_loss < 0.49  # it begins at half the mean weight, 0.52
    assert report.eval_reward_desirable > report.eval_reward_undesirable + 0.3
    rows = list(read_jsonl(workspace.history))
    measured = {"loss", "rewards_chosen", "rewards_rejected", "logps_chosen", "logps_rejected", "kl"}
    assert (
        set(rows[0])
        == {"step", "epoch", "seconds", "lr", "grad_norm", "tokens", "tokens_per_s", "memory_gib"} | measured
    )
    assert (workspace.reports / "training.png").stat().st_size > 10_000
    assert json.loads(workspace.metrics.read_text())["train"]["best_step"] == report.best_step

    kept = load_file(workspace.checkpoints / f"checkpoint-{report.best_step}" / "adapter_model.safetensors")
    assert same_tensors(adapter_tensors(workspace), kept)
    base = AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)
    alone = PeftModel.from_pretrained(base, workspace.adapter).eval()
    rewards: dict[bool, list[float]] = {True: [], False: []}
    start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny / "base"), tiny / "stage2").eval()
    for row in unpaired(kto_settings(tiny), workspace).held_out:
        one = encode_answer(row, AutoTokenizer.from_pretrained(tiny / "base"))
        with torch.no_grad():
            now, then = (tiny_run.sequence_log_probability(model, *one).item() for model in (alone, start))
        rewards[row.label].append(0.2 * (now - then))
    for label, found in ((True, report.eval_reward_desirable), (False, report.eval_reward_undesirable)):
        assert math.copysign(1, sum(rewards[label])) == math.copysign(1, found)
    assert sum(rewards[True]) / 8 > sum(rewards[False]) / 6 + 0.3


@pytest.mark.parametrize("fresh_adapter", [False, True], ids=["Stage 2", "new LoRA with dropout on the merged Stage 2"])
def test_a_stopped_run_resumes_into_the_same_weights_bit_for_bit(tiny, trained, tmp_path, monkeypatch, fresh_adapter):
    steps, stop = (8, 7) if fresh_adapter else (16, 8)
    settings = kto_settings(tiny, fresh_adapter=fresh_adapter, epochs=steps / 8)
    whole, workspace = trained[0], kto_workspace(tmp_path / "stopped")
    if fresh_adapter:
        whole = kto_workspace(tmp_path / "whole")
        train_policy(settings, whole)
    training_step = UnpairedTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == stop:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(UnpairedTrainer, "training_step", interrupted)
    with pytest.raises(CaiError, match=f"Stopped by hand at step {stop} of {steps}"):
        train_policy(settings, workspace)
    monkeypatch.setattr(UnpairedTrainer, "training_step", training_step)
    seen: list[Progress] = []
    report = train_policy(settings, workspace, watch=seen.append)
    assert report.resumed_from == 6
    assert seen[-1].view is view_of(seen[-1].rows) is OF_ANSWERS
    assert same_tensors(adapter_tensors(workspace), adapter_tensors(whole))
    rows, whole_rows = (list(read_jsonl(one.history)) for one in (workspace, whole))
    compared = ("step", "loss", "kl", "eval_loss", "rewards_chosen")
    assert [[row.get(key) for key in compared] for row in rows] == [
        [row.get(key) for key in compared] for row in whole_rows
    ]


def test_a_finished_run_is_not_repeated_and_other_one_sided_rows_are_noticed(tiny, trained, capsys):
    workspace, report = trained
    assert train_policy(kto_settings(tiny), workspace) == report
    assert "nothing to do" in capsys.readouterr().out
    before = workspace.one_sided_rows.read_bytes()
    write_jsonl(workspace.one_sided_rows, [one_sided_row(1)])
    with pytest.raises(CaiError, match="input one-sided rows was"):
        train_policy(kto_settings(tiny), workspace)
    workspace.one_sided_rows.write_bytes(before)


def test_what_kto_cannot_do_is_said_in_the_users_words(tiny, tmp_path):
    with pytest.raises(CaiError, match="train.batch_size=1: KTO compares an answer with the others"):
        Train(method="kto", batch_size=1)
    with pytest.raises(CaiError, match="have no effect on train.method=kto"):
        Train(method="kto", loss_type=["ipo"])
    with pytest.raises(CaiError, match="train.method=kto learns each answer by itself"):
        sweep(kto_settings(tiny), make_workspace(tmp_path), "beta=0.1,0.2")
    with pytest.raises(CaiError, match="one_sided.jsonl does not exist yet: it is made by the curate stage"):
        train_policy(kto_settings(tiny), make_workspace(tmp_path))
