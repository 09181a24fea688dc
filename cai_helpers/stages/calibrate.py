"""Can the scorer be trusted here? It is tried on pairs that people have judged, before it labels anything."""

from __future__ import annotations

import functools
from collections.abc import Callable

from cai_helpers.calibration.accuracy import trust_line
from cai_helpers.calibration.gold import Gold, gold_source, read_gold
from cai_helpers.calibration.trial import CalibrateReport, keep_trial, trial_basis, try_scorer
from cai_helpers.machine.hardware import use_threads
from cai_helpers.pages.calibration_picture import save_calibration_plot
from cai_helpers.readiness.needs import require_ready
from cai_helpers.readiness.scorer import scorer_has_worked
from cai_helpers.scoring.judge import scored_by, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.store import write_json
from cai_helpers.workspace import Workspace, holds_workspace


@holds_workspace
def calibrate_scorer(settings: Settings, workspace: Workspace, gold: str | None = None) -> CalibrateReport:
    """Score gold pairs and write calibration/result.json and reports/calibration.png.

    gold: a file or Hub dataset instead of calibrate.gold; see gold.read_gold for the forms. Scores are kept by what was
    asked in calibration/scores.jsonl: a killed call resumes. Where evaluate.scorer names another judge, it is tried as well.

    Raises:
        GoldUnreachable: the gold pairs are on the Hub, which cannot be reached.
        CaiError: no gold pairs are named, a row is malformed, or the scorer cannot be loaded or fails.
    """
    source = gold_source(settings.calibrate, gold)
    pairs = functools.cache(lambda: read_gold(source, settings.calibrate.limit, settings.seed))
    use_threads(settings.threads)
    report = _try_labeller(settings, workspace, source, pairs)
    judge = scored_by(settings, settings.evaluate.scorer)
    if scorer_identity(judge) == report.scorer:
        return report
    trial = keep_trial(judge, workspace, source, pairs)
    return report.model_copy(update={"judge": f"{trial.scorer}: {trust_line(trial.calibration)}"})


def _try_labeller(settings: Settings, workspace: Workspace, source: str, pairs: Callable[[], Gold]) -> CalibrateReport:
    fingerprint = trial_basis(settings, source)
    if (report := workspace.finished("calibrate", fingerprint, CalibrateReport)) is not None:
        return report
    require_ready(settings, workspace, "calibrate")
    report = try_scorer(settings, workspace, source, pairs())
    if report.scored_now:
        scorer_has_worked(settings)
    write_json(workspace.calibration, report.model_dump(mode="json"))
    picture = save_calibration_plot(report.calibration, workspace.picture("calibration"))
    workspace.note_metrics("calibrate", report)
    workspace.seal("calibrate", fingerprint, [workspace.calibration, picture], report)
    return report
