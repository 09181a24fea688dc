"""DPO through TRL: a policy that continues Stage 2, its frozen copy as the reference, no second model in memory.

Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Importing this imports torch and TRL; stages do it when they train.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from cai_helpers.errors import CaiError
from cai_helpers.hardware import Dtype, Machine
from cai_helpers.losses import start_value
from cai_helpers.policy_trainer import PolicyTraining, Start, load_start, on_one_gpu, shared_arguments, trainer_options
from cai_helpers.preference import as_dataset, encode
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Settings
from cai_helpers.store import write_json


class ReferenceStore(NamedTuple):
    """Where the reference's log-probabilities are kept, so that they are computed once."""

    folder: Path
    key: str  # what they depend on; under another key they are computed again


class Measured(NamedTuple):
    """Means over one batch, in evaluation mode; rewards are beta · (policy − reference log-probability)."""

    loss: float
    reward_chosen: float
    reward_rejected: float
    reference_error: float  # largest |stored − live| log-probability of the reference
    start: float | None  # what the loss is where policy and reference are the same; None: not known

    @property
    def margin(self) -> float:
        return self.reward_chosen - self.reward_rejected


class PolicyTrainer(PolicyTraining, DPOTrainer):
    """TRL's trainer, which resumes the policy it saved, stops at NaN, and computes the reference once."""

    def __init__(self, reference: ReferenceStore, start: Start, **options: Any) -> None:
        self._reference = reference  # before super().__init__, which computes the log-probabilities
        self.start = start
        super().__init__(**options)

    def measure(self, pairs: int) -> list[Measured]:
        """The first `pairs` training rows, in the batches in which the reference saw them."""
        self.model.eval()
        size = self.args.per_device_train_batch_size
        rows = list(self.train_dataset.select(range(min(pairs, len(self.train_dataset)))))
        return [self._measure(rows[start : start + size]) for start in range(0, len(rows), size)]

    def _measure(self, rows: list[dict]) -> Measured:
        batch = self._prepare_inputs(self.data_collator(rows))
        with torch.no_grad(), self.accelerator.autocast():
            loss = self.compute_loss(self.model, batch)
        live = self.compute_ref_log_probs(self.model, batch)
        stored = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
        metrics = {name: values[-1] for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        return Measured(
            loss=loss.item(),
            reward_chosen=metrics["rewards/chosen"],
            reward_rejected=metrics["rewards/rejected"],
            reference_error=max((one - two).abs().max().item() for one, two in zip(live, stored, strict=True)),
            start=self._start_value(batch),
        )

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

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        path = self._reference.folder / f"{name}.json"
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == self._reference.key:
                for side in ("ref_chosen_logps", "ref_rejected_logps"):
                    dataset = dataset.add_column(side, stored[side])
                return dataset
        # TRL caches by data and weights alone; another ld_alpha in the same process would get the wrong numbers
        self._precompute_model_hash = f"{self._precompute_model_hash} {self._reference.key} {self.ld_alpha}"
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        columns = {side: list(dataset[side]) for side in ("ref_chosen_logps", "ref_rejected_logps")}
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            raise CaiError(
                "The starting policy gives log-probabilities that are not finite: weights or precision are broken.",
                "Set models.dtype=fp32, or bf16 on a card with compute capability 8.0 or higher.",
            )
        write_json(path, {"key": self._reference.key, **columns})
        return dataset


def build_trainer(
    settings: Settings,
    folder: Path,
    train: list[PreferenceRow],
    held_out: list[PreferenceRow],
    tokenizer: PreTrainedTokenizerBase,
    dtype: Dtype,
    machine: Machine,
    reference_key: str,
    tuned: Path | None = None,
) -> PolicyTrainer:
    """Load the policy and hand it to TRL, checkpoints and reference log-probabilities in `folder`.

    An adapter that is continued (Stage 2, or the supervised result in `tuned`) is copied by TRL, frozen, as the
    reference. A new LoRA starts at zero, on the base or on the merged Stage 2: the reference is that model with the
    LoRA switched off.
    """
    pair = encode(held_out[0], tokenizer)
    start = load_start(settings, pair.prompt + pair.chosen, tuned)
    return PolicyTrainer(
        reference=ReferenceStore(folder / "reference", reference_key),
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
