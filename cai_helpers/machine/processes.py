"""The processes of an `accelerate launch`, each with its share of the work. Without one: a single process.

The main one (rank 0) speaks, holds the workspace's lock and writes; the others compute, write rows to files of their own, and
wait. They may be on several machines, on which the workspace is then the same shared folder.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from cai_helpers.errors import CaiError

if TYPE_CHECKING:
    from accelerate import PartialState

Item = TypeVar("Item")

# A share may take hours longer than another, and all wait for the last; a process that ends is noticed by the launcher.
_PATIENCE = timedelta(hours=12)
_LAST_WORD = 3.0  # seconds
# What accelerate tells its processes by.
_FSDP, _FSDP_VERSION, _OFFLOAD = "ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS"
_UNKNOWN = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
_CUT_UP = "CAI_BASE_CUT_UP"  # ours: the launch has asked for FSDP
_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "nccl communicator was aborted")


@dataclass(frozen=True)
class Processes:
    index: int  # of this one
    count: int

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, items: Iterable[Item], size: Callable[[Item], int]) -> list[Item]:
        """This process's part, of which each has as many large ones; with one process all, in their order."""
        if self.count == 1:
            return list(items)
        return sorted(items, key=lambda item: -size(item))[self.index :: self.count]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            _state().wait_for_everyone()

    def told(self, find: Callable[[], Item]) -> Item:
        """What `find` gives in the main process, which alone calls it."""
        found: list[Any] = [find() if self.is_main else None]
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found, from_process=0)
        return found[0]

    def gathered(self, own: list[Item]) -> list[Item]:
        """The lists of all processes, one behind the other."""
        if self.count == 1:
            return own
        from accelerate.utils import gather_object

        return gather_object(own)

    def in_turns(self, find: Callable[[], Item]) -> Item:
        """What `find` gives in this process; of a host, one process after the other calls it."""
        if self.count == 1:
            return find()
        found: list[Item] = []
        # hosts may have different numbers of them, and all wait as often
        for turn in range(max(self.gathered([int(os.environ["LOCAL_WORLD_SIZE"])]))):
            if turn == int(os.environ["LOCAL_RANK"]):
                found.append(find())
            self.wait()
        return found[0]


def is_main_process() -> bool:
    """From the environment alone, which needs no connection to the others."""
    return launched() == 1 or int(os.environ.get("RANK", "0")) == 0


def launched() -> int:
    """How many processes were started together, from the environment alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def this_process() -> Processes:
    """Read from what `accelerate launch` and `torchrun` put into the environment; connects the processes."""
    if launched() == 1:
        return Processes(0, 1)
    state = _state()
    return Processes(state.process_index, state.num_processes)


def require_one_process(command: str) -> None:
    """
    Raises:
        CaiError: there are several, and this command is the work of one.
    """
    if launched() > 1:
        raise CaiError(
            f"`cai {command}` is the work of one process, and {launched()} were launched.",
            f"Run `cai {command}` without accelerate launch; generate, score, train and evaluate share their work.",
        )


def base_is_cut_up() -> bool:
    """Whether the launch asks for FSDP: in training, each process then holds its part of the base, and the LoRA whole.

    accelerate and transformers would cut up the LoRA too and load weights in a way of their own, so the question is taken
    out of the environment before they are asked for anything.
    """
    if _is_set(_FSDP):
        del os.environ[_FSDP]
        os.environ[_CUT_UP] = "true"
    return _is_set(_CUT_UP) and launched() > 1


def require_known_launch() -> None:
    """
    Raises:
        CaiError: the launch asks for something that training does not do.
    """
    how = "Launch with --multi_gpu alone or, for a base that fits no single card, with --use_fsdp --fsdp_version 2: docs/SCALING.md."
    for setting, name in _UNKNOWN.items():
        if _is_set(setting):
            raise CaiError(
                f"This launch asks for {name}, and `cai train` spreads over processes by DDP, or FSDP 2, alone.", how
            )
    if base_is_cut_up() and os.environ.get(_FSDP_VERSION) != "2":
        raise CaiError("This launch asks for FSDP 1, and `cai train` cuts up the base by FSDP 2.", how)
    if base_is_cut_up() and _is_set(_OFFLOAD):
        raise CaiError(
            "This launch asks for FSDP with its parameters on the CPU, which `cai train` does not do.",
            "Set fsdp_offload_params to false, and launch more processes if the base does not fit.",
        )


def _is_set(setting: str) -> bool:
    return os.environ.get(setting, "false").lower() == "true"


def let_main_speak_first() -> None:
    """Before an error is told: usually all meet the same, and the launcher ends the others when the main one goes.

    So it is read once and not once a process; what one process alone has met is told a moment later.
    """
    if not is_main_process():
        time.sleep(_LAST_WORD)


def loss_of_another(error: BaseException) -> CaiError | None:
    """What to tell when `error` says that another process of the launch is gone; None: it says something else."""
    if launched() == 1 or not isinstance(error, RuntimeError) or not any(sign in str(error).lower() for sign in _GONE):
        return None
    return CaiError(
        "Another process of this launch has ended, so this one ends too.",
        "What it said stands near here. What is on disk stays: launch the same command again to go on.",
    )


@functools.cache
def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    base_is_cut_up()  # before accelerate looks
    # also makes "cuda" mean this process's own card; without one, accelerate connects nothing unless told of the CPU
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    atexit.register(_close, state)
    return state


def _close(state: PartialState) -> None:
    """Open while Python ends, the connection now and then aborts a process whose work is done (pytorch, pull request 179291).

    It stays open as long as a training holds it, and one that was stopped is still about until garbage is searched for.
    """
    gc.collect()
    state.destroy_process_group()
