"""What the cards tell: a run by its settings and what its stages left behind, read out of the files that are packed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from cai_helpers.artifacts.record import ADAPTER
from cai_helpers.critique.samples import is_samples
from cai_helpers.evaluation.figures import HELD_OUT, STAGE3, Comparison, Response, readable
from cai_helpers.manifest import Manifest
from cai_helpers.settings import Settings, read_settings
from cai_helpers.store import rows_of

OTHER_ADAPTER = "Not evaluated: the evaluation in `metrics.json` is of another adapter than this one."
_BOOKKEEPING = frozenset({"this call", "speed", "scored in", "page"})  # how it went, not what came out
_SECONDS = re.compile(r" in \d+ s$")

Table = list[tuple[str, str]]


class Sample(NamedTuple):
    """A held-out question, and what the trained policy answered by its likeliest tokens."""

    question: str
    answer: str


class Account(NamedTuple):
    settings: Settings
    manifests: dict[str, Manifest]
    adapter: str | None  # its hash; None: there is none
    without_adapter: str  # why
    stops: bool  # beside the adapter lies a generation_config.json
    sample: Sample | None

    @property
    def protocol(self) -> str:
        """How the pairs were made; empty where they come from elsewhere."""
        generated = self.manifests.get("generate")
        return "" if generated is None else str(generated.report["protocol"])

    @property
    def sampled(self) -> bool:
        return is_samples(self.protocol)

    @property
    def evaluated(self) -> Manifest | None:
        """The evaluation, if it is of this very adapter."""
        found = self.manifests.get("evaluate")
        return found if found is not None and found.fingerprint.get("input adapter") == self.adapter else None

    def comparisons(self) -> dict[str, Comparison]:
        """What was compared, by a readable name: all prompts first."""
        report: dict[str, Any] = {} if self.evaluated is None else self.evaluated.report
        if "overall" not in report:
            return {}
        groups = {"all prompts": report["overall"]} | {
            readable(name): rows for name, rows in report["by_category"].items()
        }
        return {name: Comparison.model_validate(rows) for name, rows in groups.items()}

    def tables(self) -> dict[str, Table]:
        """The figures of each stage as the cards show them: without how long it took and what this call did."""
        found = {stage: manifest for stage, manifest in self.manifests.items() if stage != "evaluate"}
        if self.evaluated is not None:
            found["evaluate"] = self.evaluated
        return {stage: _figures(manifest.lines) for stage, manifest in found.items()}


def read_account(
    names: Iterable[str],
    read: Callable[[str], bytes],
    adapter: str | None,
    without_adapter: str,
) -> Account:
    """From the files of an archive, packed or about to be. Evaluation answers by sampling give no sample."""
    present = set(names)
    settings = read_settings(read("settings.json"), "settings.json")
    manifests = {
        PurePosixPath(name).stem: Manifest.model_validate_json(read(name))
        for name in sorted(present)
        if name.startswith("manifests/") and not name.endswith(".begun.json")
    }
    sample = None
    if "evaluation/responses.jsonl" in present and settings.evaluate.temperature == 0:
        sample = _sample(rows_of(read("evaluation/responses.jsonl")))
    return Account(
        settings, manifests, adapter, without_adapter, f"{ADAPTER}/generation_config.json" in present, sample
    )


def _sample(rows: Iterable[dict[str, Any]]) -> Sample | None:
    """The first single question whose answer has changed and is whole."""
    responses = map(Response.model_validate, rows)
    fitting = (
        response
        for response in responses
        if response.prompt_set == HELD_OUT
        and response.answers[STAGE3].finish == "stop"
        and response.stage2 != response.stage3
        and "\n\n" not in response.prompt
    )
    found = next(fitting, None)
    return None if found is None else Sample(found.prompt, found.stage3)


def _figures(lines: Table) -> Table:
    return [(name, _SECONDS.sub("", figure)) for name, figure in lines if name not in _BOOKKEEPING]


def as_rows(table: Table) -> list[str]:
    """A table's rows in Markdown."""
    cells = [(as_text(name), as_text(figure)) for name, figure in table]
    return [f"| {name} | {figure} |" for name, figure in cells]


def as_table(table: Table) -> str:
    return "\n".join(["| | |", "|---|---|", *as_rows(table)])


def as_text(text: str) -> str:
    """One line, and nothing in it that Markdown or HTML would read: a report may quote what a model said."""
    plain = " ".join(text.split())
    for sign, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        plain = plain.replace(sign, safe)
    return plain
