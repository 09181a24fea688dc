"""DPO through TRL: a policy that continues Stage 2, its frozen copy as the reference, no second model in memory.

Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Importing this imports torch and TRL; stages do it when they train.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from peft import LoraConfig, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer

from cai_helpers.errors import CaiError
from cai_helpers.hardware import Dtype, Machine
from cai_helpers.models import attach_adapter, is_out_of_memory, load_base, locate
from cai_helpers.preference import as_dataset
from cai_helpers.schema import PreferenceRow
from cai_helpers.settings import Models, Settings, Train
from cai_helpers.store import write_atomically, write_json

POLICY, REFERENCE = "default", "ref"  # adapter names; TRL knows the policy under no other
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


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

    @property
    def margin(self) -> float:
        return self.reward_chosen - self.reward_rejected


class PolicyTrainer(DPOTrainer):
    """TRL's trainer, which resumes the policy it saved, stops at NaN, and computes the reference once."""

    def __init__(self, reference: ReferenceStore, **options: Any) -> None:
        self._reference = reference  # before super().__init__, which computes the log-probabilities
        super().__init__(**options)
        self.remove_callback(PrinterCallback)  # prints every log as a dictionary; ours says it in a line

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
        )

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

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):  # before the optimizer's step: the last checkpoint stays good
            raise not_finite("loss", self.state.global_step + 1)
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None a checkpoint: the export writes one, from what was measured."""

    def _send_telemetry(self) -> None:
        """Nothing about a run leaves the machine."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        path = self._reference.folder / f"{name}.json"
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == self._reference.key:
                for side in ("ref_chosen_logps", "ref_rejected_logps"):
                    dataset = dataset.add_column(side, stored[side])
                return dataset
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        columns = {side: list(dataset[side]) for side in ("ref_chosen_logps", "ref_rejected_logps")}
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            raise CaiError(
                "The starting policy gives log-probabilities that are not finite: weights or precision are broken.",
                "Set models.dtype=fp32, or bf16 on a card with compute capability 8.0 or higher.",
            )
        write_json(path, {"key": self._reference.key, **columns})
        return dataset

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The root of a checkpoint is the policy.

        transformers 5.15–5.22 load only the sub-folders, here the reference: the policy would be Stage 2 again.
        """
        restore_policy(self.model, Path(resume_from_checkpoint))


def build_trainer(
    settings: Settings,
    folder: Path,
    train: list[PreferenceRow],
    held_out: list[PreferenceRow],
    tokenizer: PreTrainedTokenizerBase,
    dtype: Dtype,
    machine: Machine,
    reference_key: str,
) -> PolicyTrainer:
    """Load the policy and hand it to TRL, checkpoints and reference log-probabilities in `folder`.

    With a Stage-2 adapter the policy continues it and TRL copies it, frozen, as the reference; without one a fresh
    LoRA starts at zero and the reference is the base, with the LoRA switched off.
    """
    return PolicyTrainer(
        reference=ReferenceStore(folder / "reference", reference_key),
        model=load_policy(settings.models),
        args=training_arguments(settings, folder, dtype, machine),
        train_dataset=as_dataset(train),
        eval_dataset=as_dataset(held_out),
        processing_class=tokenizer,
        peft_config=None if settings.models.adapter else fresh_lora(settings.train),
    )


def load_policy(models: Models) -> PreTrainedModel:
    model = load_base(models)
    if models.adapter is not None:
        model = attach_adapter(model, models.adapter, POLICY, trainable=True)
        # PEFT looks there at each save; the adapter may name a folder of the machine it was trained on
        model.peft_config[POLICY].base_model_name_or_path = locate(models.base)
    return model.eval()


def fresh_lora(train: Train) -> LoraConfig:
    return LoraConfig(
        r=train.lora_r,
        lora_alpha=train.lora_alpha,
        lora_dropout=train.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def training_arguments(settings: Settings, folder: Path, dtype: Dtype, machine: Machine) -> DPOConfig:
    if dtype == "fp16" and machine.device == "cpu":
        raise CaiError("fp16 training needs a GPU, and there is none.", "Set models.dtype=auto.")
    train = settings.train
    arguments = DPOConfig(
        output_dir=str(folder),
        num_train_epochs=train.epochs,
        beta=train.beta,
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup,  # below 1 it is a share of all steps
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        max_length=train.max_length,
        gradient_checkpointing=train.gradient_checkpointing,
        # both said outright: TRL turns bf16 on by itself, and a T4 emulates it
        fp16=dtype == "fp16",
        bf16=dtype == "bf16",
        use_cpu=machine.device == "cpu",
        precompute_ref_log_probs=True,
        # a Stage-2 LoRA with dropout is not the reference's policy; a fresh one starts at zero, dropped or not
        disable_dropout=settings.models.adapter is not None,
        eval_strategy="steps",
        eval_steps=train.every_steps,
        save_strategy="steps",
        save_steps=train.every_steps,  # rotation and the best checkpoint are ours: checkpoints.rotate
        logging_steps=train.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would show a NaN loss as 0.0
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_pin_memory=machine.device == "cuda",
        report_to=reporting(train),
        disable_tqdm=True,
    )
    if machine.gpus > 1:
        arguments._n_gpu = 1  # the Trainer would wrap the model in DataParallel, which TRL refuses
    return arguments


def reporting(train: Train) -> str:
    """train.report_to, as TRL takes it.

    Raises:
        CaiError: the package is not installed.
    """
    if train.report_to != "none" and importlib.util.find_spec(train.report_to) is None:
        raise CaiError(
            f"train.report_to={train.report_to}, but the package {train.report_to} is not installed.",
            f"Install it (pip install {train.report_to}), or set train.report_to=none.",
        )
    return train.report_to


@contextmanager
def explained_memory(train: Train) -> Iterator[None]:
    """Running out of memory, in words of what to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        smaller = "a smaller train.max_length"
        if train.batch_size > 1:
            smaller = f"train.batch_size={train.batch_size // 2} and train.accumulation={train.accumulation * 2}"
        raise CaiError(
            "Training does not fit into the accelerator's memory.",
            "Restart the runtime so that nothing else holds memory; set train.gradient_checkpointing=true, or "
            f"{smaller}.",
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Progress bars of map() and notes of the libraries, silenced while we speak for them; errors still show.

    FutureWarning: transformers 5.23 renames gradient_checkpointing, which 5.15 and TRL know by no other name.
    """
    level, bars = logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def not_finite(what: str, step: int) -> CaiError:
    return CaiError(
        f"The {what} is not finite at step {step}; training stopped before it could spoil a checkpoint.",
        "Halve train.learning_rate; on a card with compute capability 8.0 or higher set models.dtype=bf16. "
        "Then `cai train --fresh`.",
    )


def restore_policy(model: Any, folder: Path) -> None:
    """Load the adapter at the root of `folder` into the policy, and compare what is there now with the file."""
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=POLICY)
    require_equal(model, POLICY, str(folder))


def save_policy(model: Any, folder: Path, base: str) -> None:
    """Write the policy as a PEFT adapter that stands for itself on `base`, and compare the files with the model."""
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(str(draft), selected_adapters=[POLICY], save_embedding_layers=False)
    config = json.loads((draft / CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base  # PEFT writes where it was loaded from, a folder of this machine
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])  # written from a set, in no order
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, (draft / WEIGHTS_FILE).read_bytes())
    write_json(folder / CONFIG_FILE, config)
    shutil.rmtree(draft)
    require_equal(model, POLICY, str(folder))


def require_equal(model: Any, adapter_name: str, source: str) -> int:
    """How many tensors of the adapter equal those of the file at `source`: all of them.

    Raises:
        CaiError: a tensor is missing, or differs (after the cast to the model's precision).
    """
    expected = load_peft_weights(locate(source), device="cpu")
    actual = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    differing = expected.keys() ^ actual.keys()
    differing |= {name for name in expected.keys() & actual.keys() if not _same(actual[name], expected[name])}
    if differing:
        raise CaiError(
            f"The adapter {adapter_name!r} in memory is not the one in {source}: {len(differing)} of {len(expected)} "
            f"tensors differ, such as {min(differing)}.",
            "Run it again; if it stays, the file or the installed peft is broken: `cai doctor` shows the versions.",
        )
    return len(expected)


def _same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and torch.equal(actual.cpu(), expected.to(actual.dtype))
