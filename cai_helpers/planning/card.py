"""How fast a card computes: measured on this machine in seconds, or taken from a data sheet for one that is not here."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, Dtype, Machine, torch_dtype, usable_memory
from cai_helpers.schema import Record

if TYPE_CHECKING:
    import torch

THIN = 128  # rows of the thin matmul: as many as decode together at most
_LAYERS = 8  # of the narrow model whose time is all overhead


class Place(Record):
    """Where models are to fit."""

    name: str
    memory: int  # bytes that this process may use
    dtype: Dtype

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return 4 if self.dtype == "fp32" else 2


class Card(Place):
    """What limits the work. Rates are those that are reached, not those of the data sheet."""

    measured: bool  # False: from the data sheet and shares that are usual
    flops: float  # FLOP/s of a large matmul
    bandwidth: float  # bytes/s of a copy, those that are read and those that are written
    thin: float  # bytes/s of weights that 128 rows are multiplied with
    # Seconds that a layer takes however little it computes: what the host needs to start its kernels one by one, forward,
    # and forward and backward with a LoRA; and what the kernels themselves need, started together as a CUDA graph.
    host_forward: float
    host_training: float
    in_graph: float
    start: float  # seconds until the libraries are imported and the GPU is up
    load: float  # bytes/s of weights, from the disk to the device
    download: float  # bytes/s

    def line(self) -> str:
        origin = "measured just now" if self.measured else "from its data sheet, and what is usually reached of it"
        return (
            f"{self.name}, {self.memory / GIB:.1f} GiB: {self.flops / 1e12:.3g} TFLOP/s in {self.dtype}, "
            f"{self.bandwidth / 1e9:.0f} GB/s, {self.host_forward * 1e6:.0f} µs of the host a layer forward, "
            f"{self.host_training * 1e6:.0f} trained, {self.in_graph * 1e6:.0f} in a graph ({origin})"
        )


class _Sheet(NamedTuple):
    name: str
    gib: float  # usable
    fp16: float  # FLOP/s at peak; bf16 where the card has it
    fp32: float
    bandwidth: float  # bytes/s at peak
    reached: float  # share of the matmul peak in long runs
    bf16: bool = False


# Colab's cards. A T4 is cooled for 70 W and lowers its clock under steady matmuls (Jia et al. 2019, arXiv 1903.07486).
_SHEETS = {
    "t4": _Sheet("T4", 14.5, 65e12, 8.1e12, 320e9, 0.4),
    "l4": _Sheet("L4", 22.0, 121e12, 30.3e12, 300e9, 0.5, bf16=True),
    "a100": _Sheet("A100 40 GB", 39.0, 312e12, 19.5e12, 1555e9, 0.65, bf16=True),
}
CARDS = tuple(_SHEETS)
_BANDWIDTH_REACHED = 0.75
# Of a Colab host, whose two cores are slow: twice those measured on the host of benchmarks/RESULTS.md.
_COLAB_HOST = {"host_forward": 2.6e-3, "host_training": 11e-3, "start": 30.0, "load": 0.4e9, "download": 50e6}
_IN_GRAPH = 130e-6
_HERE = {"start": 15.0, "load": 1e9, "download": 50e6}  # not measured: they depend on what is cached


def card_of(name: str, dtype: str = "auto") -> Card:
    """A card by its data sheet.

    Raises:
        CaiError: none of that name is known.
    """
    if name not in _SHEETS:
        raise CaiError(
            f"There is no data sheet for the card {name!r}.", f"Known are {', '.join(CARDS)}; here: --card here."
        )
    sheet = _SHEETS[name]
    precision: Any = ("bf16" if sheet.bf16 else "fp16") if dtype == "auto" else dtype
    flops = sheet.fp32 * 0.8 if precision == "fp32" else sheet.fp16 * sheet.reached
    bandwidth = sheet.bandwidth * _BANDWIDTH_REACHED
    return Card(
        name=sheet.name,
        memory=int(sheet.gib * GIB),
        dtype=precision,
        measured=False,
        flops=flops,
        bandwidth=bandwidth,
        thin=min(bandwidth, flops * (4 if precision == "fp32" else 2) / (2 * THIN)),
        in_graph=_IN_GRAPH,
        **_COLAB_HOST,
    )


def measure_card(machine: Machine, dtype: Dtype) -> Card:
    """This machine, in a few seconds: a large and a thin matmul, a copy, and layers so narrow that all is overhead."""
    import torch

    device, precision = torch.device(machine.device), torch_dtype(dtype)
    flops, thin = _matmuls(device, precision)
    bandwidth = _copy(device)
    host_forward, host_training, in_graph = _overheads(device, precision)
    return Card(
        name=machine.name,
        memory=usable_memory(machine),
        dtype=dtype,
        measured=True,
        flops=flops,
        bandwidth=bandwidth,
        thin=thin,
        host_forward=host_forward,
        host_training=host_training,
        in_graph=in_graph,
        **_HERE,
    )


def _matmuls(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a large one; bytes/s of the right matrix in one with 128 rows."""
    import torch

    rows, inner, outer = (4096, 4096, 8192) if device.type == "cuda" else (256, 512, 512)
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, outer, device=device, dtype=dtype)
    few = left[:THIN].contiguous()
    with torch.no_grad():
        large = _seconds(lambda: left @ right, device, 1.0)
        thin = _seconds(lambda: few @ right, device, 0.3)
    return 2 * rows * inner * outer / large, right.nbytes / thin


def _copy(device: torch.device) -> float:
    """Bytes/s, read and written."""
    import torch

    block = torch.empty(1 << (28 if device.type == "cuda" else 24), dtype=torch.uint8, device=device)
    into = torch.empty_like(block)
    return 2 * block.nbytes / _seconds(lambda: into.copy_(block), device, 0.3)


def _overheads(device: torch.device, dtype: torch.dtype) -> tuple[float, float, float]:
    """Seconds a layer: forward and trained, each kernel started by the host; forward as a graph."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from cai_helpers.models.graphs import Graphs
    from cai_helpers.training.one_step.model import in_one_step

    # transformers warns of a name that peft still uses; the user can do nothing about it
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=_LAYERS, num_attention_heads=4
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    tokens = torch.zeros(1, 8, dtype=torch.long, device=device)
    positions = torch.arange(8, device=device)[None]

    def forward() -> None:
        model(input_ids=tokens, position_ids=positions, use_cache=False)

    with torch.no_grad():
        eager = _seconds(forward, device, 0.5)
        graphs = Graphs(device)
        captured = _seconds(lambda: graphs.call("forward", forward), device, 0.3)
    lora = LoraConfig(r=4, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    trained = get_peft_model(model, lora).train()
    in_one_step(trained)  # as training has it

    def train() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = trained(input_ids=tokens, position_ids=positions, use_cache=False).logits.float().sum()
        loss.backward()

    return eager / _LAYERS, _seconds(train, device, 1.0) / _LAYERS, captured / _LAYERS


def _seconds(call: Callable[[], Any], device: torch.device, at_least: float) -> float:
    """Of one call: the median of ten equal parts of a run that lasts `at_least` seconds."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def timed(times: int) -> float:
        wait()
        began = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        return (time.perf_counter() - began) / times

    timed(3)
    times = max(1, int(at_least / 10 / max(timed(3), 1e-6)))
    return statistics.median(timed(times) for _ in range(10))
