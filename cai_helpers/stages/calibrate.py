"""Can the scorer be trusted here? It is tried on pairs that people have judged, before it labels anything."""

from __future__ import annotations

import time

from cai_helpers.calibration.accuracy import Calibration, JudgedGold, calibrate, trust_line
from cai_helpers.calibration.gold import Gold, gold_identity, read_gold
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import use_threads
from cai_helpers.manifest import Fingerprint, section
from cai_helpers.measures.intervals import Interval
from cai_helpers.models.batches import release_memory
from cai_helpers.pages.calibration_picture import save_calibration_plot
from cai_helpers.readiness.scorer import scorer_has_worked
from cai_helpers.schema import StageReport, transcript
from cai_helpers.scoring.judge import PairScores, ResponsePair, judge_pairs, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, write_json
from cai_helpers.workspace import Workspace, holds_workspace


class CalibrateReport(StageReport):
    scorer: str
    calibration: Calibration
    rows: int  # of the gold source
    prompts: int  # different ones; pairs of one prompt are less evidence than as many of different prompts
    left_out: dict[str, int]  # reason → rows
    notes: list[tuple[str, str]]  # what the scorer says of this call
    scored_now: int  # texts, or pairs for AI feedback; the others were scored by an earlier call
    seconds: float

    def title(self) -> str:
        return "Can the scorer be trusted?"

    def lines(self) -> list[tuple[str, str]]:
        calibration = self.calibration
        left_out = "; ".join(f"{count} left out: {reason}" for reason, count in self.left_out.items())
        return [
            ("scored by", self.scorer),
            ("gold pairs", f"{calibration.pairs} of the {self.rows} rows of {calibration.gold}" + (f"; {left_out}" if left_out else "")),
            ("different prompts", _prompts(self.prompts, calibration.pairs)),
            ("right", f"{calibration.accuracy.percent()}, ties as half"),
            ("ties", str(calibration.ties)),
            *((f"  {name}", f"{share.percent()} of {share.n}") for name, share in calibration.categories.items()),
            *((f"  |delta| {deltas.low:.2f} to {deltas.high:.2f}", f"{deltas.accuracy.percent()} of {deltas.accuracy.n}")
              for deltas in calibration.bins),
            ("score against length", _number(calibration.length_correlation) + " (Spearman, words of a text)"),
            ("longer text wins", f"{_share(calibration.longer_wins)}; it is the better one in {_share(calibration.longer_is_better)}"),
            ("recommended min_delta", _recommendation(calibration)),
            ("verdict", f"{calibration.verdict}: {trust_line(calibration)}"),
            *self.notes,
            ("this call", f"{self.scored_now} texts in {self.seconds:.0f} s"),
        ]  # fmt: skip

    def summary(self) -> list[tuple[str, str]]:
        return [("scorer on gold pairs", f"{self.calibration.verdict}: {trust_line(self.calibration)}")]


@holds_workspace
def calibrate_scorer(settings: Settings, workspace: Workspace, gold: str | None = None) -> CalibrateReport:
    """Score gold pairs and write calibration/result.json and reports/calibration.png.

    gold: a file or Hub dataset instead of calibrate.gold; see gold.read_gold for the forms. Scores are kept by what was
    asked in calibration/scores.jsonl: a killed call resumes.

    Raises:
        GoldUnreachable: the gold pairs are on the Hub, which cannot be reached.
        CaiError: no gold pairs are named, a row is malformed, or the scorer cannot be loaded or fails.
    """
    source = gold or settings.calibrate.gold
    if source is None:
        raise CaiError(
            "No gold pairs are named.", "Set calibrate.gold to a file or a Hub dataset, or give --gold FILE."
        )
    fingerprint = _fingerprint(settings, source)
    if (report := workspace.finished("calibrate", fingerprint, CalibrateReport)) is not None:
        return report

    use_threads(settings.threads)
    started = time.monotonic()
    read = read_gold(source, settings.calibrate.limit, settings.seed)
    pairs = [ResponsePair(pair.messages, pair.better, pair.worse) for pair in read.pairs]
    judged = judge_pairs(settings, pairs, JsonlStore(workspace.calibration_scores))
    if judged.scored_now:
        scorer_has_worked(settings)
    release_memory()  # the next stage needs the room
    report = CalibrateReport(
        scorer=scorer_identity(settings),
        calibration=calibrate(_judged(read, judged.scores), settings.calibrate.target, source),
        rows=read.rows,
        prompts=len({transcript(pair.messages) for pair in read.pairs}),
        left_out=read.left_out,
        notes=judged.notes,
        scored_now=judged.scored_now,
        seconds=time.monotonic() - started,
    )
    write_json(workspace.calibration, report.model_dump(mode="json"))
    picture = save_calibration_plot(report.calibration, workspace.picture("calibration"))
    workspace.note_metrics("calibrate", report)
    workspace.seal("calibrate", fingerprint, [workspace.calibration, picture], report)
    return report


def _fingerprint(settings: Settings, source: str) -> Fingerprint:
    return {
        "scorer": scorer_identity(settings),
        "input gold": gold_identity(source),
        "seed": settings.seed,
        **section("calibrate", settings.calibrate, exclude={"gold"}),
    }


def _judged(gold: Gold, scores: list[PairScores]) -> list[JudgedGold]:
    return [
        JudgedGold(score.first, score.second, len(pair.better.split()), len(pair.worse.split()), pair.category)
        for pair, score in zip(gold.pairs, scores, strict=True)
    ]


def _recommendation(calibration: Calibration) -> str:
    if calibration.min_delta is None or calibration.above is None:
        return f"none: at no difference is it right on {100 * calibration.target:.0f} % and better than a coin"
    return f"{calibration.min_delta:.2f}: from there on right on {calibration.above.percent()} of {calibration.above.n} (curate.min_delta)"


def _prompts(prompts: int, pairs: int) -> str:
    """Below nine in ten, the intervals, which take pairs for independent, are visibly too narrow."""
    return f"{prompts}" + (
        "; the intervals take all pairs for independent and are too narrow" if prompts < 0.9 * pairs else ""
    )


def _number(value: float | None) -> str:
    return "nothing varies" if value is None else f"{value:+.2f}"


def _share(share: Interval | None) -> str:
    return "no pair of unequal lengths" if share is None else share.percent()
