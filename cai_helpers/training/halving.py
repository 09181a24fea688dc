"""A step that runs out of memory is made again in smaller parts, which give the same gradient; training goes on so.

The effective batch and the steps are those of a run that had the memory, and in fp32 so is the adapter, up to rounding;
with dropout (a fresh LoRA, or supervised on a Stage 2 that has it) the parts draw masks of their own. Several processes
would have to agree on it within a step, so under `accelerate launch` it is an error.

Importing this imports torch and TRL's ground, transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cai_helpers.models.batches import is_out_of_memory, release_memory

if TYPE_CHECKING:
    from transformers import Trainer

    from cai_helpers.machine.processes import Processes
else:
    Trainer = object  # one of TRL's comes behind it


class _Before(NamedTuple):
    """What a batch adds to, as it was before."""

    gradients: list[torch.Tensor | None]
    figures: dict[str, list[float]]
    tokens: int


class Halving(Trainer):
    """Mixed into one of TRL's trainers, in front of what computes a batch."""

    processes: Processes
    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int
    trained: list[torch.nn.Parameter]  # of the model, gathered once
    compute_less: Callable[
        [], str | None
    ]  # half as much at once; how much that is, in words, or None: it cannot be less
    say: Callable[[str], None] = staticmethod(lambda message: None)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self.processes.count > 1:
            return super().training_step(model, inputs, num_items_in_batch)
        before = self._before()
        while True:
            try:
                return super().training_step(model, inputs, num_items_in_batch)
            except RuntimeError as error:
                if not is_out_of_memory(error) or (how := self.compute_less()) is None:
                    raise
            # outside `except`: there the traceback would still hold the tensors
            self._undo(before)
            release_memory()
            self.say(
                f"out of memory at step {self.state.global_step + 1}: it is made again, and from here on {how} at once; a "
                "step still learns from the same rows"
            )

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        while True:
            rows = self.args.per_device_eval_batch_size
            try:
                return super().evaluate(*args, **options)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.processes.count > 1 or rows == 1:
                    raise
            self._metrics["eval"].clear()
            self.args.per_device_eval_batch_size = rows // 2
            release_memory()
            self.say(f"out of memory while evaluating: from here on {rows // 2} rows are computed at once there")

    # ---- what a batch that did not fit has left

    def _before(self) -> _Before:
        gradients = [None if each.grad is None else each.grad.clone() for each in self.trained]
        figures = {name: list(values) for name, values in self._metrics["train"].items()}
        return _Before(gradients, figures, self._total_train_tokens)

    def _undo(self, before: _Before) -> None:
        for parameter, gradient in zip(self.trained, before.gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()  # it may have to be undone once more
        self._metrics["train"].clear()
        self._metrics["train"].update({name: list(values) for name, values in before.figures.items()})
        self._total_train_tokens = before.tokens


class RowsAtOnce(Trainer):
    """Behind Halving, in front of a trainer whose batches are whole as long as they fit."""

    _rows_at_once: int | None = None  # of a batch; None: all

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self._rows_at_once is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs, losses = self._prepare_inputs(inputs), []
        for part, share in self.parts(model, inputs, self._rows_at_once):
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part, num_items_in_batch=num_items_in_batch)
            if num_items_in_batch is None:  # else it is divided by the tokens of the whole step already
                loss = loss * (share / self.current_gradient_accumulation_steps)
            self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def parts(self, model: Any, inputs: dict[str, Any], rows: int) -> Iterator[tuple[dict[str, Any], float]]:
        """(some rows of a batch, their share of it), so many rows at once."""
        count = len(inputs["input_ids"])
        for first in range(0, count, rows):
            part = {name: values[first : first + rows] for name, values in inputs.items()}
            yield part, len(part["input_ids"]) / count

    def compute_less(self) -> str | None:
        """Compute half as much at once; how much that is, in words, or None: it cannot be less."""
        rows = self._rows_at_once or self.args.per_device_train_batch_size
        if rows == 1:
            return None
        self._rows_at_once = rows // 2
        return f"{self._rows_at_once} of {self.args.per_device_train_batch_size} rows are computed"
