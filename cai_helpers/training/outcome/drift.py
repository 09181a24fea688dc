"""How far the trained policy has gone from its reference, measured token by token where the held-out answers are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from cai_helpers.training.policy.lora import REFERENCE

if TYPE_CHECKING:
    from transformers import Trainer

_PAIRS = 32  # measured; two forward passes a side
_CHUNK = 64  # positions at once: in fp32 a vocabulary of 256,000 takes a megabyte a position


def token_kl(trainer: Trainer) -> float:
    """KL(policy ‖ reference) in nats a token: the mean over the positions of held-out answers, exact at each.

    The full next-token distributions are compared, so nothing is sampled; but the positions are those of the chosen and
    rejected answers and not of what the policy itself would write, so it is an estimate for those. Positions and not
    sequences: a sum over an answer would depend on its length.

    trainer: its policy after training, and the held-out pairs as token ids in its eval_dataset.
    """
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    total, positions = 0.0, 0
    for row in trainer.eval_dataset.select(range(min(_PAIRS, len(trainer.eval_dataset)))):
        for side in (row["chosen_ids"], row["rejected_ids"]):
            tokens = torch.tensor([row["prompt_ids"] + side], device=model.device)
            with torch.no_grad(), trainer.accelerator.autocast(), disable_gradient_checkpointing(model, None):
                total += _sum_of_kl(model, tokens, len(side))
            positions += len(side)
    return total / positions


def _sum_of_kl(model: Any, tokens: torch.Tensor, answer: int) -> float:
    """Over the positions that predict the last `answer` tokens of one sequence."""
    predicting = slice(-answer - 1, -1)
    policy = model(input_ids=tokens).logits[0, predicting]
    with use_adapter(model, adapter_name=REFERENCE if REFERENCE in model.peft_config else None):
        reference = model(input_ids=tokens).logits[0, predicting]
    total = 0.0
    for ours, theirs in zip(policy.split(_CHUNK), reference.split(_CHUNK), strict=True):
        log_policy, log_reference = ours.float().log_softmax(-1), theirs.float().log_softmax(-1)
        total += (log_policy.exp() * (log_policy - log_reference)).sum().item()
    return total
