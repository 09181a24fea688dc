"""Run by the tests in several processes: stages on workspaces that hold their settings, one after the other.

accelerate launch tests/launched.py train=FOLDER train-until-6=FOLDER evaluate=FOLDER …
"""

import atexit
import gc
import os
import sys
from pathlib import Path

from cai_helpers.errors import StoppedByHand
from cai_helpers.settings import load_settings
from cai_helpers.stages.evaluate import evaluate_models
from cai_helpers.stages.generate import generate_pairs
from cai_helpers.stages.score import score_pairs
from cai_helpers.stages.train import train_policy
from cai_helpers.workspace import Workspace

STAGES = {"generate": generate_pairs, "score": score_pairs, "evaluate": evaluate_models, "train": train_policy}


def run(stage: str, folder: Path) -> None:
    workspace = Workspace(folder)
    settings = load_settings(str(workspace.settings_file))
    if stage == "train-in-parts":
        train_in_parts(settings, workspace)
        return
    name, _, until = stage.partition("-until-")
    if not until:
        STAGES[name](settings, workspace)
        return

    def stop(progress) -> None:
        if progress.step >= int(until):
            raise KeyboardInterrupt

    try:
        train_policy(settings, workspace, watch=stop)
    except StoppedByHand:
        return
    raise AssertionError("it was to be stopped")


def train_in_parts(settings, workspace) -> None:
    """In so little room that some batches are cut and others are not."""
    from cai_helpers.training import dpo
    from cai_helpers.training.memory_plan import Room

    even = dpo.PolicyTrainer._as_many_everywhere

    def told(self, parts):
        parts = even(self, parts)
        if 0.0 in parts.shares:
            print("a part counts for nothing", flush=True)
        return parts

    dpo.PolicyTrainer._as_many_everywhere = told
    kept = settings.train.gradient_checkpointing is False
    # pairs of tests/tiny_run.py have 32 or 48 tokens: two of 32 stand together, or two of 48 with checkpointing
    dpo.plan_room = lambda *_: Room(tokens=80, thrifty=0) if kept else Room(tokens=40, thrifty=96)
    train_policy(settings, workspace)


def require_closed() -> None:
    """A connection that is open while Python ends aborts the process now and then."""
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel

    held = any(type(each) is DistributedDataParallel for each in gc.get_objects())
    if held or torch.distributed.is_initialized():
        os._exit(9)


if __name__ == "__main__":
    atexit.register(require_closed)  # runs after what the stages register
    for work in sys.argv[1:]:
        stage, _, folder = work.partition("=")
        run(stage, Path(folder))
