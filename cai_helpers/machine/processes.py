"""The processes of an `accelerate launch`, each with its share of the work. Without one: a single process."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    index: int  # of this one
    count: int

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def owns(self, name: str) -> bool:
        """True when the row with this id (hexadecimal, as prompts.prompt_id makes them) falls to this process."""
        return int(name, 16) % self.count == self.index

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def is_main_process() -> bool:
    """From the environment alone, which needs no connection to the others."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or int(os.environ.get("RANK", "0")) == 0


def this_process() -> Processes:
    """Read from what `accelerate launch` and `torchrun` put into the environment; connects the processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(0, 1)
    from accelerate import PartialState

    state = PartialState()  # also makes "cuda" mean this process's own card
    return Processes(state.process_index, state.num_processes)
