"""The minutes that README and the notebooks name, as `cai plan --card t4` models them; a test holds both to this.

python tools/plan_minutes.py    print them
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cai_helpers.planning.plan import plan_run  # noqa: E402
from cai_helpers.settings import load_settings  # noqa: E402
from cai_helpers.workspace import Workspace  # noqa: E402

STAGES = {  # of the plan, by notebook
    "00_setup": (),
    "01_download_models": ("download",),
    "02_generate_pairs": ("calibrate", "generate", "score"),
    "03_analyze_pairs": (),
    "04_train_dpo": ("train",),
    "05_evaluate": ("evaluate",),
    "06_export_artifacts": (),
}


def minutes() -> dict[str, int]:
    """Whole minutes by notebook, rounded up; `run_all` is the whole plan. At least one each."""
    with TemporaryDirectory() as folder:
        plan = plan_run(load_settings("t4"), Workspace(Path(folder) / "run"), "t4")
    of_notebooks = {
        name: max(1, math.ceil(sum(plan.minutes[stage] for stage in stages))) for name, stages in STAGES.items()
    }
    return {"run_all": math.ceil(plan.total), **of_notebooks}


if __name__ == "__main__":
    for notebook, value in minutes().items():
        print(f"{notebook:22} {value}")
