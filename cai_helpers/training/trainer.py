"""What training by DPO, KTO and supervised fine-tuning has in common: it resumes what it saved and stops at NaN."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from peft import PeftModel, get_peft_model
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging

from cai_helpers import ground
from cai_helpers.errors import CaiError
from cai_helpers.failures import number_of_system
from cai_helpers.machine.hardware import Dtype, Machine
from cai_helpers.machine.processes import base_is_cut_up, this_process
from cai_helpers.models.batches import is_out_of_memory
from cai_helpers.models.hub import locate
from cai_helpers.models.language import attach_adapter, load_base
from cai_helpers.settings import Settings, Train
from cai_helpers.training.cut_up import cut_up, mesh_of_all
from cai_helpers.training.halving import Halving
from cai_helpers.training.load import load_of_each
from cai_helpers.training.one_step.lora_linear import LoraLayers
from cai_helpers.training.one_step.model import in_one_step
from cai_helpers.training.policy.lora import POLICY, fresh_lora, restore_policy
from cai_helpers.training.policy.merged import Merged, merge_stage2
from cai_helpers.training.spread import SpreadTraining
from cai_helpers.training.watch import checkpoints
from cai_helpers.training.watch.finite import not_finite

_SETTLED = ("sft", "kto")  # methods that checkpoint all of training or nothing of it, by the memory plan


class PolicyTraining(SpreadTraining, Halving):
    """Mixed into one of TRL's trainers, in front of it."""

    start: Start
    lora_layers: LoraLayers

    def __init__(self, **options: Any) -> None:
        ground.make_folder(Path(options["args"].output_dir))  # the Trainer would make the folders above it as well
        super().__init__(**options)
        self.lora_layers = in_one_step(self.accelerator.unwrap_model(self.model))
        self.trained = [weights for weights in self.model.parameters() if weights.requires_grad]
        self.add_callback(_ForgetsOnlyTheTrained(self))
        self.remove_callback(PrinterCallback)  # prints every log as a dictionary; ours says it in a line

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):  # before the optimizer's step: the last checkpoint stays good
            raise not_finite("loss", self.state.global_step + 1)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with ground.writing(Path(self.args.output_dir)), _named(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)
        self.processes.wait()  # each writes its random state into it, and it is sealed next

    def save_elsewhere(self, folder: Path) -> Path:
        """Write and seal a checkpoint of the step that training has come to below another folder."""
        self.args.output_dir = str(folder)
        super()._save_checkpoint(self.model, None)
        saved = checkpoints.at_step(folder, self.state.global_step)
        checkpoints.seal(saved)
        return saved

    def _clip_grad_norm(self, model: Any) -> Any:
        """Of what trains alone: transformers walks through the frozen base for it at each step."""
        return self.accelerator.clip_grad_norm_(self.trained, self.args.max_grad_norm)

    def forget_gradients(self, set_to_none: bool = True) -> None:
        for weights in self.trained:
            weights.grad = None

    def floating_point_ops(self, inputs: Any) -> int:
        """None are counted: for a number that nobody reads, transformers walks through all modules at each step."""
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None a checkpoint: the export writes one, from what was measured."""

    def _send_telemetry(self) -> None:
        """Nothing about a run leaves the machine."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The root of a checkpoint is the policy.

        transformers 5.15–5.22 load only the sub-folders, here the reference: the policy would be Stage 2 again.
        """
        restore_policy(self.model, Path(resume_from_checkpoint))


class _ForgetsOnlyTheTrained(TrainerCallback):
    """Between two steps transformers walks through the frozen base as well, to forget gradients that it has not."""

    def __init__(self, trainer: PolicyTraining) -> None:
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.model_wrapped.zero_grad = self._trainer.forget_gradients


@contextmanager
def _named(folder: str) -> Iterator[None]:
    """safetensors does not say which file could not be written."""
    try:
        yield
    except Exception as error:
        if (number := number_of_system(error)) is None:
            raise
        raise OSError(number, os.strerror(number), folder) from error


class Start(NamedTuple):
    """The policy as training finds it."""

    model: Any
    adapter: str | None  # what it continues; None: TRL puts a new LoRA on `model`
    merged: Merged | None  # Stage 2, where it is part of the model's own weights


def load_start(settings: Settings, probe: list[int], tuned: Path | None = None) -> Start:
    """Load the base and put on it what training starts from.

    Stage 2 as an adapter to continue; with train.fresh_adapter merged into the weights. Then the supervised result
    `tuned`, where there is one. probe: token ids on which the rounding of the merge is measured.

    A base that is cut up is read by one process of a host after the other, into the host's memory.
    """
    if not base_is_cut_up():
        return _loaded(settings, probe, tuned)
    mesh = mesh_of_all()

    def own_part() -> Start:
        start = _loaded(settings, probe, tuned, "cpu")
        model = start.model
        if start.adapter is None:  # on what is cut up already, PEFT 0.20 would make a LoRA of a part's shape
            set_seed(settings.seed)
            model = get_peft_model(model, fresh_lora(settings.train))
        return start._replace(model=cut_up(model, mesh))

    return this_process().in_turns(own_part)


def _loaded(settings: Settings, probe: list[int], tuned: Path | None, device: str | None = None) -> Start:
    stage2, merged = settings.models.adapter, None
    model = load_base(settings.models, device)
    if stage2 is not None and settings.train.fresh_adapter:
        model, merged = merge_stage2(model, stage2, probe)
        stage2 = None
    adapter = str(tuned) if tuned is not None else stage2
    if adapter is not None:
        model = attach_adapter(model, adapter, POLICY, trainable=True)
        # PEFT looks there at each save; the adapter may name a folder of the machine it was trained on
        model.peft_config[POLICY].base_model_name_or_path = locate(settings.models.base)
    return Start(model.eval(), adapter, merged)


def trainer_options(settings: Settings, start: Start) -> dict[str, Any]:
    """The model and, where it has no adapter yet, the LoRA that TRL puts on it, seeded."""
    lora = None if isinstance(start.model, PeftModel) else fresh_lora(settings.train)
    return {"model": start.model, "peft_config": lora, "batch_size": settings.train.batch_size}


def shared_arguments(settings: Settings, folder: Path, dtype: Dtype, machine: Machine) -> dict[str, Any]:
    """Training arguments of either method."""
    if dtype == "fp16" and machine.device == "cpu":
        raise CaiError("fp16 training needs a GPU, and there is none.", "Set models.dtype=auto.")
    train = settings.train
    load = load_of_each(train, this_process().count)
    return {
        "output_dir": str(folder),
        "warmup_steps": train.warmup,  # below 1 it is a share of all steps
        "per_device_train_batch_size": load.batch_size,
        "per_device_eval_batch_size": train.batch_size,
        "gradient_accumulation_steps": load.accumulation,
        "ddp_broadcast_buffers": False,  # none changes
        "ddp_find_unused_parameters": False,  # each LoRA matrix is in each step
        "max_length": train.max_length,
        "gradient_checkpointing": bool(train.gradient_checkpointing),
        # both said outright: TRL turns bf16 on by itself, and a T4 emulates it
        "fp16": dtype == "fp16",
        "bf16": dtype == "bf16",
        "use_cpu": machine.device == "cpu",
        "eval_strategy": "steps",
        "eval_steps": train.every_steps,
        "save_strategy": "steps",
        "save_steps": train.every_steps,  # rotation and the best checkpoint are ours: checkpoints.rotate
        "logging_steps": train.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would show a NaN loss as 0.0
        "seed": settings.seed,
        "data_seed": settings.seed,
        "dataloader_pin_memory": machine.device == "cuda",
        "report_to": reporting(train),
        "disable_tqdm": True,
    }


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


def on_one_gpu(arguments: Any, machine: Machine) -> Any:
    if machine.gpus > 1:
        arguments._n_gpu = 1  # the Trainer would wrap the model in DataParallel, which TRL refuses
    return arguments


@contextmanager
def explained_memory(train: Train) -> Iterator[None]:
    """Running out of memory, in words of what to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        what = "Training does not fit into the accelerator's memory, not even with a row at a time."
        if train.gradient_checkpointing is False or (train.gradient_checkpointing is None and train.method in _SETTLED):
            raise CaiError(
                what,
                "Run the same again with --set train.gradient_checkpointing=true: it goes on from the last checkpoint.",
            ) from error
        raise CaiError(
            what,
            "Restart the runtime so that nothing else holds memory, and run the same again: it goes on from the last "
            f"checkpoint. If that is not enough, leave out the longest rows and start over: `cai train --fresh --set "
            f"train.max_length={max(32, train.max_length // 2)}`; or take a larger card.",
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
