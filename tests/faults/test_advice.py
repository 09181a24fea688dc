"""What the second line of an error says to set is set, to the letter, and the same command comes through."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from oracles import ends_in_words

pytestmark = pytest.mark.faults
SETTING = re.compile(r"[a-z]+(?:\.[a-z_]+)+=(?:\[[^\]]*\]|[^\s,;`]+?)(?=[\s,;`]|[.:]?$|[.:]\s)")
# Planted in the process that trains: memory that suffices only once the error's advice is followed.
FULL = """
import torch
from cai_helpers.training.dpo import PolicyTrainer
compute = PolicyTrainer.compute_loss
def limited(self, model, inputs, *args, **options):
    if model.training and not ({fits}):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return compute(self, model, inputs, *args, **options)
PolicyTrainer.compute_loss = limited
"""
NO_MEMORY = """
from cai_helpers.training import memory_plan
plan = memory_plan.plan_memory
def tight(settings, *args, **options):
    found = plan(settings, *args, **options)
    return found.model_copy(update={"limit": 1 if settings.train.batch_size > 4 else found.limit})
from cai_helpers.training import run
run.plan_memory = tight
"""
ERRORS = {  # name → command, options, what is planted
    "checkpointing forbidden": (
        *("train", ["--fresh", "--set", "train.gradient_checkpointing=false"]),
        FULL.format(fits="self.model.is_gradient_checkpointing"),
    ),
    "not a row fits": ("train", ["--fresh"], FULL.format(fits="self.args.max_length < 200")),
    "the plan does not fit": ("train", ["--fresh", "--set", "train.method=sft"], NO_MEMORY),
    "other settings": ("train", ["--set", "train.beta=0.3"], ""),
    "other settings to generate with": ("generate", ["--set", "generate.temperature=0.9"], ""),
    "a batch of one answer": ("train", ["--fresh", "--set", "train.method=kto", "--set", "train.batch_size=1"], ""),
    "sft alone as a loss": ("train", ["--fresh", "--set", "train.loss_type=sft"], ""),
    "soft labels missing": ("train", ["--fresh", "--set", "train.loss_type=exo_pair"], ""),
    "soft labels for nothing": ("train", ["--fresh", "--set", "train.label_smoothing=0.1"], ""),
    "weights of other losses": ("train", ["--fresh", "--set", "train.loss_weights=[1, 2]"], ""),
    "kto with a loss of dpo": ("train", ["--fresh", "--set", "train.method=kto", "--set", "train.ld_alpha=0.5"], ""),
    "a reporter that is not there": ("train", ["--fresh", "--set", "train.report_to=wandb"], ""),
}


def followed(todo: str) -> list[str]:
    """The first way out that names settings, as options."""
    clauses = [clause for clause in re.split(r"(?:,|;) or ", todo) if SETTING.search(clause) or "--fresh" in clause]
    settings = [part for setting in SETTING.findall(clauses[0]) for part in ("--set", setting)]
    return settings + ["--fresh"] * ("--fresh" in clauses[0])


@pytest.mark.parametrize("name", ERRORS)
def test_what_an_error_says_to_set_is_set_to_the_letter_and_works(name, warm, run_copy, ledger):
    command, options, planted = ERRORS[name]
    ended = warm.cai(command, *options, "--workspace", run_copy, prelude=planted)
    ledger.injected += 1
    ends_in_words(ended)
    assert ended.code == 1, ended.out[-1000:]
    advice = followed(ended.said.split("\n")[1])
    assert advice, ended.said
    again = warm.cai(command, *options, *advice, "--workspace", run_copy, prelude=planted)
    assert again.code == 0, f"{ended.said}\n{advice}\n{again.said}"
    ledger.survived += 1


def test_a_workspace_of_somebody_else_sends_nothing_until_the_person_says_so(warm, run_copy, tmp_path, ledger):
    """Its settings name a place for copies and a service that is told how training goes."""
    place = tmp_path / "elsewhere" / "copies"
    place.parent.mkdir()
    file = run_copy / "settings.json"
    shutil.rmtree(run_copy / "checkpoints")
    file.write_text(file.read_text().replace('"copy_to": null', f'"copy_to": "{place}"'))
    before = sorted(Path(tmp_path / "elsewhere").rglob("*"))
    ended = warm.cai("train", "--fresh", "--workspace", run_copy)
    ledger.injected += 1
    ends_in_words(ended)
    ledger.false_successes += ended.code == 0
    assert f"train.copy_to: only a settings file names {place}" in ended.said
    assert sorted(Path(tmp_path / "elsewhere").rglob("*")) == before
    advice = followed(ended.said.split("\n")[1])
    assert warm.cai("train", "--fresh", *advice[:2], "--workspace", run_copy).code == 0
    assert any(place.rglob("adapter_model.safetensors"))
    ledger.survived += 1
