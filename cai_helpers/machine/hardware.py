"""What machine is this, and which precision it computes in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

Dtype = Literal["fp16", "bf16", "fp32"]
GIB = 1024**3
TIGHT = 0.9  # share of the memory there is: above it an estimate, or a peak, is told as close to the limit


class Machine(NamedTuple):
    device: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] | None  # CUDA compute capability
    memory: int  # bytes the accelerator has; on a CPU, the RAM
    gpus: int


def this_machine() -> Machine:
    import torch

    if not torch.cuda.is_available():
        return Machine("cpu", f"CPU, {os.cpu_count()} cores", None, ram_bytes(), 0)
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    return Machine("cuda", properties.name, capability, properties.total_memory, torch.cuda.device_count())


def usable_memory(machine: Machine) -> int:
    """Bytes that this process can still come to hold: the card's, less what others hold, within the process's limit."""
    if machine.device == "cpu":
        return machine.memory
    import torch

    free, _ = torch.cuda.mem_get_info()
    usable = free + torch.cuda.memory_reserved()
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):  # from torch 2.8 on
        usable = min(usable, int(machine.memory * torch.cuda.get_per_process_memory_fraction()))
    return usable


def choose_dtype(wanted: Literal["auto", "fp16", "bf16", "fp32"], machine: Machine) -> Dtype:
    """The precision of the frozen weights and of autocast.

    bf16 needs compute capability 8.0: below it torch emulates bf16, slowly, and still reports it as supported
    (`torch.cuda.is_bf16_supported()` is True on a T4), so the capability is what is tested here.
    """
    if wanted != "auto":
        return wanted
    if machine.capability is None:
        return "fp32"
    return "bf16" if machine.capability >= (8, 0) else "fp16"


def torch_dtype(dtype: Dtype):
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_disk(path: Path) -> int:
    """Bytes free where `path` is or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
