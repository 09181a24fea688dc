"""The reference's log-probabilities, computed once and kept beside the checkpoints; and what holds before the first update.

Importing this imports torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from cai_helpers.errors import CaiError
from cai_helpers.machine.processes import Processes, this_process
from cai_helpers.models.batches import is_out_of_memory, release_memory
from cai_helpers.training.policy.reference_store import ReferenceStore

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # one of TRL's comes behind it


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


class StoredReference(Trainer):
    """Mixed into a trainer of TRL that precomputes its reference, in front of it."""

    _precompute_model_hash: str  # of TRL's own cache
    _at_once: int | None = None  # rows that fit into memory; None: not tried
    reference_columns: ClassVar[tuple[str, str]]  # as TRL names them, in the order of its compute_ref_log_probs

    def __init__(self, reference: ReferenceStore, **options: Any) -> None:
        self._reference = reference  # before super().__init__, which computes the log-probabilities
        super().__init__(**options)

    def measure(self, rows: int) -> list[Measured]:
        """The first `rows` training rows that the reference saw, in the batches in which it did."""
        self.model.eval()
        size = min(self.args.per_device_train_batch_size, self._at_once or self.args.per_device_train_batch_size)
        first = list(self.train_dataset.select(self._reference_order(self.train_dataset)[:rows]))
        return [self._measure(first[start : start + size]) for start in range(0, len(first), size)]

    def _measure(self, rows: list[dict[str, Any]]) -> Measured:
        batch = self._prepare_inputs(self.data_collator(rows))
        with torch.no_grad(), self.accelerator.autocast():
            loss = self.compute_loss(self.model, batch)
        live = self.compute_ref_log_probs(self.model, batch)
        stored = [batch[column] for column in self.reference_columns]
        metrics = {name: values[-1] for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        return Measured(
            loss=loss.item(),
            reward_chosen=metrics.get("rewards/chosen", 0.0),  # a batch of unpaired rows may hold one side alone
            reward_rejected=metrics.get("rewards/rejected", 0.0),
            reference_error=max((now - then).abs().max().item() for now, then in zip(live, stored, strict=True)),
            start=self._start_value(batch),
        )

    def _start_value(self, batch: dict[str, torch.Tensor]) -> float | None:
        """The loss of this batch where policy and reference are the same."""
        raise NotImplementedError

    def _reference_order(self, dataset: Any) -> list[int]:
        """In which the reference sees the rows."""
        return [*range(len(dataset))]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        processes = this_process()
        columns = processes.told(lambda: self._reference.read(name))
        if columns is None:
            order = self._reference_order(dataset)
            found = self._of_rows(dataset.select(order), name, batch_size, processes)
            back = sorted(range(len(order)), key=order.__getitem__)
            columns = {column: [values[place] for place in back] for column, values in found.items()}
            self._keep(columns, name)
        for column in self.reference_columns:
            dataset = dataset.add_column(column, columns[column])
        return dataset

    def _of_rows(self, dataset: Any, name: str, batch_size: int, processes: Processes) -> dict[str, list[float]]:
        if processes.count > 1:  # TRL would look for its cache in a folder that only the main process has
            return self._computed(dataset, batch_size, processes)
        # TRL caches by data and weights alone; another ld_alpha in the same process would get the wrong numbers
        ld_alpha = getattr(self, "ld_alpha", None)
        self._precompute_model_hash = f"{self._precompute_model_hash} {self._reference.key} {ld_alpha}"
        measured = self._measured_in_batches(dataset, name, batch_size)
        return {column: list(measured[column]) for column in self.reference_columns}

    def _measured_in_batches(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Halved until they fit; a row's values do not depend on those beside it."""
        while True:
            self._at_once = min(self._at_once or batch_size, batch_size)
            try:
                return super()._precompute_ref_logps(dataset, name, self._at_once)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._at_once == 1:
                    raise
            self._at_once //= 2
            release_memory()

    def _computed(self, dataset: Any, batch_size: int, processes: Processes) -> dict[str, list[float]]:
        """In the batches of one process, each process some of them; one that has none left meanwhile computes the first again,
        since all must compute as many where the base is cut up."""
        own, starts = [], range(0, len(dataset), batch_size)
        for first in range(processes.index, len(starts) + processes.index, processes.count):
            start = starts[first] if first < len(starts) else 0
            rows = [dataset[place] for place in range(start, min(start + batch_size, len(dataset)))]
            batch = self._prepare_inputs(self.data_collator(rows))
            found = [values.tolist() for values in self.compute_ref_log_probs(self.model, batch)]
            if first < len(starts):
                own.append((start, found))
        parts = [values for _, values in sorted(processes.gathered(own))]
        return {
            column: [value for part in parts for value in part[place]]
            for place, column in enumerate(self.reference_columns)
        }

    def _keep(self, columns: dict[str, list[float]], name: str) -> None:
        """They are looked at and written down."""
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            raise CaiError(
                "The starting policy gives log-probabilities that are not finite: weights or precision are broken.",
                "Set models.dtype=fp32, or bf16 on a card with compute capability 8.0 or higher.",
            )
        self._reference.write(name, columns)
