"""Work in batches that fit: on out-of-memory a batch is halved, and stays so."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence

from cai_helpers.errors import CaiError

FULL = 0.9  # of the tokens of a batch that `in_token_batches` makes, at least so many are no padding


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
    return _shrinking(indices, batch_size, lambda start, size: indices[start : start + size], len, work, on_halved)


def in_token_batches(
    sizes: Sequence[int], tokens: int, work: Callable[[list[int]], list]
) -> Iterator[tuple[list[int], list]]:
    """The same for rows of `sizes` tokens, the largest first: as many as have `tokens` together, padding included.

    Rows of like size stand together, so that nine tenths of a batch are no padding.

    Raises:
        CaiError: a single row does not fit.
    """
    order = sorted(range(len(sizes)), key=lambda row: -sizes[row])

    def cut(start: int, limit: int) -> list[int]:
        width, real, rows = sizes[order[start]], 0, 0
        for row in order[start:]:
            real, rows = real + sizes[row], rows + 1
            if rows > 1 and (rows * width > limit or real < FULL * rows * width):
                return order[start : start + rows - 1]
        return order[start:]

    return _shrinking(order, tokens, cut, lambda rows: len(rows) * sizes[rows[0]], work, lambda limit: None)


def _shrinking(
    indices: list[int],
    limit: int,
    cut: Callable[[int, int], list[int]],
    cost: Callable[[list[int]], int],
    work: Callable[[list[int]], list],
    on_halved: Callable[[int], None],
) -> Iterator[tuple[list[int], list]]:
    """cut: (start, limit) → the next rows. cost: of rows, in what the limit counts."""
    start = 0
    while start < len(indices):
        rows = cut(start, limit)
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
            limit = cost(rows) // 2
            on_halved(limit)
            release_all()
            continue
        yield rows, result
        start += len(rows)


def is_out_of_memory(error: RuntimeError) -> bool:
    """cuBLAS and the CUDA driver report it in words of their own, not as OutOfMemoryError."""
    text = str(error)
    return any(sign in text for sign in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory"))


def release_memory() -> None:
    """Room on the GPU for what comes next: see `release_all`.

    Without a GPU nothing is done: there torch keeps no cache, and the search takes a quarter of a second every time.
    """
    import torch

    if torch.cuda.is_available():
        release_all()


def release_all() -> None:
    """The memory of what nobody holds, on a CPU as well: a model's parts refer to each other, so Python must search for it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
