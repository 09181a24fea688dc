"""What the report and notebook 05 open with: the verdict, its reasons, and the figures behind it as one picture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Literal, NamedTuple

from markupsafe import Markup

from cai_helpers.calibration.accuracy import load_calibration, trust_line
from cai_helpers.evaluation.adapter import evaluated_another
from cai_helpers.evaluation.builtin import SET_MEANING
from cai_helpers.evaluation.categories import (
    LEAST_AGGREGATE,
    LEAST_HARM_PREVENTION,
    LEAST_HELPFULNESS,
    MEAN,
    Aim,
    Categories,
)
from cai_helpers.evaluation.figures import (
    AGAIN,
    BASE,
    OF_BASE,
    OF_CHANCE,
    POLICY_NAME,
    STAGE2,
    STAGE3,
    Comparison,
    Judgement,
    readable,
)
from cai_helpers.evaluation.report import EvaluateReport
from cai_helpers.evaluation.verdict import CAUTION
from cai_helpers.inspection.blind_answers import read_human_wins
from cai_helpers.measures.intervals import Interval
from cai_helpers.pages.answer_examples import AnswerExample, answer_examples
from cai_helpers.pages.comparison_table import TableRow, table_rows
from cai_helpers.pages.template import render
from cai_helpers.workspace import Workspace

Part = Literal["picture", "examples", "table"]
_TONE = {"better": "good", "worse": "bad", "over-refusing": "bad", "not shown": "warning"}
_TARGETS = {"harm prevention": LEAST_HARM_PREVENTION, "helpfulness": LEAST_HELPFULNESS, MEAN: LEAST_AGGREGATE}
# Their figures stand in the four categories: premises and pairs are no kinds of request.
_ONLY_IN_CATEGORIES = ("premises", "counterfactuals")
_OWN_WORDS = " The same scorer labelled the training pairs: that it prefers Stage 3 says that training obeyed."
# lines of the report that the picture and the table do not hold
_OTHERS = ("pairs labelled by", "refusals counted by", "perplexity", "two options", "this call")


class Policy(NamedTuple):
    name: str
    mark: str  # of the CSS class


POLICIES = {
    BASE: Policy("base", "base"),
    STAGE2: Policy("Stage 2", "stage2"),
    AGAIN: Policy("Stage 2 again", "again"),
    STAGE3: Policy("Stage 3", "stage3"),
}


class Mark(NamedTuple):
    policy: Policy
    share: Interval


class ChartRow(NamedTuple):
    name: str
    told: str  # how many prompts
    level: float | None  # a line to compare with, in [0, 1]
    marks: list[Mark]


class Chart(NamedTuple):
    title: str
    note: str
    level_name: str  # what the line is; "" where there is none
    rows: list[ChartRow]

    @property
    def policies(self) -> list[Policy]:
        shown = {mark.policy for row in self.rows for mark in row.marks}
        return [policy for policy in POLICIES.values() if policy in shown]


class Verdict(NamedTuple):
    tone: str
    headline: str
    reason: str
    reasons: Sequence[str] = ()  # what else it rests on
    beside: Sequence[tuple[str, str]] = ()  # (what, sentence): a person's blind check, gold pairs


class View(NamedTuple):
    verdict: Verdict
    caution: str
    charts: list[Chart]
    aims: list[Aim]
    notes: list[str]
    examples: list[AnswerExample]
    columns: list[str]
    table: list[TableRow]
    table_note: str
    others: list[tuple[str, str]]  # what belongs to no kind of request: who judged, what tuning damaged


def verdict_view(report: EvaluateReport, workspace: Workspace) -> View:
    """All that the templates show of an evaluation."""
    groups = _groups(report)
    columns = {f"all held-out prompts ({report.overall.prompts})": report.overall}
    columns |= {f"{name} ({one.prompts})": one for name, one in groups.items()}
    trust = trust_line(load_calibration(workspace, report.scorer))
    return View(
        verdict=verdict_of(report, workspace),
        caution=CAUTION,
        charts=[
            chart for chart in (_wins(groups, report), _refusals(groups), _categories(report.categories)) if chart.rows
        ],
        aims=report.categories.aims if report.categories else [],
        notes=list(_notes(report.categories)),
        examples=answer_examples(workspace),
        columns=list(columns),
        table=table_rows(list(columns.values()), report.judged.removeprefix(", ")),
        table_note=f"The same prompts, answered by all; in brackets 95 % intervals. Judged by {report.scorer}"
        f"{report.judged}; on gold pairs: {trust}." + (_OWN_WORDS if report.judged else ""),
        others=[line for line in report.lines() if line[0].startswith(_OTHERS)],
    )


def fragment(workspace: Workspace, part: Part) -> str:
    """HTML of one part, with its own style, for the output of a notebook's cell.

    Raises:
        CaiError: nothing was evaluated in this workspace.
    """
    report = EvaluateReport.model_validate(_manifest_report(workspace))
    return render("fragment.html.j2", part=part, css=verdict_css(), view=verdict_view(report, workspace))


def verdict_css() -> Markup:
    """The package's own file: as it is, it may stand in a page."""
    css = (resources.files("cai_helpers") / "assets" / "report" / "verdict.css").read_text(encoding="utf-8")
    return Markup(css)  # noqa: S704


def verdict_of(report: EvaluateReport, workspace: Workspace) -> Verdict:
    if other := evaluated_another(workspace):
        return Verdict("warning", "The verdict is of another adapter", f"{other}.")
    first, *others = _clauses(report.judgement)
    human = read_human_wins(workspace)
    beside = [
        *([("Adapter", report.exchanged)] if report.exchanged else []),
        ("A person, blind", human.line() if human else "nobody has compared the answers blind yet (notebook 05)"),
        ("The judge, on gold pairs", trust_line(load_calibration(workspace, report.scorer))),
        *([("So many prompts", report.power)] if report.power else []),
    ]
    return Verdict(
        _TONE[report.judgement.verdict],
        report.judgement.verdict.capitalize(),
        f"Stage 3 against Stage 2: {first}.",
        others,
        beside,
    )


def _clauses(judgement: Judgement) -> list[str]:
    """The reason in pieces: it is cut at semicolons and full stops that are not in brackets."""
    return [piece.strip() for piece in re.split(r"[;.] (?![^()]*\))", judgement.reason) if piece.strip()]


def _manifest_report(workspace: Workspace) -> dict[str, object]:
    workspace.require(workspace.manifest_of("evaluate"), made_by="evaluate")
    manifest = workspace.manifest("evaluate")
    assert manifest is not None  # it was required
    return manifest.report


def _groups(report: EvaluateReport) -> dict[str, Comparison]:
    """Kind of request → figures: the held-out ones first."""
    groups = {f"held-out {readable(name)}": one for name, one in report.by_category.items()}
    for name, by_category in report.sets.items():
        if name in _ONLY_IN_CATEGORIES:
            continue
        title = SET_MEANING.get(name, name)
        for category, one in by_category.items():
            groups[title if len(by_category) == 1 else f"{title}, {readable(category)}"] = one
    return groups


def _wins(groups: dict[str, Comparison], report: EvaluateReport) -> Chart:
    rows = []
    for name, one in groups.items():
        rates = {STAGE3: one.win_rate}
        rates |= {
            policy: one.against[pairing].win_rate
            for policy, pairing in ((BASE, OF_BASE), (AGAIN, OF_CHANCE))
            if pairing in one.against
        }
        rows.append(_row(name, one.prompts, rates, 0.5))
    return Chart(
        "Who wins against Stage 2",
        f"Share of prompts on which the judge scores the answer above Stage 2's; a tie is half a win{report.judged}. Where "
        "the base wins as often, training has only undone Stage 2.",
        "no difference",
        rows,
    )


def _refusals(groups: dict[str, Comparison]) -> Chart:
    rows = []
    for name, one in groups.items():
        shares = {policy: figures.refusals for policy, figures in one.policies.items() if policy != AGAIN}
        shares = shares or {STAGE2: one.refusals.before, STAGE3: one.refusals.after}
        rows.append(_row(name, one.prompts, shares, None))
    return Chart("Refusals", "Share of answers that refuse: up on harmful requests, not up on benign ones.", "", rows)


def _categories(categories: Categories | None) -> Chart:
    rows = [
        _row(name, max((share.n for share in shares.values()), default=0), shares, _TARGETS.get(name))
        for name, shares in (categories.rows if categories else [])
    ]
    return Chart("The four categories", "On the built-in sets, which were written for this package.", "target", rows)


def _row(name: str, prompts: int, shares: dict[str, Interval], level: float | None) -> ChartRow:
    marks = [Mark(policy, shares[key]) for key, policy in POLICIES.items() if key in shares]
    return ChartRow(name, f"({prompts})", level, marks)


def _notes(categories: Categories | None) -> Iterator[str]:
    if categories is None:
        return
    for category, scores in categories.scores.items():
        for note in sorted({score.note for score in scores.values() if score.note}):
            names = [POLICY_NAME[policy] for policy, score in scores.items() if score.note == note]
            yield f"{category}: {', '.join(names)} {note} between a right and a wrong answer."
    if categories.note:
        yield categories.note
