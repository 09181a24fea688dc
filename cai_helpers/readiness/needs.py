"""What each stage needs, and what the rest of the run needs after it: tried before the first long step."""

from __future__ import annotations

from collections.abc import Callable

from cai_helpers.errors import CaiError
from cai_helpers.machine.processes import is_main_process
from cai_helpers.models.generator import Generator
from cai_helpers.readiness.check import Check, interruptible, require
from cai_helpers.readiness.host import disk, gpu
from cai_helpers.readiness.inputs import agreement, evaluation_files, gold, prompts, texts
from cai_helpers.readiness.memory import memory
from cai_helpers.readiness.outward import outward
from cai_helpers.readiness.policy import policy
from cai_helpers.readiness.scorer import critic, scorer, try_scorer
from cai_helpers.schema import Messages
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

Part = Callable[[Settings, Workspace], list[Check]]
# From what costs nothing to what asks an endpoint. Generating takes longest: before it, all that follows is tried too.
_PARTS: tuple[Part, ...] = (
    *(agreement, outward, gpu, disk, memory, prompts, gold, evaluation_files, texts, policy, critic, scorer),
)
_NEEDED: dict[str, tuple[Part, ...]] = {
    "generate": _PARTS,
    "bakeoff": _PARTS,
    "calibrate": (gpu,),
    "score": (gpu, disk, scorer),
    "train": (outward, gpu, disk, policy),
    "evaluate": (gpu, disk, evaluation_files, policy, scorer),
}
# What comes after a stage that is of use by itself: said, and no reason to refuse it.
_AFTERWARDS: dict[str, tuple[Part, ...]] = {"score": (policy,), "train": (scorer,)}
_HELLO: Messages = [{"role": "user", "content": "Hello! How are you today?"}]
_SAID: set[tuple[str, str]] = set()  # (workspace, line), over the life of the process


def needed(settings: Settings, workspace: Workspace, *stages: str) -> list[Check]:
    """A line for each thing that one of the stages needs. No weights are loaded."""
    wanted = {part for stage in stages for part in _NEEDED[stage]}
    return [check for part in _PARTS if part in wanted for check in part(settings, workspace)]


def require_ready(settings: Settings, workspace: Workspace, *stages: str, label: str | None = None) -> None:
    """Try all that the stages need and say it, each line once in a process. label: who says it; default: the stage.

    Raises:
        CaiError: something is missing; nothing was started.
        StoppedByHand: Ctrl-C.
    """
    with interruptible():
        checks = needed(settings, workspace, *stages)
        _say(workspace, label or stages[0], [check.line() for check in checks])
        require(checks)
        after = {part for stage in stages for part in _AFTERWARDS.get(stage, ())}
        later = [check for part in _PARTS if part in after for check in part(settings, workspace) if not check.ok]
        _say(workspace, label or stages[0], [f"WARNING: for what comes later: {check.line()}" for check in later])


def require_ready_for_run(settings: Settings, workspace: Workspace) -> None:
    """The same for all stages that are not complete yet, so that a finished run can be opened anywhere."""
    stages = ("generate", "score", "train", "evaluate")
    if unfinished := [stage for stage in stages if not workspace.manifest_of(stage).exists()]:
        require_ready(settings, workspace, *unfinished, label="run")


def require_scorer(settings: Settings, workspace: Workspace, stage: str) -> None:
    """Load and try the scorer before the generator is loaded; once in a process.

    Raises:
        CaiError: it is of no use.
        StoppedByHand: Ctrl-C.
    """
    with interruptible():
        found = try_scorer(settings)
    if found is not None:
        _say(workspace, stage, [f"ok    scorer: {found}"])


def require_answer(generator: Generator) -> None:
    """One short answer of the model that was loaded just now.

    Raises:
        CaiError: it says nothing, or its scores are not finite.
        StoppedByHand: Ctrl-C.
    """
    from cai_helpers.models.sampling import Sampling

    with interruptible():
        answers = dict(generator.generate([_HELLO], Sampling(max_new_tokens=32, temperature=0.0), ["trial"], 1))
    if not any(completion.text for completion in answers.values()):
        raise CaiError(
            "The model answers a greeting with nothing: it ends before it has said a word.",
            "Take an instruct model, and check its chat template; with a Stage-2 adapter try --adapter none.",
        )


def _say(workspace: Workspace, stage: str, lines: list[str]) -> None:
    for line in lines:
        if is_main_process() and (key := (str(workspace.root), line)) not in _SAID:
            _SAID.add(key)
            workspace.say(stage, line)
