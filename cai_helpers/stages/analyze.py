"""Is this data good? Statistics, a diagnosis in words, pictures, and one page that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cai_helpers.analysis.diagnosis import Finding, diagnose
from cai_helpers.analysis.frame import read_frame
from cai_helpers.analysis.gate import check_targets
from cai_helpers.analysis.statistics import TIE, Example, Group, LengthBias, Statistics, analyze_frame
from cai_helpers.calibration.accuracy import trust_of_pairs
from cai_helpers.calibration.threshold import threshold_of
from cai_helpers.contents import file_hash
from cai_helpers.critique.constitution import principle_words
from cai_helpers.measures.intervals import Interval
from cai_helpers.measures.refusals import agreement
from cai_helpers.pages.pair_pictures import save_pair_plots
from cai_helpers.pages.pairs_page import write_pairs_page
from cai_helpers.schema import StageReport, Target
from cai_helpers.settings import Settings
from cai_helpers.store import read_json
from cai_helpers.workspace import Workspace, holds_workspace

_GROUPS_LISTED = 8  # principles in the short table; the page has all
_EXAMPLES_LISTED, _EXAMPLE_CHARACTERS = 2, 160  # of the worst and of the best revisions; the page has more, whole


class AnalyzeReport(StageReport):
    file: str
    page: str  # below the workspace
    FIRST: ClassVar[tuple[str, ...]] = ("target", "finding", "scorer")

    pictures: list[str]
    statistics: Statistics
    findings: list[Finding]
    gate: list[Target]
    trust: str | None  # what gold pairs say of the scorer; None: a file from elsewhere, whose scorer nobody knows

    def title(self) -> str:
        return "Is this data good?"

    def lines(self) -> list[tuple[str, str]]:
        findings = [
            (f"finding ({finding.severity})", f"{finding.name}: {finding.evidence} {finding.remedy}")
            for finding in self.findings
        ]
        return [
            *((f"target: {target.name}", target.line()) for target in self.gate),
            *_trust_lines(self.trust),
            *(findings or [("findings", "none")]),
            *statistics_lines(self.statistics),
            *([] if self.statistics.sampled else _example_lines("worst revision", self.statistics.worst)),
            *_example_lines("clearest pair" if self.statistics.sampled else "best revision", self.statistics.best),
            ("page", self.page),
        ]

    def summary(self) -> list[tuple[str, str]]:
        return [("findings", "; ".join(finding.name for finding in self.findings) or "none")]


@holds_workspace
def analyze_pairs(settings: Settings, workspace: Workspace, file: Path | None = None) -> AnalyzeReport:
    """Analyse the scored pairs: reports/pairs.html and the pictures beside it.

    file: a file from elsewhere, of which the eight columns suffice; its page and pictures go to reports/<name>/.

    Raises:
        CaiError: there are no scored pairs, or a row is malformed; the message names it.
    """
    if file is not None:
        folder = workspace.reports_of(file)
        return _analyze(settings, workspace, file, folder, None, None)
    source = workspace.require(workspace.pairs, made_by="score")
    fingerprint = {
        "input pairs": file_hash(source),
        "input curation": file_hash(workspace.curation_stats),
        "scorer, on gold pairs": trust_of_pairs(workspace),
        "curate.min_delta": threshold_of(settings, workspace).value,
    }
    if (report := workspace.finished("analyze", fingerprint, AnalyzeReport)) is not None:
        return report
    report = _analyze(settings, workspace, source, workspace.reports, _curation(workspace), trust_of_pairs(workspace))
    outputs = [workspace.root / report.page, *(workspace.root / picture for picture in report.pictures)]
    workspace.seal("analyze", fingerprint, outputs, report)
    return report


def statistics_lines(statistics: Statistics) -> list[tuple[str, str]]:
    """The figures as (what, figure); the page shows the same lines."""
    length = (
        "no pairs"
        if statistics.base_words is None or statistics.revised_words is None
        else f"{statistics.base_words.value:.0f} → {statistics.revised_words.value:.0f} words"
    )
    evenness = (
        ""
        if statistics.principle_evenness is None
        else f", evenness {statistics.principle_evenness:.2f} (1: equal use)"
    )
    moved = statistics.transitions
    return [
        ("pairs", f"{statistics.rows}, of which {statistics.compared} have two texts with two scores"),
        ("outcomes", ", ".join(f"{name} {count}" for name, count in statistics.outcomes.items())),
        *(_lines_of_samples(statistics) if statistics.sampled else _lines_of_revisions(statistics)),
        ("mean delta", _number(statistics.mean_delta)),
        ("median delta", _number(statistics.median_delta)),
        ("chosen side", ", ".join(f"{name} {count}" for name, count in statistics.chosen.items()) or "none"),
        *([] if statistics.sampled else [("principles", f"{statistics.distinct_principles} in use{evenness}")]),
        *((f"  {group.name}", _group(group, statistics.sampled)) for group in statistics.principles[:_GROUPS_LISTED]),
        *((f"category {group.name}", _group(group, statistics.sampled)) for group in statistics.categories),
        (f"mean length, {statistics.sides.base} → {statistics.sides.revised}", length),
        ("longer side wins", _length(statistics.length_bias)),
        ("  where both answer or both refuse", _length(statistics.length_bias_like_for_like)),
        ("answer → refusal", f"{moved.answer_to_refusal}; refusal → answer {moved.refusal_to_answer}; "
         f"both answer {moved.answer_to_answer}; both refuse {moved.refusal_to_refusal}"),
        ("counter of refusals", agreement().sentence()),
        ("prompts without context", f"{_percent(statistics.context_free)}; {statistics.multi_turn} have earlier turns"),
        ("repeated prompts", str(statistics.duplicates)),
    ]  # fmt: skip


def _lines_of_revisions(one: Statistics) -> list[tuple[str, str]]:
    return [
        ("usable critic outputs", _percent(one.usable)),
        ("both sides identical", f"{_percent(one.identical_all)} of all rows"),
        ("", f"{_percent(one.identical_attempted)} of the {one.attempted} attempted revisions (kept drafts left out)"),
        ("meta-commentary", f"{_percent(one.meta_commentary)} of the attempted revisions"),
        ("template text in revisions", _percent(one.leaks)),
        ("topic fit, drafts → revisions", f"{_percent(one.draft_fit)} → {_percent(one.revision_fit)} (50 %: chance)"),
        ("revision scores higher", f"{one.revised_better}; draft {one.base_better}; "
         f"ties {one.ties} (|delta| ≤ {one.tie_threshold:g})"),
        ("revision's win rate", f"{_percent(one.wins)}, ties as half"),
    ]  # fmt: skip


def _lines_of_samples(one: Statistics) -> list[tuple[str, str]]:
    """That the best sample wins is by construction, so no win rate is shown."""
    return [
        ("two usable samples", f"{_percent(one.usable)} of the prompts"),
        ("topic fit, worst → best sample", f"{_percent(one.draft_fit)} → {_percent(one.revision_fit)} (50 %: chance)"),
        ("best sample scores higher", f"by construction; ties {one.ties} (|delta| ≤ {one.tie_threshold:g})"),
    ]


def _analyze(
    settings: Settings, workspace: Workspace, source: Path, folder: Path, curation: dict | None, trust: str | None
) -> AnalyzeReport:
    frame = read_frame(source)
    threshold = threshold_of(settings, workspace, from_elsewhere=trust is None)
    own = settings.generate.constitution
    # in a file from elsewhere an id may stand for another principle
    words = {} if trust is None else principle_words(Path(own) if own else None)
    statistics = analyze_frame(frame, max(TIE, threshold.value)).in_words(words)
    findings = diagnose(statistics)
    if curation is not None and curation["generated"] != len(frame.rows):  # it was counted on another file
        curation = None
    gate = _gate(statistics, curation, settings)
    plots = save_pair_plots(frame.rows, statistics, curation, folder)
    page = write_pairs_page(
        folder / "pairs.html",
        source.name,
        [*_trust_lines(trust), *statistics_lines(statistics)],
        statistics,
        findings,
        gate,
        plots,
        words,
    )
    return AnalyzeReport(
        file=source.name,
        page=page.relative_to(workspace.root).as_posix(),
        pictures=[path.relative_to(workspace.root).as_posix() for path in plots.values()],
        statistics=statistics,
        findings=findings,
        gate=gate,
        trust=trust,
    )


def _gate(statistics: Statistics, curation: dict | None, settings: Settings) -> list[Target]:
    """The targets as curate found them; for a file that was not curated, over its decided pairs."""
    if curation is not None:
        return [Target.model_validate(target) for target in curation["gate"]]
    decided = statistics.decided
    share = statistics.prefers_refusal / decided if decided else None
    return check_targets(statistics, decided, share, settings.curate)


def _curation(workspace: Workspace) -> dict | None:
    if not workspace.curation_stats.exists():
        return None
    return read_json(workspace.curation_stats, "Delete that file, and run `cai curate` again.")


def _trust_lines(trust: str | None) -> list[tuple[str, str]]:
    return [] if trust is None else [("scorer, on gold pairs", trust)]


def _example_lines(name: str, examples: list[Example]) -> list[tuple[str, str]]:
    return [
        (
            f"{name} {pair.delta:+.2f}",
            f"{_short(pair.prompt)}\n  {pair.sides.base}: {_short(pair.base_response)}\n"
            f"  {pair.sides.revised}: {_short(pair.revised_response)}",
        )
        for pair in examples[:_EXAMPLES_LISTED]
    ]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]} …"


def _percent(share: Interval | None) -> str:
    return "nothing to measure" if share is None else share.percent()


def _number(mean: Interval | None) -> str:
    return "too few pairs" if mean is None else mean.number()


def _group(group: Group, sampled: bool) -> str:
    wins = "" if sampled else f"revision wins {_percent(group.wins)}, "
    return f"{group.rows} rows; {wins}mean delta {_number(group.mean_delta)}"


def _length(bias: LengthBias) -> str:
    if bias.longer_wins is None:
        return "no pairs"
    correlation = "" if bias.correlation is None else f", rank correlation with delta {bias.correlation:+.2f}"
    return f"{bias.longer_wins.percent()} of {bias.pairs} pairs{correlation}"
