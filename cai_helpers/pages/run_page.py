"""reports/report.html: a whole run on one page, the verdict first; what has not run is said to be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from cai_helpers.analysis.diagnosis import Finding
from cai_helpers.analysis.statistics import Example as PairExample
from cai_helpers.analysis.statistics import Statistics
from cai_helpers.calibration.accuracy import load_calibration, trust_line
from cai_helpers.calibration.differences import read_choice
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.adapter import exchanged
from cai_helpers.evaluation.category_parts import MADE_OF
from cai_helpers.evaluation.report import EvaluateReport
from cai_helpers.evaluation.verdict import RULE
from cai_helpers.manifest import Manifest
from cai_helpers.pages.template import write_page
from cai_helpers.pages.training_picture import save_training_plot
from cai_helpers.pages.verdict_view import Verdict, verdict_css, verdict_of, verdict_view
from cai_helpers.schema import WORST_AND_BEST, Target
from cai_helpers.scoring.judge import scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.workspace import NOTEBOOK_OF_STAGE, Workspace

_STAGES = ("generate", "score", "curate", "analyze", "train", "evaluate")
_EXAMPLES_SHOWN = 3  # of the largest gains, and as many of the largest losses


class Stage(NamedTuple):
    name: str
    manifest: Manifest | None
    missing: str  # why there is no manifest
    stale: str  # what changed since, or ""


class Side(NamedTuple):
    name: str
    score: float
    text: str
    wins: bool


class Example(NamedTuple):
    """Two answers to one prompt, side by side."""

    asked: str
    heading: str
    left: Side
    right: Side


def write_run_report(settings: Settings, workspace: Workspace, stopped: str | None = None) -> Path:
    """Write reports/report.html from what the stages left behind; what has not run is said to be missing, and why.

    stopped: why the run ended before training. What an earlier run trained and evaluated is then left out.

    Raises:
        CaiError: a stage's report is of another version of this package; running the stages again makes it anew.
    """
    try:
        return _write(settings, workspace, stopped)
    except ValidationError as error:
        raise CaiError(
            f"{workspace.root} holds a report ({error.title}) that another version of cai-helpers wrote.",
            "Run `cai run` with the same --workspace: the stages that cannot be read run again, with the rows that are there.",
        ) from error


def _write(settings: Settings, workspace: Workspace, stopped: str | None) -> Path:
    stages = [_stage(name, workspace, stopped) for name in _STAGES]
    manifests = {stage.name: stage.manifest for stage in stages if stage.manifest}
    evaluation = _evaluation(manifests.get("evaluate"))
    calibration = load_calibration(workspace, scorer_identity(settings))  # of this scorer, not of an earlier one
    analysis = manifests.get("analyze")
    statistics = Statistics.model_validate(analysis.report["statistics"]) if analysis else None
    training = _training(manifests.get("train"))
    gate = [Target.model_validate(row) for row in analysis.report["gate"]] if analysis else []
    return write_page(
        workspace.run_page,
        "run.html.j2",
        title="Constitutional AI, Stage 3: report",
        settings=settings,
        verdict=_verdict(stages, evaluation, workspace, stopped),
        view=verdict_view(evaluation, workspace) if evaluation else None,
        verdict_css=verdict_css(),
        rule=RULE,
        made_of=MADE_OF,
        stages=stages,
        trust=trust_line(calibration),
        calibration_plot=plot if calibration and (plot := workspace.picture("calibration")).exists() else None,
        statistics=statistics,
        findings=[Finding.model_validate(row) for row in analysis.report["findings"]] if analysis else [],
        gate=gate,
        shown_elsewhere=_shown_elsewhere(gate, training),
        pair_examples=[] if evaluation else _pair_examples(statistics),
        plots=_plots(workspace, manifests),
        training=training,
        settings_yaml=yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        versions=_versions(manifests),
    )


def _stage(name: str, workspace: Workspace, stopped: str | None) -> Stage:
    after_the_stop = stopped is not None and name in ("train", "evaluate")
    manifest = None if after_the_stop else workspace.manifest(name)
    if manifest is None:
        return Stage(name, None, _why_missing(name, workspace, stopped), "")
    return Stage(name, manifest, "", _staleness(manifest, workspace))


def _why_missing(name: str, workspace: Workspace, stopped: str | None) -> str:
    if name in ("train", "evaluate"):
        if stopped is not None:
            return stopped
        curation = workspace.manifest("curate")
        if curation is not None and curation.report["kept"] < curation.report["min_pairs"]:
            return (
                f"{curation.report['kept']} usable pairs are left, and training needs {curation.report['min_pairs']}: "
                "fewer teach little but noise. The table above has the reasons."
            )
    if name == "generate" and workspace.bakeoff.exists() and (choice := read_choice(workspace)).protocol is None:
        return f"The bake-off recommends no protocol: {choice.why} {choice.remedy}"
    return f"Run `cai {name}` or notebook {NOTEBOOK_OF_STAGE[name]} in this workspace."


def _staleness(manifest: Manifest, workspace: Workspace) -> str:
    """A sentence when an input of the stage is no longer what it was made from."""
    inputs = {
        ("curate", "input pairs"): workspace.pairs,
        ("curate", "input overrides"): workspace.overrides,
        ("analyze", "input pairs"): workspace.pairs,
        ("train", "input train rows"): workspace.train_rows,
        ("evaluate", "input adapter"): workspace.adapter,
    }
    changed = [
        name
        for (stage, name), path in inputs.items()
        if stage == manifest.stage and manifest.fingerprint.get(name) != file_hash(path)
    ]
    if manifest.stage == "train" and (note := exchanged(workspace)):
        return f"{note}."
    if not changed:
        return ""
    return f"Out of date: the {changed[0].removeprefix('input ')} changed since. Run `cai {manifest.stage}` again."


def _evaluation(manifest: Manifest | None) -> EvaluateReport | None:
    return None if manifest is None else EvaluateReport.model_validate(manifest.report)


def _verdict(
    stages: list[Stage], evaluation: EvaluateReport | None, workspace: Workspace, stopped: str | None
) -> Verdict:
    if stopped is not None:
        return Verdict("bad", "Training was refused", stopped)
    if evaluation is not None:
        return verdict_of(evaluation, workspace)
    first = next(stage for stage in stages if stage.manifest is None)
    headline = "Nothing was trained" if first.name in _STAGES[:5] else "Trained, but not evaluated"
    return Verdict("warning", headline, first.missing)


def _pair_examples(statistics: Statistics | None) -> list[Example]:
    if statistics is None:
        return []
    return [
        Example(
            asked=pair.prompt,
            heading=f"{_outcome_of(pair)} · {pair.category}",
            left=Side(pair.sides.base.capitalize(), pair.base_score, pair.base_response, wins=pair.delta < 0),
            right=Side(pair.sides.revised.capitalize(), pair.revised_score, pair.revised_response, wins=pair.delta > 0),
        )
        for pair in (*statistics.best[:_EXAMPLES_SHOWN], *statistics.worst[:_EXAMPLES_SHOWN])
    ]


def _outcome_of(pair: PairExample) -> str:
    if pair.sides == WORST_AND_BEST:
        return f"best and worst sample, {pair.delta:.2f} apart"
    return "revision wins" if pair.delta > 0 else "revision loses"


def _training(manifest: Manifest | None) -> dict[str, list[dict[str, Any]]]:
    """Alarms and targets of the training, as they stand in its manifest."""
    report = manifest.report if manifest else {}
    return {name: report.get(name, []) for name in ("alarms", "targets")}


def _shown_elsewhere(gate: list[Target], training: dict[str, list[dict[str, Any]]]) -> set[str]:
    """Lines of the stages that have a table of their own on the page."""
    return {
        "gold pairs",
        *(f"gate: {target.name}" for target in gate),
        *(f"target: {target['name']}" for target in training["targets"]),
    }


def _plots(workspace: Workspace, manifests: dict[str, Manifest]) -> dict[str, Path | None]:
    """The pictures of the stages that have run."""
    if "train" in manifests and workspace.history.exists() and not workspace.picture("training").exists():
        save_training_plot(workspace)  # training draws it; gone, it is drawn again
    made_by = {"funnel": "analyze", "delta_by_outcome": "analyze", "training": "train"}
    paths = {name: workspace.picture(name) for name, stage in made_by.items() if stage in manifests}
    return {name: path for name, path in paths.items() if path.exists()} | {
        name: None for name in made_by if name not in paths or not paths[name].exists()
    }


def _versions(manifests: dict[str, Manifest]) -> list[tuple[str, str]]:
    """Library versions, each with the stages that ran under another one than the last."""
    versions: dict[str, list[str]] = {}
    for manifest in manifests.values():
        for name, version in manifest.versions.items():
            versions.setdefault(name, [])
            if version not in versions[name]:
                versions[name].append(version)
    return [(name, ", then ".join(numbers)) for name, numbers in versions.items()]
