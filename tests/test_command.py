"""Every command ends with a sentence and an exit code that says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cai_helpers.cli import app
from cai_helpers.command import make_command
from cai_helpers.errors import CaiError, NotEnoughPairs, StoppedByHand
from cai_helpers.schema import StageReport

ROOT = Path(__file__).resolve().parent.parent


class Report(StageReport):
    def title(self):
        return "Report"

    def lines(self):
        return [("name", "one\ntwo")]


def ended(work, *arguments):
    """The result of a command that does `work`."""

    def example(settings, workspace, limit: int = 7) -> int:
        """An example."""
        return work()

    example.__annotations__["limit"] = int
    application = typer.Typer()
    application.command("example")(make_command(example))
    return CliRunner().invoke(application, ["--preset", "smoke", *arguments])


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "says"),
    [
        (lambda: 0, 0, ""),
        (lambda: 3, 3, ""),
        (lambda: Report(), 0, "\nReport\n  name  one\n        two\n"),
        (raising(CaiError("It broke.", "Mend it.")), 1, "Error: It broke.\nMend it.\n"),
        (raising(NotEnoughPairs("Too few.", "Make more.")), 3, "Error: Too few.\nMake more.\n"),
        (raising(StoppedByHand("Stopped by hand: 3 of 4.", "Go on.")), 130, "Stopped by hand: 3 of 4.\nGo on.\n"),
        (
            raising(KeyboardInterrupt()),
            130,
            "Stopped by hand.\nWhat is on disk stays: run the same again to go on.\n",
        ),
    ],
    ids=["done", "refused", "report", "error", "too few", "stopped in a stage", "stopped anywhere"],
)
def test_a_command_ends_with_the_code_that_says_how(work, code, says):
    result = ended(work)
    assert (result.exit_code, result.output) == (code, says)


@pytest.mark.parametrize(("error", "code"), [(CaiError("It broke.", "Mend it."), 1), (KeyboardInterrupt(), 130)])
def test_debug_shows_the_traceback_and_changes_no_code(error, code):
    result = ended(raising(error), "--debug")
    assert result.exit_code == code
    assert "Traceback" in result.output


def test_an_option_of_its_own_takes_the_place_of_a_shared_one():
    seen = []

    def example(settings, workspace, limit: int = 7) -> int:
        """An example."""
        seen.append((limit, settings.prompts.limit))
        return 0

    example.__annotations__["limit"] = int
    application = typer.Typer()
    application.command("example")(make_command(example))
    result = CliRunner().invoke(application, ["--preset", "t4", "--limit", "3"])
    assert (result.exit_code, seen) == (0, [(3, 2500)])


def test_a_setting_that_is_no_yaml_ends_with_one_sentence():
    result = CliRunner().invoke(app, ["score", "--preset", "smoke", "--set", "train.beta=[1"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: train.beta=[1: not valid YAML")


def test_ctrl_c_while_a_command_works_ends_it_with_130(tmp_path):
    """A real signal to a real process, before any stage has a word of its own for it."""
    code = (
        "import os, signal, sys\n"
        "import cai_helpers.settings as settings\n"
        "from cai_helpers.cli import app\n"
        "settings.load_settings = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell ignores it in what it runs behind itself
        "app(['score'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 128 + signal.SIGINT
    assert run.stderr.startswith("Stopped by hand.\n")
