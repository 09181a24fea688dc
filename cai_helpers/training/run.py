"""One training, whatever its method: planned, checked, watched, copied, run to its end, and the best policy taken home."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from cai_helpers.errors import CaiError, StoppedByHand, WorkspaceVanished
from cai_helpers.machine.hardware import Dtype, Machine
from cai_helpers.machine.processes import base_is_cut_up, this_process
from cai_helpers.settings import Settings
from cai_helpers.training.cut_up import held
from cai_helpers.training.memory_plan import plan_memory, require_memory
from cai_helpers.training.outcome.course import Course, course_of
from cai_helpers.training.watch import checkpoints
from cai_helpers.training.watch.copies import Copies, RunFiles
from cai_helpers.workspace import Workspace

if TYPE_CHECKING:
    from cai_helpers.training.trainer import PolicyTraining
    from cai_helpers.training.watch.history import TrainingHistory, Watcher

Trainer = TypeVar("Trainer", bound="PolicyTraining")


class Job(NamedTuple):
    """What is to be trained with, where its files go, and who looks on."""

    name: str  # in front of its lines in the log
    settings: Settings
    workspace: Workspace
    dtype: Dtype
    machine: Machine
    files: RunFiles
    adapter: Path  # where the policy goes
    alone: bool  # it is to stand for itself on the original base; False: on the base that Stage 2 is merged into
    copies: Copies | None = None
    watch: Watcher | None = None

    def say(self, message: str, show: bool = True) -> None:
        self.workspace.say(self.name, message, show)

    def copy_out(self, checkpoint: Path) -> None:
        if self.copies is not None:
            self.copies.put(self.files, checkpoint)

    def keep(self, history: type[TrainingHistory]) -> TrainingHistory:
        files, fp16 = self.files, self.dtype == "fp16"
        return history(files.history, files.checkpoints, fp16, self.say, self.settings, self.watch, self.copy_out)


class Method(NamedTuple, Generic[Trainer]):
    """What is particular to a method. `build` loads the model, so it is called when the memory was found to suffice."""

    header: str
    longest: int  # tokens of a sequence
    sides: int  # sequences a row
    build: Callable[[], Trainer]
    check: Callable[[Trainer], Sequence[tuple[str, str]]]  # before the first update; raises where it does not hold
    history: type[TrainingHistory]

    def require_memory(self, job: Job) -> tuple[str, str]:
        """The memory plan, as a check."""
        plan = plan_memory(job.settings, job.dtype, job.machine, self.longest, self.sides)
        return "memory plan", require_memory(plan, job.settings).line()


class Trained(NamedTuple, Generic[Trainer]):
    course: Course
    trainer: Trainer  # its model is the policy that is kept
    rows: list[dict[str, Any]]  # of the history


def carry_out(job: Job, method: Method[Trainer]) -> Trained[Trainer]:
    """Train to the end, from the newest good checkpoint here or among the copies, and write the best policy.

    Raises:
        CaiError: a check before the first update fails, it was stopped by hand, a number is not finite, memory does not
            suffice, or no checkpoint is whole.
    """
    from cai_helpers.training.policy.lora import restore_policy, save_policy

    job.say(method.header)
    memory = method.require_memory(job)
    processes = this_process()
    if job.copies is not None and processes.is_main:
        job.copies.fetch_where_needed(job.files)  # before the reference is asked for: a copy has that too
    processes.wait()
    trainer = method.build()
    trainer.say = job.say
    checks = [*method.check(trainer), memory]
    if base_is_cut_up():
        checks.append(("base, cut up", held(trainer.model)))
    for what, result in checks:
        job.say(f"check: {what}: {result}")
    if (slower := trainer.lora_layers.line()) is not None:
        job.say(slower)
    history = job.keep(method.history)
    trainer.add_callback(history)
    folder = job.files.checkpoints
    start = processes.told(lambda: checkpoints.newest_good(folder, job.say))
    _run(trainer, history, start, folder, job.say)
    best_step = processes.told(lambda: _best_good(history, folder, job.say))
    restore_policy(trainer.model, checkpoints.at_step(folder, best_step))
    merged = trainer.start.merged if job.alone else None
    if processes.is_main:
        save_policy(trainer.model, job.adapter, job.settings.models.base, merged and merged.factors)
    processes.wait()
    job.say(f"the policy of step {best_step} is in {job.adapter}; read back, it equals what was trained")
    resumed_from = None if start is None else checkpoints.step_of(start)
    copied = None if job.copies is None else job.copies.line()
    course = course_of(history, checks, best_step, resumed_from, job.dtype, copied)
    return Trained(course, trainer, history.rows())


def _run(
    trainer: PolicyTraining, history: TrainingHistory, start: Path | None, folder: Path, say: Callable[[str], None]
) -> None:
    """Train from `start`, a checkpoint or None, to the end."""
    from transformers import set_seed

    if start is not None:
        say(f"going on from {start.name}")
        if checkpoints.is_last(start) or history.stopped_early(checkpoints.step_of(start)):
            return
    set_seed(trainer.args.seed)  # what was drawn before depends on whether the reference was computed or read
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    except KeyboardInterrupt:
        raise StoppedByHand(
            f"Stopped by hand at step {trainer.state.global_step} of {trainer.state.max_steps}.",
            "Run `cai train` again to go on from the last checkpoint.",
        ) from None
    except WorkspaceVanished as error:
        raise error.saying(_rescue(trainer, history, folder)) from error
    finally:
        history.close()


def _rescue(trainer: PolicyTraining, history: TrainingHistory, folder: Path) -> str:
    """Save what is in memory on this machine's own disk; what was saved where, in words."""
    state = trainer.state
    before = history.newest.name if history.newest is not None else "none of this call"
    said = (
        f"Training stopped at step {state.global_step} of {state.max_steps}; the newest checkpoint in it is {before}."
    )
    if state.global_step == 0 or (history.newest and checkpoints.step_of(history.newest) == state.global_step):
        return said
    place = Path(tempfile.mkdtemp(prefix="cai-rescued-"))
    try:
        rescued = trainer.save_elsewhere(place)
    except OSError as error:
        return f"{said} Step {state.global_step} could not be saved in {place} either: {error}."
    return f"{said} Step {state.global_step} is saved on this machine, in {rescued}: copy that folder into {folder}."


def _best_good(history: TrainingHistory, folder: Path, say: Callable[[str], None]) -> int:
    """The step with the lowest held-out loss whose checkpoint is whole: it is what the user takes home."""
    for evaluation in history.best_first():
        candidate = checkpoints.at_step(folder, evaluation.step)
        if (reason := checkpoints.fault(candidate)) is None:
            return evaluation.step
        say(f"{candidate.name} is the best but cannot be used: {reason}")
    raise CaiError(
        "No evaluated checkpoint is whole, or the history in logs/ is gone.", "Run `cai train --fresh`; check the disk."
    )
