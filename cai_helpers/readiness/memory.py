"""The card's memory, by the plan: what cannot fit is refused before anything is generated."""

from __future__ import annotations

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import choose_dtype, this_machine, usable_memory
from cai_helpers.planning.card import Place
from cai_helpers.planning.plan import memory_of
from cai_helpers.planning.shape import shape_of
from cai_helpers.readiness.check import Check
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace


def memory(settings: Settings, workspace: Workspace) -> list[Check]:
    """Generation, scoring and training, each against the GPU's memory. Nothing on a CPU, which has swap and time."""
    machine = this_machine()
    if machine.device == "cpu":
        return []
    place = Place(name=machine.name, memory=usable_memory(machine), dtype=choose_dtype(settings.models.dtype, machine))
    try:
        base = shape_of(settings.models.base)
        rewards = [shape_of(source.model, classifier=True) for source in settings.models.rewards]
    except CaiError:  # the lines about policy and scorer say what is wrong with it
        return []
    return [
        Check(f"memory, {phase.name}", not phase.todo, phase.line(), f"Set {phase.todo}.")
        for phase in memory_of(settings, place, base, rewards)
    ]
