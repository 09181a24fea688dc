"""Supervised fine-tuning on the winning revisions through TRL: the first phase of the paper, alone or before DPO.

Bai et al. 2022, arXiv 2212.08073, section 3. Only answer tokens count. Importing this imports torch and TRL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import Dtype, Machine
from cai_helpers.models.language import load_tokenizer
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Models, Settings
from cai_helpers.training.checks import Check, check_trained_parameters, merged_in
from cai_helpers.training.halving import RowsAtOnce
from cai_helpers.training.memory_plan import settle_checkpointing
from cai_helpers.training.outcome.course import kept_row
from cai_helpers.training.outcome.sft import SftReport
from cai_helpers.training.policy.lora import POLICY, require_equal
from cai_helpers.training.rows.pairs import EncodedPair, Preferences, as_completions, encode, revisions
from cai_helpers.training.run import Job, Method, carry_out
from cai_helpers.training.trainer import (
    PolicyTraining,
    Start,
    load_start,
    on_one_gpu,
    shared_arguments,
    trainer_options,
)
from cai_helpers.training.watch.history import TrainingHistory
from cai_helpers.training.watch.views import OF_REVISIONS

IGNORED = -100  # the label of tokens that do not count
_MEASURES = {"loss": "loss", "mean_token_accuracy": "token_accuracy"}  # TRL's name → ours; eval_ before either


def train_supervised(job: Job, data: Preferences) -> SftReport:
    """Fine-tune on the winning revisions.

    Raises:
        CaiError: no revision won; and as run.carry_out.
    """
    trained = carry_out(job, by_supervision(job, data))
    return SftReport(
        **dict(trained.course),
        rows=len(trained.trainer.train_dataset),
        eval_rows=len(trained.trainer.eval_dataset),
        eval_token_accuracy=kept_row(trained.rows, trained.course.best_step)["eval_token_accuracy"],
    )


def by_supervision(job: Job, data: Preferences) -> Method[SupervisedTrainer]:
    settings, tokenizer = job.settings, load_tokenizer(job.settings.models.base)
    train, held_out = revisions(data.train).rows, revisions(data.held_out).rows
    if not train or not held_out:
        raise CaiError(
            f"{len(train)} winning revisions to learn from and {len(held_out)} held out: both are needed.",
            "Set train.method=dpo, which also learns from drafts that won, or generate more pairs.",
        )
    encoded = (encode(row, tokenizer) for row in (*train, *held_out))
    longest = max(len(pair.prompt) + len(pair.chosen) for pair in encoded)
    settings = settle_checkpointing(settings, job.dtype, job.machine, longest)
    return Method(
        header=f"{len(train)} winning revisions, {len(held_out)} held out, {job.dtype} on {job.machine.name}",
        longest=longest,
        sides=1,
        build=lambda: build_supervised(
            settings, job.files.checkpoints, train, held_out, tokenizer, job.dtype, job.machine
        ),
        check=lambda trainer: check_supervised(trainer, train, settings.models),
        history=SupervisedHistory,
    )


class SupervisedTrainer(PolicyTraining, RowsAtOnce, SFTTrainer):
    def __init__(self, start: Start, **options: Any) -> None:
        self.start = start
        super().__init__(**options)


def build_supervised(
    settings: Settings,
    folder: Path,
    train: list[PreferenceRow],
    held_out: list[PreferenceRow],
    tokenizer: PreTrainedTokenizerBase,
    dtype: Dtype,
    machine: Machine,
) -> SupervisedTrainer:
    """Load the policy as DPO would and hand it to TRL with prompts and chosen answers; checkpoints in `folder`."""
    pair = encode(held_out[0], tokenizer)
    start = load_start(settings, pair.prompt + pair.chosen)
    arguments = SFTConfig(
        **shared_arguments(settings, folder, dtype, machine),
        num_train_epochs=settings.train.sft_epochs,
        learning_rate=settings.train.sft_learning_rate,
        completion_only_loss=True,
    )
    return SupervisedTrainer(
        start=start,
        args=on_one_gpu(arguments, machine),
        train_dataset=as_completions(train),
        eval_dataset=as_completions(held_out),
        processing_class=tokenizer,
        **trainer_options(settings, start),
    )


def check_supervised(trainer: SupervisedTrainer, rows: list[PreferenceRow], models: Models) -> list[Check]:
    """One line for each thing that was checked before the first update.

    Raises:
        CaiError: one of them does not hold; it says which, and what to do.
    """
    start = trainer.start
    beginning = f"the base model {models.base}{merged_in(start)}, with a new LoRA"
    if start.adapter is not None:
        beginning = f"{start.adapter}: its {require_equal(trainer.model, POLICY, start.adapter)} tensors equal the file"
    return [
        check_trained_parameters(trainer.model),
        Check("start", beginning),
        _check_labels(trainer, [encode(row, trainer.processing_class) for row in rows]),
    ]


def _check_labels(trainer: SupervisedTrainer, pairs: list[EncodedPair]) -> Check:
    """In the batches as the model will get them: whole rows, answer tokens labelled with themselves, nothing else."""
    size = trainer.args.per_device_train_batch_size
    if len(trainer.train_dataset) != len(pairs):
        raise _wrong_labels(f"{len(pairs)} rows became {len(trainer.train_dataset)}")
    columns = ["input_ids", "labels"]
    for first in range(0, len(pairs), size):
        batch = trainer.data_collator(list(trainer.train_dataset.select(range(first, min(first + size, len(pairs))))))
        tokens, labels, attended = (batch[name].tolist() for name in (*columns, "attention_mask"))
        for place, pair in enumerate(pairs[first : first + size]):
            length = len(pair.prompt) + len(pair.chosen)
            padding = [IGNORED] * (len(tokens[place]) - length)
            if tokens[place][:length] != pair.prompt + pair.chosen or sum(attended[place]) != length:
                raise _wrong_labels(f"row {first + place + 1} is cut or has other tokens")
            if labels[place] != [IGNORED] * len(pair.prompt) + pair.chosen + padding:
                raise _wrong_labels(f"the labels of row {first + place + 1} are not those of its answer")
    counted, masked = sum(len(pair.chosen) for pair in pairs), sum(len(pair.prompt) for pair in pairs)
    return Check("labels", f"{counted:,} answer tokens count, {masked:,} prompt tokens are masked; no row is cut")


def _wrong_labels(what: str) -> CaiError:
    return CaiError(
        f"The batches for supervised fine-tuning are not the rows: {what}.",
        "The chat template may not suit it, or the installed trl is not 1.16: `cai doctor` shows the versions.",
    )


class SupervisedHistory(TrainingHistory):
    """Rows {step, epoch, seconds, loss, token_accuracy, lr, …} and {…, eval_loss, eval_token_accuracy}.

    Resuming, sealing and rotation are those of DPO; its alarms are about preferences, and there are none.
    """

    measures: ClassVar = _MEASURES
    detectors: ClassVar = []
    view: ClassVar = OF_REVISIONS

    def _evaluation_line(self, row: dict[str, Any]) -> str:
        return (
            f"step {row['step']}  held-out revisions: loss {row['eval_loss']:.4f}  "
            f"tokens right {row['eval_token_accuracy']:.2f}{self._best_mark(row)}"
        )

    def _line(self, row: dict[str, Any], state: Any) -> str:
        return (
            f"step {row['step']}/{state.max_steps}  loss {row['loss']:.4f}  tokens right {row['token_accuracy']:.2f}  "
            f"lr {row['lr']:.1e}  {self._speed(row, state)}"
        )
