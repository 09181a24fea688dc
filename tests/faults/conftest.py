"""One finished run that every fault gets a copy of, processes that begin at once, and a ledger of what was lost."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from oracles import Ledger
from warm import Warm

LEDGER = pytest.StashKey[Ledger]()
SMALL = (  # all of Stage 3 in under a minute
    *("--preset", "smoke", "--limit", "48", "--set", "curate.min_pairs=8", "--set", "train.epochs=1"),
    *("--set", "calibrate.limit=20"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEDGER] = Ledger()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LEDGER].injected:
        terminalreporter.section("faults")
        terminalreporter.write_line(config.stash[LEDGER].line())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of pytest-xdist's workers each has a ledger of its own; what is printed is their sum."""
    if (sent := getattr(session.config, "workeroutput", None)) is not None:
        sent["faults"] = asdict(session.config.stash[LEDGER])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[LEDGER].add(**node.workeroutput["faults"])


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return request.config.stash[LEDGER]


@pytest.fixture(scope="session")
def finished_run(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a whole run. Copy it before something is done to it."""
    root = tmp_path_factory.mktemp("finished") / "run"
    ended = warm.start("run", *SMALL, "--workspace", root).wait(600)
    assert ended.code == 0, ended.err
    return root


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"
