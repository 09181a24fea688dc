"""TRL's losses: what each begins at, what is refused, and that DPO's numbers are those of the paper."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from peft import PeftModel
from tiny_run import check, make_settings, make_trainer, make_workspace, sequence_log_probability
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_helpers.errors import CaiError
from cai_helpers.sections import Loss
from cai_helpers.settings import load_settings
from cai_helpers.training import dpo
from cai_helpers.training.policy.losses import readable, start_value
from cai_helpers.training.rows.pairs import encode, read_rows
from cai_helpers.workspace import Workspace


@pytest.fixture(scope="module")
def untrained(tiny, tmp_path_factory):
    return make_trainer(make_settings(tiny), make_workspace(tmp_path_factory.mktemp("untrained")))


@pytest.mark.parametrize("loss", get_args(Loss))
def test_every_loss_of_trl_begins_where_its_formula_says(untrained, loss):
    smoothing = 0.2 if loss in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0
    untrained.loss_types, untrained.loss_weights, untrained.label_smoothing = ["sft", loss], [0.0, 0.7], smoothing
    [measured] = untrained.measure(2)
    assert measured.start == pytest.approx(measured.loss, rel=1e-5)


def test_start_values_by_hand():
    assert start_value(["ipo"], [1], 0.1, 0, None) == pytest.approx(25)  # 1 / (4 beta^2)
    assert start_value(["robust"], [1], 0.1, 0.3, None) == pytest.approx(math.log(2))
    assert start_value(["exo_pair"], [1], 0.1, 0.001, None) == pytest.approx(0.5 * math.log(0.25 / (0.999 * 0.001)))
    assert start_value(["sigmoid", "sft"], [1, 0.5], 0.1, 0, 2.0) == pytest.approx(math.log(2) + 1)
    assert start_value(["sigmoid", "sft"], [1, 0.5], 0.1, 0, None) is None
    assert readable(["sigmoid", "sft"], [1, 0.5]) == "sigmoid + 0.5·sft"


def test_a_wrong_reference_is_caught_under_another_loss_too(tiny, tmp_path):
    settings = make_settings(tiny, loss_type="ipo")
    found = check(make_trainer(settings, make_workspace(tmp_path / "right")), settings)
    assert found["start"] == "loss 25.0000 (its start value is 25.0000), margin +0.0000, largest reward +0.0000"
    workspace = make_workspace(tmp_path / "wrong")
    make_trainer(make_settings(tiny, adapter=False), workspace)  # stores the base's, under the key of the next trainer
    with pytest.raises(CaiError, match="Before the first update the loss ipo is .*its start value is 25.0000"):
        check(make_trainer(settings, workspace), settings)


def test_another_ld_alpha_does_not_get_the_reference_that_trl_remembers(tiny, tmp_path):
    for place, alpha in enumerate([None, 0.0, 0.5]):
        settings = make_settings(tiny, ld_alpha=alpha, loss_type=["sigmoid", "sft"])
        trainer = make_trainer(settings, make_workspace(tmp_path / str(place)))
        [measured] = trainer.measure(2)
        assert measured.reference_error < 1e-5
        assert "largest reward +0.0000" in check(trainer, settings)["start"]
        assert (measured.start is None) == (alpha is not None)


REFUSED = {
    "sft alone": (["loss_type=sft"], "loss_type=sft alone is no DPO"),
    "unknown": (["loss_type=simpo"], r"train.loss_type.0: Input should be 'sigmoid'"),
    "none": (["loss_type=[]"], "train.loss_type: List should have at least 1 item"),
    "twice": (["loss_type=[ipo, ipo]"], "names a loss twice"),
    "weights": (["loss_type=[sigmoid, sft]", "loss_weights=[1]"], "one positive weight a loss is needed"),
    "zero weight": (["loss_weights=[0]"], "one positive weight a loss is needed"),
    "hard exo": (["loss_type=exo_pair"], "exo_pair needs soft labels"),
    "smoothing ignored": (["label_smoothing=0.1"], "label_smoothing=0.1 has no effect on sigmoid"),
    "half wrong": (["loss_type=robust", "label_smoothing=0.5"], "Input should be less than 0.5"),
    "ld_alpha": (["ld_alpha=1.5"], "train.ld_alpha: Input should be less than or equal to 1"),
    "unknown method": (["method=grpo"], "train.method: Input should be 'dpo', 'sft'"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_losses_that_do_not_go_together_are_refused_in_our_words(changes, message):
    with pytest.raises(CaiError, match=message):
        load_settings("t4", [f"train.{change}" for change in changes])


def test_one_loss_may_be_written_without_a_list():
    train = load_settings("t4", ["train.loss_type=robust", "train.label_smoothing=0.1"]).train
    assert (train.loss_type, train.label_smoothing) == (["robust"], 0.1)


def paper_loss(trainer, reference, rows, beta: float, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Rafailov et al. 2023, eq. 7, token by token from the full logits: (loss, margins), with a graph."""
    margins = []
    for row in rows:
        pair = encode(row, tokenizer)
        ratios = []
        for side in (pair.chosen, pair.rejected):
            with torch.no_grad():
                anchor = sequence_log_probability(reference, pair.prompt, side)
            ratios.append(sequence_log_probability(trainer.model, pair.prompt, side) - anchor)
        margins.append(beta * (ratios[0] - ratios[1]))
    margins = torch.stack(margins)
    return -torch.log(1 / (1 + torch.exp(-margins))).mean(), margins


@pytest.mark.parametrize("live", [False, True], ids=["precomputed", "live"])
@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
def test_loss_margin_and_gradients_are_those_of_the_paper_with_either_stage_2_and_either_reference(
    tiny, tmp_path, monkeypatch, merged, live
):
    settings = make_settings(tiny, fresh_adapter=merged, lora_dropout=0, lora_r=4, lora_alpha=8, beta=0.3)
    if live:
        arguments = dpo.training_arguments

        def not_precomputed(*args, **kwargs):
            made = arguments(*args, **kwargs)
            made.precompute_ref_log_probs = False
            return made

        monkeypatch.setattr(dpo, "training_arguments", not_precomputed)
    trainer = make_trainer(settings, make_workspace(tmp_path))
    assert ("ref_chosen_logps" in trainer.train_dataset.column_names) != live
    torch.manual_seed(1)
    trained = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # away from the reference, or every log-ratio is 0
            parameter.add_(torch.randn_like(parameter) * 0.2)
    base = AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)
    reference = PeftModel.from_pretrained(base, tiny / "stage2").eval()

    trainer.model.eval()
    rows = read_rows(Workspace(tmp_path).train_rows)[:2]
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    loss, margins = paper_loss(trainer, reference, rows, 0.3, tokenizer)
    gradients = torch.autograd.grad(loss, list(trained.values()))

    batch = trainer.data_collator(list(trainer.train_dataset.select(range(2))))
    theirs = trainer.compute_loss(trainer.model, batch)
    assert theirs.item() == pytest.approx(loss.item(), abs=1e-5)
    assert abs(loss.item() - math.log(2)) > 0.01
    assert trainer._metrics["eval"]["rewards/margins"][-1] == pytest.approx(margins.mean().item(), abs=1e-5)
    theirs.backward()
    for parameter, expected in zip(trained.values(), gradients, strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-5)
    assert max(gradient.abs().max().item() for gradient in gradients) > 1e-3
