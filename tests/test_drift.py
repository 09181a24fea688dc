"""KL of the policy from its reference: zero at the start, then what the two distributions say, position by position."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tiny_run import make_settings, make_trainer, make_workspace
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_helpers.training.outcome import drift
from cai_helpers.training.outcome.drift import token_kl
from cai_helpers.training.rows.pairs import encode, read_rows


@pytest.mark.parametrize("fresh_adapter", [False, True], ids=["continued", "merged"])
def test_kl_is_that_of_the_two_distributions_at_the_answers_positions(tiny, tmp_path, fresh_adapter):
    workspace = make_workspace(tmp_path)
    trainer = make_trainer(make_settings(tiny, fresh_adapter=fresh_adapter), workspace)
    assert token_kl(trainer) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    base = AutoModelForCausalLM.from_pretrained(tiny / "base", dtype=torch.float32)
    stage2 = PeftModel.from_pretrained(base, tiny / "stage2").eval()

    trainer.model.eval()
    found = []
    for row in read_rows(workspace.eval_rows):
        pair = encode(row, AutoTokenizer.from_pretrained(tiny / "base"))
        for side in (pair.chosen, pair.rejected):
            tokens = torch.tensor([pair.prompt + side])
            with torch.no_grad():
                policy, reference = (model(input_ids=tokens).logits[0].softmax(-1) for model in (trainer.model, stage2))
            for position in range(len(pair.prompt) - 1, len(pair.prompt) + len(side) - 1):
                found.append((policy[position] * (policy[position] / reference[position]).log()).sum().item())
    assert len(found) == sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.eval_dataset)
    assert token_kl(trainer) == pytest.approx(sum(found) / len(found), abs=1e-5)
    assert sum(found) / len(found) > 0.01


def test_the_logits_of_a_long_answer_are_never_all_there_at_once(tiny, tmp_path, monkeypatch):
    trainer = make_trainer(make_settings(tiny), make_workspace(tmp_path))
    whole = token_kl(trainer)
    monkeypatch.setattr(drift, "_CHUNK", 3)
    with LargestOf(trainer.model.config.vocab_size) as seen:
        assert token_kl(trainer) == pytest.approx(whole, abs=1e-6)
    assert max(len(row["chosen_ids"]) for row in trainer.eval_dataset) > 3 == seen.rows


class LargestOf(TorchDispatchMode):
    """The most rows of any product as wide as this that is computed meanwhile."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default) and result.shape[-1] == self.width:
            self.rows = max(self.rows, result.numel() // self.width)
        return result
