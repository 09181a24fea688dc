"""Which pairs stand in a batch together, and in what form the model gets them.

Pairs of like length stand together, so that little is padding; a batch is cut into the parts that fit into memory at once.
Importing this imports torch and TRL.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler
from trl.trainer.dpo_trainer import DataCollatorForPreference

from cai_helpers.training.arithmetic import PairLengths
from cai_helpers.training.memory_plan import Room, parts_of

_GROUPED = 16  # batches that are sorted by length together: fewer leave padding, more leave little to chance

Row = dict[str, Any]  # of TRL's prepared dataset: prompt_ids, chosen_ids, rejected_ids


class LikeLengths(Sampler[int]):
    """Row numbers in a random order in which each `batch` of them have about the same size.

    The order is a function of seed and epoch alone, so a resumed run meets the batches that it would have met. Rows are
    shuffled, each 16 batches of them sorted by size, and the batches shuffled again; one that is not full comes last.

    epoch: asked when the order is drawn.
    """

    def __init__(self, sizes: Sequence[int], batch: int, seed: int, epoch: Callable[[], int]) -> None:
        self._sizes, self._batch, self._seed, self._epoch = sizes, batch, seed, epoch

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}:order:{self._epoch()}")
        order = list(range(len(self._sizes)))
        chance.shuffle(order)
        whole = len(order) - len(order) % self._batch  # the rows left over are any rows, not the shortest
        grouped, left = order[:whole], order[whole:]
        batches = []
        for start in range(0, whole, self._batch * _GROUPED):
            group = sorted(grouped[start : start + self._batch * _GROUPED], key=lambda row: (-self._sizes[row], row))
            batches += [group[first : first + self._batch] for first in range(0, len(group), self._batch)]
        chance.shuffle(batches)
        return iter([row for batch in [*batches, left] for row in batch])


def shortest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda row: (sizes[row], row))


class Layout(NamedTuple):
    """Pairs with their prompt once: a row is prompt, chosen, rejected, padding. B pairs, W tokens, N of answers.

    A side is prompt and answer, L tokens, padded on the right: first all chosen, then all rejected ones.
    """

    tokens: torch.Tensor  # B × W
    positions: torch.Tensor  # B × W; the rejected answer's go on from the prompt's, as the chosen one's do
    of_sides: torch.Tensor  # 2B × L: where in the B · W tokens each token of a side stands
    of_rows: torch.Tensor  # B × W: where in the 2B · L tokens of the sides each of these stands
    sources: torch.Tensor  # N: where in the B · W tokens the one stands that an answer token is predicted from
    targets: torch.Tensor  # N answer tokens: of all chosen sides, then of all rejected ones


def lengths_of(row: Row) -> PairLengths:
    return PairLengths(*(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")))


def lay_out(rows: Sequence[Row], pad: int) -> Layout:
    lengths = [lengths_of(row) for row in rows]
    width, length = max(pair.width(shared=True) for pair in lengths), max(pair.side for pair in lengths)
    tokens, positions, of_rows = [], [], []
    of_sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    sources: tuple[list[int], list[int]] = ([], [])
    targets: tuple[list[int], list[int]] = ([], [])
    for number, (row, (prompt, chosen, rejected)) in enumerate(zip(rows, lengths, strict=True)):
        empty = width - prompt - chosen - rejected
        here, one, other = number * width, number * length, (len(rows) + number) * length  # where its tokens begin
        tokens.append([*row["prompt_ids"], *row["chosen_ids"], *row["rejected_ids"], *[pad] * empty])
        positions.append([*range(prompt + chosen), *range(prompt, prompt + rejected), *[0] * empty])
        of_rows.append(
            [*range(one, one + prompt + chosen), *range(other + prompt, other + prompt + rejected), *[one] * empty]
        )
        for side, begin, count in ((0, here + prompt, chosen), (1, here + prompt + chosen, rejected)):
            whole = [*range(here, here + prompt), *range(begin, begin + count)]
            of_sides[side].append([*whole, *[here] * (length - len(whole))])
            sources[side].extend(whole[prompt - 1 : -1])  # the prompt's last token predicts the first of either answer
            targets[side].extend(row[("chosen_ids", "rejected_ids")[side]])
    return Layout(
        tokens=torch.tensor(tokens),
        positions=torch.tensor(positions),
        of_sides=torch.tensor(of_sides[0] + of_sides[1]),
        of_rows=torch.tensor(of_rows),
        sources=torch.tensor(sources[0] + sources[1]),
        targets=torch.tensor(targets[0] + targets[1]),
    )


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batch and, where prompts are shared, the pairs' Layout under "layout"."""

    shared: bool = False

    def torch_call(self, examples: list[Row]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        return batch | {"layout": lay_out(examples, self.pad_token_id)._asdict()} if self.shared else batch


@dataclass(frozen=True)
class Uncut:
    """A batch before it was cut. Not a list: what brings a batch to the GPU would look at each of its token ids, four times."""

    rows: list[Row]


class Parts(NamedTuple):
    """One batch, cut."""

    batches: list[dict[str, Any]]
    shares: list[float]  # of the batch's pairs
    checkpointed: list[bool]  # whether the part fits with gradient checkpointing only
    sizes: list[tuple[int, int]]  # (rows, tokens with padding) of the part
    uncut: Uncut


class InParts(NamedTuple):
    """Collates a batch for training, as parts that fit into memory at once."""

    collate: PairCollator
    room: Room
    whole: bool  # the loss needs all pairs of the batch at once

    def __call__(self, examples: list[Row]) -> dict[str, Any]:
        sizes = [lengths_of(row).width(self.collate.shared) for row in examples]
        parts = parts_of(sizes, self.room, self.whole)
        return Parts(
            [self.collate([examples[row] for row in part.rows]) for part in parts],
            [len(part.rows) / len(examples) for part in parts],
            [part.checkpointed for part in parts],
            [(len(part.rows), part.tokens) for part in parts],
            Uncut(examples),
        )._asdict()
