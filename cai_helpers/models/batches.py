"""Work in batches that fit: on out-of-memory a batch is halved, and stays so."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

from cai_helpers.errors import CaiError


def in_batches(
    indices: list[int],
    batch_size: int,
    work: Callable[[list[int]], list],
    on_halved: Callable[[int], None] = lambda size: None,
) -> Iterator[tuple[list[int], list]]:
    """Yield (indices, work(indices)) in batches; on out-of-memory halve the batch, keep it so, and go on.

    Raises:
        CaiError: a single row does not fit.
    """
    start = 0
    while start < len(indices):
        rows = indices[start : start + batch_size]
        result = None
        try:
            result = work(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if result is None:  # outside `except`: there the traceback would still hold the tensors
            if len(rows) == 1:
                raise CaiError(
                    "One single row does not fit into the accelerator's memory.",
                    "Lower prompts.max_tokens, restart the runtime so that nothing else holds memory, or take a larger card.",
                )
            batch_size = len(rows) // 2
            on_halved(batch_size)
            release_memory()
            continue
        yield rows, result
        start += len(rows)


def is_out_of_memory(error: RuntimeError) -> bool:
    """cuBLAS and the CUDA driver report it in words of their own, not as OutOfMemoryError."""
    text = str(error)
    return any(sign in text for sign in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory"))


def release_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
