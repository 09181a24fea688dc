"""DPO through TRL: a policy that continues Stage 2, its frozen copy as the reference, no second model in memory.

Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Importing this imports torch and TRL; stages do it when they train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from cai_helpers.machine.hardware import Dtype, Machine
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Settings
from cai_helpers.training.policy.losses import start_value
from cai_helpers.training.policy.reference import StoredReference
from cai_helpers.training.policy.reference_store import ReferenceStore
from cai_helpers.training.rows.pairs import as_dataset, encode
from cai_helpers.training.trainer import (
    PolicyTraining,
    Start,
    load_start,
    on_one_gpu,
    shared_arguments,
    trainer_options,
)


class PolicyTrainer(PolicyTraining, StoredReference, DPOTrainer):
    """TRL's trainer, which resumes the policy it saved, stops at NaN, and computes the reference once."""

    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")

    def __init__(self, start: Start, **options: Any) -> None:
        self.start = start
        super().__init__(**options)

    def _start_value(self, batch: dict[str, torch.Tensor]) -> float | None:
        tokens = batch["completion_mask"][:, 1:].chunk(2)[0].sum()  # of the chosen sides, which come first
        nll = None if self.ld_alpha is not None else (-batch["ref_chosen_logps"].sum() / tokens).item()
        return start_value(self.loss_types, self.loss_weights, self.beta, self.label_smoothing, nll)

    def measure_each(self, dataset: Any) -> list[tuple[float, float]]:
        """Reward of chosen and of rejected for each row, in evaluation mode; alone in its batch, so without padding."""
        self.model.eval()
        rewards = []
        for row in dataset:
            batch = self._prepare_inputs(self.data_collator([row]))
            with torch.no_grad(), self.accelerator.autocast():
                self.compute_loss(self.model, batch)
            rewards.append(tuple(self._metrics["eval"][f"rewards/{side}"][-1] for side in ("chosen", "rejected")))
            self._metrics["eval"].clear()
        return rewards


def build_trainer(
    settings: Settings,
    folder: Path,
    train: list[PreferenceRow],
    held_out: list[PreferenceRow],
    tokenizer: PreTrainedTokenizerBase,
    dtype: Dtype,
    machine: Machine,
    reference: ReferenceStore,
    tuned: Path | None = None,
) -> PolicyTrainer:
    """Load the policy and hand it to TRL, checkpoints in `folder`.

    An adapter that is continued (Stage 2, or the supervised result in `tuned`) is copied by TRL, frozen, as the
    reference. A new LoRA starts at zero, on the base or on the merged Stage 2: the reference is that model with the
    LoRA switched off.
    """
    pair = encode(held_out[0], tokenizer)
    start = load_start(settings, pair.prompt + pair.chosen, tuned)
    return PolicyTrainer(
        reference=reference,
        start=start,
        args=training_arguments(settings, folder, dtype, machine, continued=start.adapter is not None),
        train_dataset=as_dataset(train),
        eval_dataset=as_dataset(held_out),
        processing_class=tokenizer,
        **trainer_options(settings, start),
    )


def training_arguments(settings: Settings, folder: Path, dtype: Dtype, machine: Machine, continued: bool) -> DPOConfig:
    train = settings.train
    arguments = DPOConfig(
        **shared_arguments(settings, folder, dtype, machine),
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        beta=train.beta,
        loss_type=train.loss_type,
        loss_weights=train.loss_weights,
        label_smoothing=train.label_smoothing,
        ld_alpha=train.ld_alpha,
        precompute_ref_log_probs=True,
        # a continued LoRA with dropout is not the reference's policy; a new one starts at zero, dropped or not
        disable_dropout=continued,
    )
    return on_one_gpu(arguments, machine)
