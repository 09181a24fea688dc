"""What people write themselves: settings that agree with each other, prompts, gold pairs, constitution, protocols."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

from cai_helpers.calibration.gold import read_gold
from cai_helpers.critique.constitution import load_constitution
from cai_helpers.critique.critic import protocol_of
from cai_helpers.critique.protocols import protocol_names
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.prompt_sets import options_of_file, prompts_of_file
from cai_helpers.models.hub import locate
from cai_helpers.prompts.sources import Malformed, conversation, is_file, read_rows
from cai_helpers.readiness.check import Check, tried
from cai_helpers.settings import Prompts, Settings
from cai_helpers.workspace import Workspace

_FIRST_ROWS = 20


def agreement(settings: Settings, workspace: Workspace) -> list[Check]:
    """Settings that are right one by one and cannot come to a result together."""
    prompts, least = settings.prompts, settings.curate.min_pairs
    if prompts.limit is not None and prompts.limit < least:
        found = (
            f"WARNING: prompts.limit = {prompts.limit} gives fewer pairs than training needs (curate.min_pairs = {least}): "
            "the run ends before training, with a report"
        )
        return [Check("settings", True, found)]
    return [Check("settings", True, "they agree")]


def prompts(settings: Settings, workspace: Workspace) -> list[Check]:
    """The training prompts, and those of the evaluation where they have a source of their own."""
    sources = {"prompts": settings.prompts.source, "evaluation prompts": settings.prompts.eval_source}
    return [
        tried(name, partial(_first_rows, source, settings.prompts))
        for name, source in sources.items()
        if source is not None
    ]


def _first_rows(source: str, settings: Prompts) -> str:
    if not is_file(source):
        return f"{source}, a dataset of the Hub; it is read before a model is loaded"
    if Path(locate(source)).is_dir():
        return f"{source}, a folder; it is read before a model is loaded"
    rows = list(islice(read_rows(source, settings), _FIRST_ROWS))
    reasons: Counter[str] = Counter()
    for row in rows:
        try:
            conversation(row, settings.column)
        except Malformed as reason:
            reasons[str(reason)] += 1
    usable = len(rows) - reasons.total()
    said = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    if not usable:
        columns = f"{said}; the columns are {', '.join(map(str, rows[0].value))}" if rows else "it is empty"
        raise CaiError(
            f"{source} holds no conversation in its first {_FIRST_ROWS} rows: {columns}.",
            "Give a conversation, a transcript or a text a row, and name the column if it is none of the usual: "
            "--set prompts.column=NAME.",
        )
    return f"{source}, {usable} of the first {len(rows)} rows are conversations" + (f" ({said})" if said else "")


def gold(settings: Settings, workspace: Workspace) -> list[Check]:
    """Gold pairs that are on this machine. Without those of the Hub a run goes on, uncalibrated."""
    source = settings.calibrate.gold
    if source is None or not is_file(source):
        return []
    return [tried("gold pairs", lambda: _gold_line(source, settings.seed))]


def _gold_line(source: str, seed: int) -> str:
    read = read_gold(source, None, seed)
    return f"{source}, {len(read.pairs)} pairs"


def evaluation_files(settings: Settings, workspace: Workspace) -> list[Check]:
    """Files on this machine that the evaluation reports on beside the held-out prompts."""
    evaluate = settings.evaluate
    return [
        *(tried("evaluation file", partial(_prompts_line, one)) for one in evaluate.prompts if is_file(one)),
        *(tried("two-option file", partial(_options_line, one)) for one in evaluate.two_options if is_file(one)),
    ]


def _prompts_line(source: str) -> str:
    return f"{source}, {len(prompts_of_file(source))} prompts"


def _options_line(source: str) -> str:
    return f"{source}, {len(options_of_file(source))} pairs"


def texts(settings: Settings, workspace: Workspace) -> list[Check]:
    """The constitution and the critique protocols."""
    return [
        tried("constitution", lambda: _constitution_line(settings)),
        tried("protocols", lambda: _protocols_line(settings)),
    ]


def _constitution_line(settings: Settings) -> str:
    own = settings.generate.constitution
    principles = load_constitution(Path(own) if own else None).principles
    return f"{own or 'the built-in one'}, {len(principles)} principles"


def _protocols_line(settings: Settings) -> str:
    own, protocol = settings.generate.protocols_file, settings.generate.protocol
    file = Path(own) if own else None
    names = protocol_names(file)
    if protocol != "auto":
        protocol_of(settings, protocol)
    return f"{own or 'the built-in ones'}, {len(names)} of them; generate.protocol is {protocol}"
