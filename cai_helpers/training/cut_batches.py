"""A step of DPO in as little time as its arithmetic needs: pairs of like length, cut to what fits, their prompt once.

The losses and metrics stay TRL's. Importing this imports torch and TRL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from cai_helpers.machine.processes import Processes, base_is_cut_up
from cai_helpers.training.load import OF_A_BATCH
from cai_helpers.training.memory_plan import Room
from cai_helpers.training.policy.shared_prompt import SharedPrompt, attending_in_pairs, why_not_shared
from cai_helpers.training.rows.batches import (
    InParts,
    Layout,
    LikeLengths,
    PairCollator,
    Parts,
    lengths_of,
    shortest_first,
)

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # TRL's comes behind it


class CutBatches(Trainer):
    """Mixed into TRL's DPOTrainer, in front of it, behind what looks at the loss of a step."""

    processes: Processes
    data_collator: Any  # PairCollator, and InParts while the loader is made
    loss_types: list[str]
    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int

    def __init__(self, room: Room, **options: Any) -> None:
        self._room = self._planned = room
        self._at_work = (0, 0, False)  # (rows, tokens, checkpointed) of the part at hand
        self.not_shared = why_not_shared(options["model"])  # None: pairs share their prompt
        options["data_collator"] = PairCollator(
            pad_token_id=options["processing_class"].pad_token_id,
            max_length=options["args"].max_length,
            shared=self.not_shared is None,
        )
        super().__init__(**options)

    # ---- which pairs, in which batch

    def get_train_dataloader(self) -> Any:
        collate = self.data_collator
        self.data_collator = self._cutting()
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate  # evaluation and checks take whole batches

    def _cutting(self) -> InParts:
        return InParts(self.data_collator, self._room, self._whole())

    def _whole(self) -> bool:
        """Whether the loss needs all pairs of a batch at once."""
        return not OF_A_BATCH.isdisjoint(self.loss_types)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        arguments = self.args
        together = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        dataset = self.train_dataset if train_dataset is None else train_dataset
        # the epoch from the trainer's state: it is right after a resume, whatever wraps the sampler
        return LikeLengths(self._sizes(dataset), together, arguments.seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return shortest_first(self._sizes(eval_dataset))

    def _reference_order(self, dataset: Any) -> list[int]:
        return shortest_first(self._sizes(dataset))

    def _sizes(self, dataset: Any) -> list[int]:
        columns = dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
        return [lengths_of(row).width(self.not_shared is None) for row in columns]

    # ---- one batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As transformers' own, part by part: the gradient of the mean over the whole batch.

        Calling train() on a model with some thousand modules takes as long as a small model's forward pass.
        """
        if not self.model.training:  # the shell that DDP puts around it has a flag of its own, which stays True
            model.train()
        parts = Parts(**self._prepare_inputs(inputs))
        if self._room != self._planned:  # what the loader has cut did not fit
            parts = Parts(**self._prepare_inputs(self._cutting()(parts.uncut.rows)))
        parts = self._as_many_everywhere(parts)
        before = {name: len(values) for name, values in self._metrics["train"].items()}
        losses = []
        for number, (batch, share, checkpointed) in enumerate(zip(*parts[:3], strict=True)):
            self._at_work = (*parts.sizes[number], checkpointed)
            last, tokens = number == len(parts.shares) - 1, self._total_train_tokens
            with (
                nullcontext() if last else self.accelerator.no_sync(model),  # processes meet once a step
                self._checkpointing() if checkpointed else nullcontext(),
            ):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch) * (share / self.current_gradient_accumulation_steps)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            if not share:
                self._total_train_tokens = tokens
        self._average_metrics(before, parts.shares)
        return torch.stack(losses).sum()

    def _as_many_everywhere(self, parts: Parts) -> Parts:
        """Processes that gather each layer of the base together compute as many parts: here some in front that count nothing."""
        if not base_is_cut_up():
            return parts
        missing = max(self.processes.gathered([len(parts.shares)])) - len(parts.shares)
        return Parts(
            [parts.batches[-1]] * missing + parts.batches,
            [0.0] * missing + parts.shares,
            [parts.checkpointed[-1]] * missing + parts.checkpointed,
            [parts.sizes[-1]] * missing + parts.sizes,
            parts.uncut,
        )

    def compute_less(self) -> str | None:
        """Room for half the part that did not fit, or with gradient checkpointing; None: there can be no less."""
        rows, tokens, checkpointed = self._at_work
        alone = rows == 1 or self._whole()
        if alone and (checkpointed or not self._room.thrifty):
            return None
        if checkpointed:
            self._room = self._room._replace(thrifty=tokens // 2)
        else:
            self._room = self._room._replace(tokens=tokens // 2)
        return f"{tokens // 2:,} tokens" + (" without gradient checkpointing" if not checkpointed else "")

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        model, inputs = _with_layout(model, inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        return super().compute_ref_log_probs(*_with_layout(model, inputs))

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Forward and backward: the backward pass runs the layers once more."""
        pairs = attending_in_pairs(self.model) if self.data_collator.shared else nullcontext()
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            with pairs:
                yield
        finally:
            self.model.gradient_checkpointing_disable()

    def _average_metrics(self, before: dict[str, int], shares: list[float]) -> None:
        """TRL notes a value a part; what is logged is the mean over batches."""
        for name, values in self._metrics["train"].items():
            if len(values) - before.get(name, 0) == len(shares):
                noted = values[-len(shares) :]
                values[-len(shares) :] = [sum(share * value for share, value in zip(shares, noted, strict=True))]


def _with_layout(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(what TRL shall take for the model, its batch)."""
    if "layout" not in inputs:
        return model, inputs
    inputs = dict(inputs)
    return SharedPrompt(model, Layout(**inputs.pop("layout"))), inputs
