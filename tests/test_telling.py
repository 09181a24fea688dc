"""How a cell ends that was stopped or went wrong: in a real kernel, two sentences, and the same cell goes on."""

from __future__ import annotations

import pytest
from kernel import Kernel

OPEN = """
from cai_helpers.notebook import colab, widgets
settings, workspace = colab.open_run("first", "smoke", keep="none")
settings = colab.change(workspace, "generate.batch_size=4", "train.batch_size=2", "prompts.limit=12")
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    with Kernel(tmp_path_factory.mktemp("kernel")) as opened:
        assert opened.run(OPEN).error == ""
        yield opened


def one_sentence(ran) -> str:
    assert "Traceback" not in ran.error
    assert len(ran.error.splitlines()) == 2
    return ran.error


@pytest.mark.slow
def test_a_stopped_preflight_says_what_is_kept_and_the_cell_runs_again(kernel):
    cell = "from cai_helpers.stages.preflight import check_path\nprint(check_path(settings, workspace).verdict())"
    told = one_sentence(kernel.run(cell, interrupt_at="preflight: one pair"))
    assert told.startswith("Stopped by hand")
    assert "again" in told
    assert "ready: everything ran" in kernel.run(cell).text


@pytest.mark.slow
def test_a_stopped_bakeoff_goes_on_from_its_rows(kernel):
    cell = (
        "from cai_helpers.stages.bakeoff import compare_protocols\n"
        'one = compare_protocols(settings, workspace, count=8, protocols=["single/short", "two_step/short"])'
    )
    rows = "print(sum(len(path.read_bytes().splitlines()) for path in workspace.bakeoff_dir.glob('*.jsonl')))"
    told = one_sentence(kernel.run(cell, interrupt_at="single/short"))
    assert "again" in told
    before = int(kernel.run(rows).text)
    assert before >= 8  # the drafts
    drafts = kernel.run("print(workspace.bakeoff_drafts.read_text())").text
    assert kernel.run(cell).error == ""
    assert kernel.run("print(workspace.bakeoff_drafts.read_text())").text == drafts


@pytest.mark.slow
def test_a_stopped_calibration_says_so(kernel):
    cell = (
        "from cai_helpers.stages.calibrate import calibrate_scorer\nprint(calibrate_scorer(settings, workspace).pairs)"
    )
    told = one_sentence(kernel.run("print('begin', flush=True)\n" + cell, interrupt_at="begin"))
    assert told.startswith("Stopped by hand")


def test_what_the_reader_stops_outside_of_a_stage_is_told_too(kernel):
    told = one_sentence(kernel.run("import time\nprint('begin', flush=True)\ntime.sleep(60)", interrupt_at="begin"))
    assert told == (
        "Stopped by hand. What is on disk stays.\n"
        "Run this cell again to go on: rows, checkpoints and results that are there are not made again."
    )


def test_a_stopped_import_asks_for_a_restart(kernel):
    (cell, module) = "import slow_library", "import time\nprint('begin', flush=True)\ntime.sleep(60)\n"
    kernel.run(f"open('slow_library.py', 'w').write({module!r})")
    told = one_sentence(kernel.run(cell, interrupt_at="begin"))
    assert told.startswith("Stopped by hand while libraries were loading")
    assert "Restart the runtime" in told


def test_an_error_is_told_without_flags(kernel):
    told = one_sentence(
        kernel.run("from cai_helpers.stages.score import score_pairs\nscore_pairs(settings, workspace)")
    )
    assert "is made by the generate stage" in told
    assert "Run notebook 02_generate_pairs first" in told
    assert "--" not in told
    assert "`cai" not in told


def test_a_cell_below_one_that_was_not_run_says_so(tmp_path):
    with Kernel(tmp_path) as fresh:
        fresh.run("from cai_helpers.notebook.first_cell import ready\nready()")
        told = one_sentence(fresh.run("print(settings)"))
        assert told.startswith("CaiError: settings is not there: a cell above was not run")
        gone = one_sentence(fresh.run("from cai_helpers.notebook import colab\ncolab.resume('first', 'none')"))
        assert "There is no run first yet" in gone
        assert "Open notebook 00_setup first (or run_all instead of them all)" in gone


def test_the_readers_own_mistake_keeps_its_traceback(kernel):
    assert "ZeroDivisionError" in kernel.run("1 / 0").error
    assert "no_such_name" in kernel.run("no_such_name").error
    assert "Traceback" in kernel.run("no_such_name").error
