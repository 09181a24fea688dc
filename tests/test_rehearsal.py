"""The rehearsal of a training: by the method of the settings, in a folder of its own."""

from __future__ import annotations

import pytest
from tiny_run import WORDS, make_settings, make_workspace

from cai_helpers.machine.hardware import this_machine
from cai_helpers.store import write_jsonl
from cai_helpers.training.rehearsal import rehearse
from cai_helpers.workspace import Workspace


def one_sided_row(number: int) -> dict:
    return {
        "prompt": [{"role": "user", "content": f"how do i fix bike {WORDS[number]}"}],
        "completion": [{"role": "assistant", "content": "sure pump air slow"}],
        "label": True, "id": f"alone{number}", "category": "helpful", "reason": "kept", "held_out": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "phases"),
    [("dpo", [("dpo", 6)]), ("sft+dpo", [("sft", 9), ("dpo", 6)]), ("kto", [("kto", 14)])],
)
def test_the_rehearsal_trains_what_the_settings_say_and_projects_its_steps(tiny, tmp_path, method, phases):
    workspace, said = make_workspace(tmp_path / "run"), []  # 24 pairs to train on and 6 held out
    write_jsonl(workspace.one_sided_rows, map(one_sided_row, range(10)))
    settings = make_settings(tiny, method=method, epochs=1, sft_epochs=1.5)
    settings = settings.model_copy(update={"curate": settings.curate.model_copy(update={"eval_fraction": 0.2})})
    rehearsal = rehearse(settings, workspace, Workspace(tmp_path / "scratch"), this_machine(), 99, said.append)
    assert [(phase.phase, phase.steps) for phase in rehearsal.phases] == phases
    assert rehearsal.rows == "the longest rows of dpo_dataset/, up to 37 tokens a side"
    assert all(phase.seconds_per_step > 0 and phase.seconds_per_row > 0 for phase in rehearsal.phases)
    for phase, line in zip(rehearsal.phases, said, strict=True):
        assert ("labels" in line) == (phase.phase != "dpo")  # the checks of its own method
        assert f"{phase.phase.upper()} steps of 4" in phase.line()
    assert not workspace.checkpoints.exists()
