"""How far the trained policy has gone from its reference, measured token by token where the held-out answers are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from cai_helpers.models.slot_cache import without_adapter_shell
from cai_helpers.training.policy.lora import REFERENCE

if TYPE_CHECKING:
    from transformers import Trainer

_PAIRS = 32  # measured; two forward passes a side
_CHUNK = 32  # positions that come to the head at once: in fp32 a vocabulary of 256,000 takes a megabyte a position


def token_kl(trainer: Trainer) -> float:
    """KL(policy ‖ reference) in nats a token: the mean over the positions of held-out answers, exact at each.

    The full next-token distributions are compared, so nothing is sampled; but the positions are those of the chosen and
    rejected answers and not of what the policy itself would write, so it is an estimate for those. Positions and not
    sequences: a sum over an answer would depend on its length. Some positions at once: training may have left no more memory.

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
    own = without_adapter_shell(model)
    backbone = own.base_model
    policy = backbone(input_ids=tokens, use_cache=False)
    with use_adapter(model, adapter_name=REFERENCE if REFERENCE in model.peft_config else None):
        reference = backbone(input_ids=tokens, use_cache=False)
    total, length = 0.0, tokens.shape[1]
    for first in range(length - answer - 1, length - 1, _CHUNK):
        chunk = slice(first, min(first + _CHUNK, length - 1))
        log_policy, log_reference = (_log_probabilities(own, outputs, chunk) for outputs in (policy, reference))
        total += (log_policy.exp() * (log_policy - log_reference)).sum().item()
    return total


def _log_probabilities(model: Any, outputs: Any, chunk: slice) -> torch.Tensor:
    """Of the next token, (1, positions of the chunk, vocabulary), by the model's own head, whatever it does to its logits."""
    hidden = outputs.last_hidden_state[:, chunk]
    with _giving(model.base_model, type(outputs)(last_hidden_state=hidden)):
        return model(inputs_embeds=hidden).logits.float().log_softmax(-1)


@contextmanager
def _giving(module: torch.nn.Module, outputs: Any) -> Iterator[None]:
    """`module` computes nothing and gives this."""
    before = vars(module).get("forward")  # of its own, if a library has put one there
    module.forward = lambda *_, **__: outputs
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
