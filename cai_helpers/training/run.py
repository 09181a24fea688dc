"""One phase of training: from the newest good checkpoint to the end, and then which checkpoint is taken home."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cai_helpers.errors import CaiError, StoppedByHand, WorkspaceVanished
from cai_helpers.training.watch import checkpoints

if TYPE_CHECKING:
    from cai_helpers.training.trainer import PolicyTraining
    from cai_helpers.training.watch.history import TrainingHistory


def run_phase(
    trainer: PolicyTraining,
    history: TrainingHistory,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[int, int | None]:
    """Train to the end and put the best policy back into the model: (its step, the step that was resumed from).

    Raises:
        CaiError: stopped by hand, a number that is not finite, or no checkpoint is whole.
    """
    from cai_helpers.training.policy.lora import restore_policy

    trainer.add_callback(history)
    start = checkpoints.newest_good(folder, say)
    _run(trainer, history, start, folder, say)
    best_step = _best_good(history, folder, say)
    restore_policy(trainer.model, checkpoints.at_step(folder, best_step))
    return best_step, start and checkpoints.step_of(start)


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
