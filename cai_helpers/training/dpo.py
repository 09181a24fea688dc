"""DPO through TRL: a policy that continues Stage 2, its frozen copy as the reference, no second model in memory.

Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Importing this imports torch and TRL; stages do it when they train.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import Dtype, Machine
from cai_helpers.machine.processes import base_is_cut_up
from cai_helpers.models.chat_format import ChatFormat
from cai_helpers.models.language import load_tokenizer
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Models, Settings
from cai_helpers.store import write_jsonl
from cai_helpers.training.checks import (
    Check,
    check_reference,
    check_start,
    check_stored_reference,
    check_trained_parameters,
)
from cai_helpers.training.cut_batches import CutBatches
from cai_helpers.training.cut_up import unhashed
from cai_helpers.training.memory_plan import plan_room
from cai_helpers.training.outcome.dpo import DpoReport, report_of
from cai_helpers.training.outcome.drift import token_kl
from cai_helpers.training.outcome.sft import SftReport
from cai_helpers.training.policy.losses import readable, start_value
from cai_helpers.training.policy.reference import StoredReference
from cai_helpers.training.policy.reference_store import ReferenceStore
from cai_helpers.training.rows.pairs import EncodedPair, Preferences, as_dataset, encode
from cai_helpers.training.run import Job, Method, carry_out
from cai_helpers.training.trainer import (
    PolicyTraining,
    Start,
    load_start,
    on_one_gpu,
    shared_arguments,
    trainer_options,
)
from cai_helpers.training.watch.alarms import OF_PAIRS as ALARMS
from cai_helpers.training.watch.held_out import as_measured
from cai_helpers.training.watch.history import TrainingHistory
from cai_helpers.training.watch.views import OF_PAIRS

_PAIRS = 16  # measured for the loss

# TRL's name → ours; eval_ before either.
_MEASURES = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}


def train_by_dpo(
    job: Job, data: Preferences, reference: ReferenceStore, sft: SftReport | None = None, tuned: Path | None = None
) -> DpoReport:
    """Train on pairs, and measure the held-out ones under the policy that is kept.

    sft, tuned: the supervised phase before it, and its adapter, from which DPO starts then.

    Raises:
        CaiError: as run.carry_out.
    """
    trained = carry_out(job, by_dpo(job, data, reference, tuned))
    trainer = trained.trainer
    held_out = as_measured(data.held_out.rows, trainer.eval_dataset, trainer.measure_each(trainer.eval_dataset))
    if trainer.processes.is_main:
        write_jsonl(job.workspace.held_out, (pair.model_dump() for pair in held_out))
    return report_of(trained.course, job.settings, trained.rows, data, held_out, sft, token_kl(trainer))


def by_dpo(job: Job, data: Preferences, reference: ReferenceStore, tuned: Path | None = None) -> Method[PolicyTrainer]:
    settings, tokenizer = job.settings, load_tokenizer(job.settings.models.base)
    train, held_out = data.train.rows, data.held_out.rows
    return Method(
        header=f"{len(train)} pairs, {len(held_out)} held out, {job.dtype} on {job.machine.name}",
        longest=data.longest,
        sides=2,
        build=lambda: build_trainer(
            settings, job.files.checkpoints, train, held_out, tokenizer, job.dtype, job.machine, reference, tuned
        ),
        check=lambda trainer: check_flight(trainer, settings.models, data),
        history=PairHistory,
    )


class PolicyTrainer(PolicyTraining, CutBatches, StoredReference, DPOTrainer):
    """TRL's trainer, which resumes the policy it saved, stops at NaN, computes the reference once, and a prompt once."""

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
            chosen, rejected = (self._metrics["eval"][f"rewards/{side}"][-1] for side in ("chosen", "rejected"))
            rewards.append((chosen, rejected))
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
    with unhashed() if base_is_cut_up() else nullcontext():
        return PolicyTrainer(
            reference=reference,
            start=start,
            room=plan_room(settings, dtype, machine),
            args=training_arguments(settings, folder, dtype, machine, continued=start.adapter is not None),
            train_dataset=as_dataset(train),
            eval_dataset=as_dataset(held_out),
            processing_class=tokenizer,
            **trainer_options(settings, start),
        )


def training_arguments(settings: Settings, folder: Path, dtype: Dtype, machine: Machine, continued: bool) -> DPOConfig:
    train = settings.train
    arguments = DPOConfig(
        **(shared_arguments(settings, folder, dtype, machine) | {"gradient_checkpointing": False}),  # see CutBatches
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


def check_flight(trainer: PolicyTrainer, models: Models, data: Preferences) -> list[Check]:
    """One line for each thing that was checked.

    Raises:
        CaiError: one of them does not hold; it says which, and what to do.
    """
    return [
        check_trained_parameters(trainer.model),
        check_reference(trainer.model, trainer.start, models),
        check_stored_reference(trainer),
        *_check_rows(trainer, data),
        _check_padding(trainer),
        _check_ends(trainer),
        # after the rows: what is wrong with them would show here in other words
        check_start(trainer.measure(_PAIRS), readable(trainer.loss_types, trainer.loss_weights)),
    ]


def _check_rows(trainer: PolicyTrainer, data: Preferences) -> list[Check]:
    """Every row that was meant to train is there, whole, and in the tokens that the model answers in."""
    wanted = [*data.train.rows, *data.held_out.rows]
    prepared = [*trainer.train_dataset, *trainer.eval_dataset]
    limit = trainer.args.max_length
    if len(prepared) != len(wanted):
        raise CaiError(
            f"Of {len(wanted)} pairs the trainer kept {len(prepared)}: it dropped rows that fit into {limit} tokens.",
            "The installed trl prepares rows in another way: `cai doctor` shows the versions.",
        )
    longest = 0
    for row, ids in zip(wanted, prepared, strict=True):
        pair = encode(row, trainer.processing_class)  # raises when the sides are equal or the prompt is no prefix
        if EncodedPair(ids["prompt_ids"], ids["chosen_ids"], ids["rejected_ids"]) != pair:
            raise CaiError(
                f"Row {row.id}: the trainer's tokens are not those of the chat template.",
                "The installed trl prepares rows in another way: `cai doctor` shows the versions.",
            )
        longest = max(longest, pair.length)
    if longest > limit:
        raise CaiError(
            f"A row has {longest} tokens and would be cut at train.max_length = {limit}: it would teach not to end.",
            f"Set train.max_length={longest}, or take the row out of dpo_dataset/.",
        )
    return [
        Check("sides", f"chosen and rejected differ in {len(wanted)} of {len(wanted)} pairs"),
        Check(
            "prompt", f"its tokens begin both sides in {len(wanted)} of {len(wanted)} pairs, as in the chat template"
        ),
        Check(
            "whole rows", f"0 cut; the longest has {longest} of {limit} tokens; {data.too_long} left out as too long"
        ),
    ]


def _check_padding(trainer: PolicyTrainer) -> Check:
    """In a batch of a long and a short row: the loss sees the answers' tokens, all of them, and no padding."""
    rows = sorted(trainer.train_dataset, key=lambda row: len(row["chosen_ids"]) + len(row["prompt_ids"]))
    rows = [rows[0], rows[-1]]
    batch = trainer.data_collator(rows)
    answers = [len(row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    seen = (batch["completion_mask"].bool() & batch["attention_mask"].bool()).sum(dim=1).tolist()
    padded = batch["input_ids"][~batch["attention_mask"].bool()]
    pad = trainer.processing_class.pad_token_id
    if seen != answers or not bool((padded == pad).all()):
        raise CaiError(
            f"In a padded batch the loss sees {seen} tokens of answers that have {answers}.",
            "Set train.batch_size=1 (with a larger train.accumulation), and check the tokenizer's pad token.",
        )
    return Check("pad token", f"{trainer.processing_class.pad_token!r} (id {pad}), never seen by the loss")


def _check_ends(trainer: PolicyTrainer) -> Check:
    """How many answers teach the model to end. None at all: it would not end when it generates, either."""
    chat_format = ChatFormat(trainer.processing_class, trainer.model.generation_config)
    ends = set(chat_format.ends)
    answers = [ids for side in ("chosen_ids", "rejected_ids") for ids in trainer.train_dataset[side]]
    ended = sum(not ends.isdisjoint(ids[-2:]) for ids in answers)  # Gemma's template closes with <end_of_turn> and "\n"
    if not ended:
        raise CaiError(
            f"None of {len(answers)} answers closes with an end token ({chat_format.readable_ends()}): the model would not learn to end.",
            "The chat template leaves an answer open: take an instruct model whose template closes each turn with a token.",
        )
    return Check("end token", f"{ended} of {len(answers)} answers close with one of {chat_format.readable_ends()}")


class PairHistory(TrainingHistory):
    """Rows {step, epoch, seconds, loss, accuracy, margin, rewards_…, logps_…, lr, …} and {…, eval_loss, …}."""

    measures: ClassVar = _MEASURES
    detectors: ClassVar = ALARMS
    view: ClassVar = OF_PAIRS

    def _evaluation_line(self, row: dict[str, Any]) -> str:
        return (
            f"step {row['step']}  held-out pairs: loss {row['eval_loss']:.4f}  "
            f"accuracy {row['eval_accuracy']:.2f}  margin {row['eval_margin']:+.3f}{self._best_mark(row)}"
        )

    def _line(self, row: dict[str, Any], state: Any) -> str:
        return (
            f"step {row['step']}/{state.max_steps}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2f}  "
            f"margin {row['margin']:+.3f}  chosen {row['rewards_chosen']:+.3f}  "
            f"rejected {row['rewards_rejected']:+.3f}  lr {row['lr']:.1e}  {self._speed(row, state)}"
        )
