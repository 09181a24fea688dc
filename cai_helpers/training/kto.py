"""KTO through TRL: answers that are good or bad by themselves, the reference of DPO, and a KL estimated in each batch.

Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7. Importing this imports torch and TRL.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase
from trl import KTOConfig, KTOTrainer

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import Dtype, Machine
from cai_helpers.models.language import load_tokenizer
from cai_helpers.settings import Models, Settings
from cai_helpers.training.checks import (
    Check,
    check_reference,
    check_start,
    check_stored_reference,
    check_trained_parameters,
)
from cai_helpers.training.halving import RowsAtOnce
from cai_helpers.training.memory_plan import settle_checkpointing
from cai_helpers.training.outcome.course import kept_row
from cai_helpers.training.outcome.kto import KtoReport
from cai_helpers.training.policy.losses import kto_start_value
from cai_helpers.training.policy.reference import StoredReference
from cai_helpers.training.policy.reference_store import ReferenceStore
from cai_helpers.training.rows.answers import Unpaired, Weights, as_unpaired, balance, read_one_sided, unpair
from cai_helpers.training.rows.pairs import Preferences, encode_answer
from cai_helpers.training.run import Job, Method, carry_out
from cai_helpers.training.trainer import (
    PolicyTraining,
    Start,
    load_start,
    on_one_gpu,
    shared_arguments,
    trainer_options,
)
from cai_helpers.training.watch.alarms import OF_ANSWERS as ALARMS
from cai_helpers.training.watch.history import TrainingHistory
from cai_helpers.training.watch.views import OF_ANSWERS

_ROWS = 32  # measured for the loss: as many answers as DPO's check sees

# TRL's name → ours; eval_ before either. No accuracy and no margin: an answer has no other one to be compared with.
_MEASURES = {
    "loss": "loss",
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
    "kl": "kl",
}


def train_by_kto(job: Job, data: Preferences, reference: ReferenceStore) -> KtoReport:
    """Train on both sides of the pairs and on the one-sided rows.

    Raises:
        CaiError: the dataset has no one-sided file yet; and as run.carry_out.
    """
    rows = _unpaired(job, data)
    method = by_kto(job, rows, reference)
    trained = carry_out(job, method)
    kept = kept_row(trained.rows, trained.course.best_step)
    desirable = sum(row.label for row in rows.train)
    return KtoReport(
        **dict(trained.course),
        desirable=desirable,
        undesirable=len(rows.train) - desirable,
        one_sided=sum(row.reason in ("kept", "degenerate") for row in rows.train),
        eval_rows=len(rows.held_out),
        weights=balance(rows.train),
        too_long=data.too_long + rows.too_long,
        eval_reward_desirable=kept["eval_rewards_chosen"],
        eval_reward_undesirable=kept["eval_rewards_rejected"],
        eval_kl=kept["eval_kl"],
    )


def by_kto(job: Job, rows: Unpaired, reference: ReferenceStore) -> Method[UnpairedTrainer]:
    settings, tokenizer = job.settings, load_tokenizer(job.settings.models.base)
    longest = max(sum(map(len, encode_answer(row, tokenizer))) for row in (*rows.train, *rows.held_out))
    settings = settle_checkpointing(settings, job.dtype, job.machine, longest)
    return Method(
        header=f"{len(rows.train)} answers to train on, {len(rows.held_out)} held out, {job.dtype} on {job.machine.name}",
        longest=longest,
        sides=1,
        build=lambda: build_kto(
            settings, job.files.checkpoints, rows, balance(rows.train), tokenizer, job.dtype, job.machine, reference
        ),
        check=lambda trainer: check_kto(trainer, settings.models, rows),
        history=UnpairedHistory,
    )


def _unpaired(job: Job, data: Preferences) -> Unpaired:
    """The rows to train on, with a word about those that are left out."""
    settings, workspace = job.settings, job.workspace
    extra = read_one_sided(workspace.require(workspace.one_sided_rows, made_by="curate"))
    rows = unpair(
        data.train.rows,
        data.held_out.rows,
        extra,
        load_tokenizer(settings.models.base),
        settings.train.max_length,
        settings.train.batch_size,
        settings.seed,
    )
    job.say(f"{len(data.train.rows)} pairs and {sum(not row.held_out for row in extra)} one-sided rows")
    if rows.too_long:
        job.say(f"WARNING: {rows.too_long} one-sided rows are longer than train.max_length and are left out")
    if rows.alone:
        job.say(f"{rows.alone} answers left out: alone in the last batch, KTO's KL could not be estimated for them")
    return rows


class UnpairedTrainer(PolicyTraining, RowsAtOnce, StoredReference, KTOTrainer):
    reference_columns = ("ref_logps", "ref_KL_logps")
    _of_whole: torch.Tensor | None = None  # log-probabilities for the KL of the batch whose parts are at work

    def __init__(self, start: Start, **options: Any) -> None:
        self.start = start
        super().__init__(**options)

    def parts(self, model: Any, inputs: dict[str, Any], rows: int) -> Iterator[tuple[dict[str, Any], float]]:
        """The KL is estimated on the whole batch, as if it had not been cut."""
        batches = list(super().parts(model, inputs, rows))
        with self.compute_loss_context_manager():
            self._of_whole = torch.cat([self._compute_kl_logps(model, part) for part, _ in batches])
        try:
            for part, share in batches:
                yield part | {"ref_KL_logps": inputs["ref_KL_logps"]}, share
        finally:
            self._of_whole = None

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        return super()._compute_kl_logps(model, batch) if self._of_whole is None else self._of_whole

    def _start_value(self, batch: dict[str, torch.Tensor]) -> float:
        return kto_start_value(batch["label"].tolist(), self.desirable_weight, self.undesirable_weight)


def build_kto(
    settings: Settings,
    folder: Path,
    data: Unpaired,
    weights: Weights,
    tokenizer: PreTrainedTokenizerBase,
    dtype: Dtype,
    machine: Machine,
    reference: ReferenceStore,
) -> UnpairedTrainer:
    """Load the policy as DPO would and hand it to TRL; checkpoints in `folder`.

    The reference is DPO's: TRL's frozen copy of the adapter that is continued, or the model with its new LoRA switched
    off. Its log-probabilities are computed once, of the answers and of the mismatched ones that the KL is estimated on.
    """
    probe = encode_answer(data.held_out[0], tokenizer)
    start = load_start(settings, probe.prompt + probe.answer)
    arguments = KTOConfig(
        **shared_arguments(settings, folder, dtype, machine),
        num_train_epochs=settings.train.epochs,
        learning_rate=settings.train.learning_rate,
        beta=settings.train.beta,
        desirable_weight=weights.desirable,
        undesirable_weight=weights.undesirable,
        precompute_ref_log_probs=True,
        disable_dropout=start.adapter is not None,  # as in DPO: with dropout it is not the reference's policy
    )
    return UnpairedTrainer(
        reference=reference,
        start=start,
        args=on_one_gpu(arguments, machine),
        train_dataset=as_unpaired(data.train),
        eval_dataset=as_unpaired(data.held_out),
        processing_class=tokenizer,
        **trainer_options(settings, start),
    )


def check_kto(trainer: UnpairedTrainer, models: Models, data: Unpaired) -> list[Check]:
    """One line for each thing that was checked before the first update.

    Raises:
        CaiError: one of them does not hold; it says which, and what to do.
    """
    return [
        check_trained_parameters(trainer.model),
        check_reference(trainer.model, trainer.start, models),
        check_stored_reference(trainer),
        _check_labels(trainer, data),
        check_start(trainer.measure(_ROWS), "kto"),
    ]


def _check_labels(trainer: UnpairedTrainer, data: Unpaired) -> Check:
    """In the batches as the model will get them: whole rows in their order, answer tokens counted, the right label."""
    counted = masked = 0
    for rows, dataset in ((data.train, trainer.train_dataset), (data.held_out, trainer.eval_dataset)):
        if len(dataset) != len(rows):
            raise _wrong_labels(f"{len(rows)} rows became {len(dataset)}")
        size = trainer.args.per_device_train_batch_size
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            batch = trainer.data_collator(list(dataset.select(range(first, first + len(part)))))
            tokens, mask, labels = (batch[name].tolist() for name in ("input_ids", "completion_mask", "label"))
            for place, row in enumerate(part):
                prompt, answer = encode_answer(row, trainer.processing_class)
                length = len(prompt) + len(answer)
                if tokens[place][:length] != prompt + answer or batch["attention_mask"][place].sum() != length:
                    raise _wrong_labels(f"row {row.id} is cut or has other tokens")
                padding = [0] * (len(tokens[place]) - length)
                if mask[place] != [0] * len(prompt) + [1] * len(answer) + padding or labels[place] != row.label:
                    raise _wrong_labels(f"the answer or the label of row {row.id} is another")
                counted, masked = counted + len(answer), masked + len(prompt)
    return Check("labels", f"{counted:,} answer tokens count, {masked:,} prompt tokens are masked; no row is cut")


def _wrong_labels(what: str) -> CaiError:
    return CaiError(
        f"The batches for KTO are not the rows: {what}.",
        "The chat template may not suit it, or the installed trl is not 1.16: `cai doctor` shows the versions.",
    )


class UnpairedHistory(TrainingHistory):
    """Rows {step, epoch, seconds, loss, rewards_chosen, rewards_rejected, logps_…, kl, lr, …} and {…, eval_loss, …}.

    chosen: the desirable answers. Rewards are means over batches, null where no batch of the row held that kind.
    kl: the estimate that the loss compares rewards with, nats an answer, 0 where it would be negative.
    """

    measures: ClassVar = _MEASURES
    detectors: ClassVar = ALARMS
    view: ClassVar = OF_ANSWERS

    def _evaluation_line(self, row: dict[str, Any]) -> str:
        return (
            f"step {row['step']}  held-out answers: loss {row['eval_loss']:.4f}  {_rewards(row, 'eval_')}"
            f"{self._best_mark(row)}"
        )

    def _line(self, row: dict[str, Any], state: Any) -> str:
        return (
            f"step {row['step']}/{state.max_steps}  loss {row['loss']:.4f}  {_rewards(row)}  lr {row['lr']:.1e}  "
            f"{self._speed(row, state)}"
        )


def _rewards(row: dict[str, Any], prefix: str = "") -> str:
    rewards = {"desirable": row[f"{prefix}rewards_chosen"], "undesirable": row[f"{prefix}rewards_rejected"]}
    shown = "  ".join(f"{name} {'none' if reward is None else f'{reward:+.3f}'}" for name, reward in rewards.items())
    return f"{shown}  KL {row[f'{prefix}kl']:.2f}"
