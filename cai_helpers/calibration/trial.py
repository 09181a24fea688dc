"""One scorer tried on gold pairs: its scores are kept by what was asked, its figures by what they depend on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from cai_helpers.calibration.accuracy import Calibration, JudgedGold, calibrate, trust_line
from cai_helpers.calibration.gold import Gold, gold_identity
from cai_helpers.manifest import Fingerprint, section
from cai_helpers.measures.intervals import Interval
from cai_helpers.models.batches import release_all
from cai_helpers.schema import StageReport, transcript
from cai_helpers.scoring.judge import PairScores, ResponsePair, judge_pairs, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, write_json
from cai_helpers.workspace import Workspace


class CalibrateReport(StageReport):
    scorer: str
    calibration: Calibration
    rows: int  # of the gold source
    prompts: int  # different ones; pairs of one prompt are less evidence than as many of different prompts
    FIRST: ClassVar[tuple[str, ...]] = ("right", "recommended", "verdict", "the judge")

    left_out: dict[str, int]  # reason → rows
    notes: list[tuple[str, str]]  # what the scorer says of this call
    scored_now: int  # texts, or pairs for AI feedback; the others were scored by an earlier call
    seconds: float
    judge: str | None = None  # what the same pairs say of the judge, where evaluate.scorer names another scorer

    def title(self) -> str:
        return "Can the scorer be trusted?"

    def lines(self) -> list[tuple[str, str]]:
        figures = self.calibration
        left_out = "; ".join(f"{count} left out: {reason}" for reason, count in self.left_out.items())
        source = f"{figures.pairs} of the {self.rows} rows of {figures.gold}"
        return [
            ("scored by", self.scorer),
            ("gold pairs", source + (f"; {left_out}" if left_out else "")),
            ("different prompts", _prompts(self.prompts, figures.pairs)),
            ("right", f"{figures.accuracy.percent()}, ties as half"),
            ("ties", str(figures.ties)),
            *((f"  {name}", f"{share.percent()} of {share.n}") for name, share in figures.categories.items()),
            *((f"  |delta| {deltas.low:.2f} to {deltas.high:.2f}", f"{deltas.accuracy.percent()} of {deltas.accuracy.n}")
              for deltas in figures.bins),
            ("score against length", _number(figures.length_correlation) + " (Spearman, words of a text)"),
            ("longer text wins", f"{_share(figures.longer_wins)}; it is the better one in {_share(figures.longer_is_better)}"),
            ("recommended min_delta", _recommendation(figures)),
            ("verdict", f"{figures.verdict}: {trust_line(figures)}"),
            *self.notes,
            ("this call", f"{self.scored_now} texts in {self.seconds:.0f} s"),
            *([] if self.judge is None else [("the judge of evaluate", self.judge)]),
        ]  # fmt: skip

    def summary(self) -> list[tuple[str, str]]:
        judge = [] if self.judge is None else [("judge on gold pairs", self.judge)]
        return [("scorer on gold pairs", f"{self.calibration.verdict}: {trust_line(self.calibration)}"), *judge]


def trial_basis(settings: Settings, source: str) -> Fingerprint:
    """What the figures of a scorer depend on. source: the gold pairs, as in gold.read_gold."""
    return {
        "scorer": scorer_identity(settings),
        "input gold": gold_identity(source),
        "seed": settings.seed,
        **section("calibrate", settings.calibrate, exclude={"gold"}),
    }


def try_scorer(settings: Settings, workspace: Workspace, source: str, gold: Gold) -> CalibrateReport:
    """Score the gold pairs with the scorer of the settings; a text that was scored before is not scored again.

    Raises:
        CaiError: the scorer cannot be loaded, is read the wrong way, or fails.
    """
    started = time.monotonic()
    pairs = [ResponsePair(pair.messages, pair.better, pair.worse) for pair in gold.pairs]
    judged = judge_pairs(settings, pairs, JsonlStore(workspace.calibration_scores))
    release_all()  # the next stage, or scorer, needs the room
    return CalibrateReport(
        scorer=scorer_identity(settings),
        calibration=calibrate(_judged(gold, judged.scores), settings.calibrate.target, source),
        rows=gold.rows,
        prompts=len({transcript(pair.messages) for pair in gold.pairs}),
        left_out=gold.left_out,
        notes=judged.notes,
        scored_now=judged.scored_now,
        seconds=time.monotonic() - started,
    )


def keep_trial(settings: Settings, workspace: Workspace, source: str, pairs: Callable[[], Gold]) -> CalibrateReport:
    """`try_scorer` of a scorer beside the one that labels, kept by its identity; pairs are read only if it is tried now."""
    basis, file = trial_basis(settings, source), workspace.calibration_of(scorer_identity(settings))
    stage = f"calibrate-{file.stem}"
    if (report := workspace.finished(stage, basis, CalibrateReport)) is not None:
        return report
    report = try_scorer(settings, workspace, source, pairs())
    write_json(file, report.model_dump(mode="json"))
    workspace.seal(stage, basis, [file], report)
    return report


def _judged(gold: Gold, scores: list[PairScores]) -> list[JudgedGold]:
    return [
        JudgedGold(score.first, score.second, len(pair.better.split()), len(pair.worse.split()), pair.category)
        for pair, score in zip(gold.pairs, scores, strict=True)
    ]


def _recommendation(figures: Calibration) -> str:
    if figures.min_delta is None or figures.above is None:
        return f"none: at no difference is it right on {100 * figures.target:.0f} % and better than a coin"
    above = f"{figures.above.percent()} of {figures.above.n}"
    return f"{figures.min_delta:.2f}: from there on right on {above} (curate.min_delta)"


def _prompts(prompts: int, pairs: int) -> str:
    """Below nine in ten, the intervals, which take pairs for independent, are visibly too narrow."""
    return f"{prompts}" + (
        "; the intervals take all pairs for independent and are too narrow" if prompts < 0.9 * pairs else ""
    )


def _number(value: float | None) -> str:
    return "nothing varies" if value is None else f"{value:+.2f}"


def _share(share: Interval | None) -> str:
    return "no pair of unequal lengths" if share is None else share.percent()
