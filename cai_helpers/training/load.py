"""What each process of an `accelerate launch` computes of a training step: the effective batch stays that of one."""

from __future__ import annotations

import math
from typing import NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.settings import Train

# The mean over a batch's chosen tokens, and log-ratios that are sorted within it: of another batch, it is another loss.
OF_A_BATCH = {"sft", "aot", "aot_unpaired"}


class Load(NamedTuple):
    """What one process computes of a step."""

    batch_size: int
    accumulation: int


def load_of_each(train: Train, processes: int) -> Load:
    """The part of an effective batch that falls to each process: whole batches, or smaller ones where they cannot be dealt out.

    Raises:
        CaiError: the effective batch cannot be divided, or the loss or the method does not allow it.
    """
    if processes == 1:
        return Load(train.batch_size, train.accumulation)
    if train.method == "kto":
        raise CaiError(
            f"train.method=kto trains in one process, and {processes} were launched: its KL is estimated within a batch.",
            "Run `cai train` without accelerate launch, or set train.method=dpo.",
        )
    if train.accumulation % processes == 0:
        return Load(train.batch_size, train.accumulation // processes)
    rows, rest = divmod(train.effective_batch, processes)
    if rest:
        raise CaiError(
            f"A step of train.batch_size × train.accumulation = {train.batch_size} × {train.accumulation} = "
            f"{train.effective_batch} rows cannot be divided among {processes} processes.",
            f"Set train.accumulation to a multiple of {processes}, or launch another number of processes.",
        )
    if train.method != "sft" and (whole := sorted(OF_A_BATCH & set(train.loss_type))):
        raise CaiError(
            f"train.loss_type={', '.join(whole)} is of a whole batch, so the {train.batch_size} pairs of one cannot be divided "
            f"among {processes} processes.",
            f"Set train.accumulation to a multiple of {processes}: then each takes whole batches.",
        )
    size = math.gcd(rows, train.batch_size)
    return Load(size, rows // size)
