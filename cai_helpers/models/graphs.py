"""Work of one decode step without the host between its kernels: CUDA graphs, captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cai_helpers import screen
from cai_helpers.models.batches import is_out_of_memory


class Graphs:
    """Functions of the device's memory alone, captured as CUDA graphs the second time they are called, and replayed then.

    On a CPU, or where capturing fails, they are simply called.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.capture = device.type == "cuda"
        self._graphs: dict[object, torch.cuda.CUDAGraph | None] = {}  # None: called once
        self._inputs: dict[object, torch.Tensor] = {}
        self._side = torch.cuda.Stream(device) if self.capture else None
        self._pool = torch.cuda.graph_pool_handle() if self.capture else None

    def forget(self) -> None:
        """What they read is about to move: all are captured anew. Gives their memory back. None of them may still run."""
        self._graphs.clear()
        self._inputs.clear()
        if self.capture:
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()

    def input(self, name: object, values: list[int]) -> torch.Tensor:
        """The tensor that the graph `name` reads, with `values` in it."""
        new = torch.tensor(values)
        if name not in self._inputs:
            self._inputs[name] = torch.empty(len(values), dtype=torch.long, device=self._device)
        return self._inputs[name].copy_(new)

    def call(self, name: object, function: Callable[[], None]) -> None:
        if not self.capture:
            function()
        elif name not in self._graphs:
            self._warm_up(function)
            self._graphs[name] = None
        else:
            if self._graphs[name] is None:
                self._graphs[name] = self._captured(function)
            if (graph := self._graphs[name]) is None:
                function()
            else:
                graph.replay()

    def _warm_up(self, function: Callable[[], None]) -> None:
        """The call itself, on a stream beside the usual one, as capturing asks for."""
        assert self._side is not None, "on a GPU there is one"
        usual = torch.cuda.current_stream(self._device)
        self._side.wait_stream(usual)
        with torch.cuda.stream(self._side):
            function()
        usual.wait_stream(self._side)

    def _captured(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            cause = error.__context__
            if is_out_of_memory(error) or (isinstance(cause, RuntimeError) and is_out_of_memory(cause)):
                raise RuntimeError("out of memory while a CUDA graph was captured") from error
            screen.write(f"generation: no CUDA graph on this machine ({str(error).splitlines()[0]}); slower, same rows")
            self.capture = False
            return None
        return graph
