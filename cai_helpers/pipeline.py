"""The whole of Stage 3 on one page: the stages in order. Each is a no-op when it is complete and unchanged."""

from __future__ import annotations

from cai_helpers.errors import GoldUnreachable, TrainingRefused
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.readiness.needs import require_ready_for_run
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.stages.analyze import AnalyzeReport, analyze_pairs
from cai_helpers.stages.calibrate import CalibrateReport, calibrate_scorer
from cai_helpers.stages.curate import CurateReport, curate_pairs
from cai_helpers.stages.download import download_models
from cai_helpers.stages.evaluate import EvaluateReport, evaluate_models
from cai_helpers.stages.export import ExportReport, export_artifacts
from cai_helpers.stages.generate import GenerateReport, generate_pairs
from cai_helpers.stages.score import ScoreReport, score_pairs
from cai_helpers.stages.train import Report, train_policy
from cai_helpers.workspace import Workspace, holds_workspace


class RunReport(StageReport):
    """What happened, in the order it happened. Stages that were not reached are None."""

    workspace: str
    page: str
    calibrate: CalibrateReport | None = None
    uncalibrated: str | None = None  # why the scorer was not tried on gold pairs
    generate: GenerateReport
    score: ScoreReport
    curate: CurateReport
    analyze: AnalyzeReport
    train: Report | None = None
    evaluate: EvaluateReport | None = None
    export: ExportReport
    stopped: str | None = None  # why training refused

    def title(self) -> str:
        return "What happened"

    def lines(self) -> list[tuple[str, str]]:
        reports = [self.generate, self.calibrate, self.score, self.curate, self.train, self.evaluate]
        rows = [line for report in reports if report is not None for line in report.summary()]
        if self.uncalibrated:
            rows.append(("scorer not calibrated", self.uncalibrated))
        if self.stopped:
            rows.append(("stopped before training", self.stopped))
        return rows


@holds_workspace
def run_stage3(settings: Settings, workspace: Workspace) -> RunReport:
    """Run every stage and write reports/report.html.

    Pairs that are too few, or refused under curate.strict, are an ending, not a crash: the report and the zip are
    written, `stopped` says why, and nothing is trained.
    """
    workspace.save_settings(settings)
    require_ready_for_run(settings, workspace)  # before gigabytes are fetched
    download_models(settings, workspace)
    calibrated, uncalibrated = _calibrated(settings, workspace)  # first: a mistake in the gold file shows at once
    generated = generate_pairs(settings, workspace)
    scored = score_pairs(settings, workspace)
    curated = curate_pairs(settings, workspace)
    analyzed = analyze_pairs(settings, workspace)
    trained = evaluated = stopped = None
    try:
        trained = train_policy(settings, workspace)
        evaluated = evaluate_models(settings, workspace)
    except TrainingRefused as refusal:
        stopped = f"{refusal.what} {refusal.todo}"
        workspace.say("train", stopped)
    page = write_run_report(settings, workspace, stopped)
    return RunReport(
        workspace=str(workspace.root),
        page=str(page),
        calibrate=calibrated,
        uncalibrated=uncalibrated,
        generate=generated,
        score=scored,
        curate=curated,
        analyze=analyzed,
        train=trained,
        evaluate=evaluated,
        export=export_artifacts(settings, workspace),
        stopped=stopped,
    )


def _calibrated(settings: Settings, workspace: Workspace) -> tuple[CalibrateReport | None, str | None]:
    """The calibration, or why there is none. It is a check: without the Hub the run goes on, and every page says so."""
    if settings.calibrate.gold is None:
        return None, "no gold pairs are named (calibrate.gold)"
    try:
        return calibrate_scorer(settings, workspace), None
    except GoldUnreachable as error:
        reason = f"{error.what} {error.todo}"
        workspace.say("calibrate", f"NOT DONE: {reason} The run goes on with a scorer whose reliability is unknown.")
        return None, reason
