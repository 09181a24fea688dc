"""A run that is carried to another folder, machine, time zone or clock is the run that it was."""

from __future__ import annotations

import shutil

import pytest
from oracles import conserved, rows

pytestmark = pytest.mark.faults
STAGES = ("generate", "score", "calibrate", "curate", "train", "evaluate")
ANOTHER_HOST = "import platform; platform.node = lambda: 'elsewhere'; from cai_helpers import lock; lock._machine = lambda: 'elsewhere 1'"
YESTERDAY = "import time; now = time.time; time.time = lambda: now() - 86_400"


@pytest.mark.parametrize(
    ("planted", "environment"),
    [("", {}), (ANOTHER_HOST, {}), (YESTERDAY, {}), ("", {"TZ": "Pacific/Kiritimati"})],
    ids=["another path", "another host", "a clock that is behind", "another zone"],
)
def test_a_finished_run_that_was_carried_elsewhere_stays_finished(
    planted, environment, warm, finished_run, tmp_path, ledger
):
    root = tmp_path / "a folder of another name" / "run"
    shutil.copytree(finished_run, root)
    ended = warm.cai("run", "--workspace", root, prelude=planted, **environment)
    ledger.injected += 1
    assert ended.code == 0, ended.err[-2000:]
    for stage in STAGES:
        assert f"{stage}: complete since" in ended.out, stage
    name = "pairs/traces.jsonl"
    ledger.rows_lost += (lost := conserved(rows(finished_run / name), rows(root / name)))
    assert lost == 0
    ledger.survived += 1
