"""A notebook has no command line: neither its texts nor what it shows names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cai_helpers.notebook.words import in_notebook_words

PACKAGE = Path(__file__).resolve().parent.parent / "cai_helpers"
COMMANDS = re.compile(r"`cai [a-z]+[^`]*`")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("another protocol: `cai bakeoff` compares them", "the bake-off of notebook 02 (Which way of asking works?)"),
        (
            "Run `cai train` or notebook 04_train_dpo first, with the same --workspace.",
            "Run notebook 04_train_dpo first.",
        ),
        ("Run `cai generate` or the cell again to go on from there.", "Run the cell again to go on from there."),
        ("run `cai train --fresh`, which moves them to archive/", "notebook 04 (Train) with fresh=True, which"),
        ("stop it, or give another --workspace.", "stop it, or give another run_name in the form."),
        ("the ones its rules were written with (python benchmarks/counters.py)", "its rules were written with"),
        ("Or train all the same, without --strict (curate.strict=false).", "with curate.strict=false."),
    ],
)
def test_a_command_becomes_the_place_where_its_work_is_done(written, read):
    assert read in in_notebook_words(written)


def test_no_command_of_the_package_is_left():
    """But for those of an archive, which a notebook does not have."""
    found = [
        match[0] for path in PACKAGE.rglob("*.py") for match in COMMANDS.finditer(path.read_text(encoding="utf-8"))
    ]
    assert len(found) > 50
    left = {command for command in found if COMMANDS.search(in_notebook_words(command))}
    assert {command for command in left if "{" not in command} <= {"`cai import FILE`", "`cai import`", "`cai sweep`"}


def test_text_without_a_command_stays_as_it_is():
    text = "a -- b, x--y, `train.beta`, 5 % (3–8 %), --- a line"
    assert in_notebook_words(text) == text
