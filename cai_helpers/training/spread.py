"""One training over several processes (DDP): the steps of one process, their batches dealt out.

Whatever the number of processes, a step is made of the same batches: those that one process would accumulate. Each process
takes every n-th of them, DDP averages the gradients, and where the last step of an epoch has none left for some process,
it computes one that counts nothing. So checkpoints go on with any other number of processes.

Importing this imports torch and TRL's ground, transformers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from transformers.trainer_utils import EvalLoopOutput

from cai_helpers.machine.processes import Processes, base_is_cut_up, this_process
from cai_helpers.training.cut_up import leave_to_fsdp, taken_by_ddp

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # one of TRL's comes behind it


class Dealt(BatchSampler):
    """Of a sampler's batches, which are the same in every process, every n-th; where the last round ends early, its first."""

    def __init__(self, batches: BatchSampler, processes: Processes) -> None:
        self.sampler, self.batch_size, self.drop_last = batches.sampler, batches.batch_size, False
        self.batches, self._processes = batches, processes

    def __iter__(self) -> Iterator[list[int]]:
        batches = iter(self.batches)
        while dealt := list(islice(batches, self._processes.count)):
            yield dealt[self._processes.index] if self._processes.index < len(dealt) else dealt[0]

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self._processes.count)

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.sampler, SeedableRandomSampler):
            self.sampler.set_epoch(epoch)


class SpreadTraining(Trainer):
    """Mixed into one of TRL's trainers, in front of it. In one process it changes nothing."""

    def __init__(self, batch_size: int | None = None, **options: Any) -> None:
        """batch_size: of one process, where those of this one are smaller."""
        self.processes = this_process()
        self._batch_of_one = batch_size or options["args"].per_device_train_batch_size
        self._place = 0  # of the batch at hand among those of this process in the step
        self._counts = 1.0  # how much its loss counts
        super().__init__(**options)
        if base_is_cut_up():
            leave_to_fsdp(self.model)

    def train(self, *args: Any, **options: Any) -> Any:
        with taken_by_ddp() if base_is_cut_up() else nullcontext():
            return super().train(*args, **options)

    # ---- the same batches a step

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, **options: Any
    ) -> DataLoader:
        """The Trainer's own, whose order is a matter of seed and epoch alone; but each process gets its batches of it."""
        if self.processes.count == 1:
            return super()._get_dataloader(dataset, description, batch_size, *args, **options)
        order = options["sampler_fn"](dataset) or SequentialSampler(dataset)
        if isinstance(order, RandomSampler):
            order = SeedableRandomSampler(dataset, data_seed=self.args.data_seed)
        loader = DataLoader(
            self._remove_unused_columns(dataset, description=description),
            batch_sampler=Dealt(BatchSampler(order, batch_size, drop_last=False), self.processes),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    # ---- that count the same

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, Any]:
        self._place = 0
        if self.processes.count > 1:
            epoch_iterator = self._without_tokens_that_do_not_count(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _without_tokens_that_do_not_count(self, batches: Iterator) -> Iterator:
        """Supervised losses are divided by the tokens of all batches of a step."""
        for place, batch in enumerate(batches):
            if "labels" in batch and not self._is_of_step(place):
                batch["labels"].fill_(-100)
            yield batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self.processes.count == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        counts = self._is_of_step(self._place)
        # a loss that is divided by the tokens of the step is left as it is
        self._counts = float(counts) if num_items_in_batch is not None else self._weight()
        try:
            with self._figures_kept(counts):
                return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._counts = 1.0
            self._place += 1

    def _is_of_step(self, place: int) -> bool:
        """Whether this process's batch number `place` of the step at hand is one that one process would have."""
        number = place * self.processes.count + self.processes.index
        return number * self.args.per_device_train_batch_size < self._rows_of_step()

    def _weight(self) -> float:
        """What the batch at hand counts for: its rows what they count for in one process, where batches count alike.

        The Trainer divides its loss by the batches of this process, and DDP by the processes. It is 1 but in the last step
        of an epoch, which has fewer rows.
        """
        size, whole, rows = self.args.per_device_train_batch_size, self._batch_of_one, self._rows_of_step()
        first = (self._place * self.processes.count + self.processes.index) * size
        own = max(0, min(size, rows - first))
        beside = min(whole, rows - first // whole * whole)  # rows of the batch of one process that these would be in
        rounds = math.ceil(math.ceil(rows / size) / self.processes.count)
        return rounds * self.processes.count * own / (beside * math.ceil(rows / whole)) if own else 0.0

    def _rows_of_step(self) -> int:
        """Of all processes, in the step at hand."""
        full = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.processes.count
        rows = len(self.train_dataset)
        return min(full, rows - (self.state.global_step % math.ceil(rows / full)) * full)

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        if self.processes.count == 1:
            return super().compute_loss(*args, **options)
        with self._alone():
            loss = super().compute_loss(*args, **options)
        return loss if self._counts == 1.0 else loss * self._counts

    # ---- and are told of the same

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        if self.processes.count == 1:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        rows, size = self.num_examples(dataloader), self.args.per_device_eval_batch_size
        last = math.ceil(rows / size) - 1
        self.model.eval()
        own: list[float] = []  # sums over rows
        for place, inputs in enumerate(dataloader):
            number = place * self.processes.count + self.processes.index
            with self._figures_kept(number <= last):
                loss, _, _ = self.prediction_step(self.model, inputs, prediction_loss_only=True)
            if number <= last:
                own.append(loss.item() * (size if number < last else rows - last * size))
        sums: list[float] = self.processes.gathered(own)
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": math.fsum(sums) / rows}, rows)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """TRL's figures are means over batches: over those of all processes."""
        if self.processes.count > 1:
            mode = "train" if self.model.training else "eval"
            figures: defaultdict[str, list[float]] = defaultdict(list)
            for name, values in chain.from_iterable(
                own.items() for own in self.processes.gathered([dict(self._metrics[mode])])
            ):
                figures[name] += values
            if "num_tokens" in figures:
                figures["num_tokens"] = [sum(figures["num_tokens"])]
            self._metrics[mode] = figures
        super().log(logs, *args, **options)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """TRL gathers a dozen figures of each batch, of equal batches: here each keeps its own until they are logged."""
        accelerator = self.accelerator
        accelerator.gather = accelerator.gather_for_metrics = _as_it_is
        try:
            yield
        finally:
            del accelerator.gather, accelerator.gather_for_metrics

    @contextmanager
    def _figures_kept(self, kept: bool) -> Iterator[None]:
        """Leave no trace in TRL's figures of a batch that does not count."""
        before = {mode: {name: list(values) for name, values in figures.items()} for mode, figures in self._figures()}
        tokens = getattr(self, "_total_train_tokens", 0)
        yield
        if not kept:
            self._total_train_tokens = tokens
            for mode, figures in self._figures():
                figures.clear()
                figures.update(before[mode])

    def _figures(self) -> list[tuple[str, Any]]:
        return [(mode, self._metrics[mode]) for mode in ("train", "eval")]


def _as_it_is(value: Any, *args: Any, **options: Any) -> Any:
    return value
