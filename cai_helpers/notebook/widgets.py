"""Show reports, pictures and pairs in a notebook. All text stays text: see `markup.Html`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from IPython.display import HTML, Image, display

from cai_helpers.analysis.statistics import Example
from cai_helpers.critique.constitution import load_constitution
from cai_helpers.notebook.blind_round import check_blind
from cai_helpers.notebook.chat import talk_to_both
from cai_helpers.notebook.inspector import inspect
from cai_helpers.notebook.markup import CELL, Html, table
from cai_helpers.pages.verdict_view import fragment
from cai_helpers.readiness.check import Check
from cai_helpers.schema import Messages, PreferenceRow, ScoredPair, StageReport, Target, side_names
from cai_helpers.settings import Settings
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace


def show(report: StageReport) -> None:
    """A report as a table."""
    _display(_heading(report.title()) + table(report.lines()))


def show_table(title: str, rows: list[dict[str, str]]) -> None:
    """Rows with the same heads as a table."""
    _display(_heading(title) + table((list(row.values()) for row in rows), heads=list(rows[0])))


def show_settings(settings: Settings) -> None:
    """Every setting, a section a line."""
    sections = settings.model_dump(mode="json")
    top = {name: value for name, value in sections.items() if not isinstance(value, dict)}
    rows = {"": top, **{name: value for name, value in sections.items() if isinstance(value, dict)}}
    _display(
        table(
            (Html("<b>{}</b>").format(name), " · ".join(f"{field} = {value}" for field, value in values.items()))
            for name, values in rows.items()
        )
    )


def show_constitution(settings: Settings) -> None:
    """The principles that this run judges by."""
    own = settings.generate.constitution
    constitution = load_constitution(Path(own) if own else None)
    _display(table((principle.id, principle.text) for principle in constitution.principles))


def show_checks(checks: Sequence[Check]) -> None:
    """The doctor's lines."""
    _display(
        table((f"{_sign(check.ok)} {check.name}", check.found, "" if check.ok else check.todo) for check in checks)
    )


def show_targets(gate: Sequence[Target]) -> None:
    """The gate as a table: what is met, and for the rest why and what to try."""
    rows = (
        (_sign(target.ok), target.name, target.aim, target.found, f"{target.cause} {target.remedy}".strip())
        for target in gate
    )
    _display(table(rows, heads=("", "target", "aim", "found", "why, and what to try")))


def show_examples(examples: Sequence[Example], count: int = 3) -> None:
    """Pairs of the analysis, statistics.worst or statistics.best, draft and revision side by side."""
    _display(Html("").join(map(_example_html, examples[:count])) or Html("<p>There are none.</p>"))


def show_picture(path: Path, width: int = 820) -> None:
    display(Image(filename=str(path), width=width))


def show_pairs(workspace: Workspace, count: int = 3, outcome: str | None = None) -> None:
    """The first scored pairs, draft and revision side by side; `outcome` picks one kind."""
    path = workspace.require(workspace.pairs, made_by="score")
    pairs = (ScoredPair.model_validate(row) for row in read_jsonl(path))
    chosen = list(islice((pair for pair in pairs if outcome in (None, pair.outcome)), count))
    nothing = Html("<p>There is no pair with outcome {}.</p>").format(outcome)
    _display(Html("").join(map(_pair_html, chosen)) or nothing)


def inspect_pairs(workspace: Workspace, file: Path | str | None = None) -> None:
    """All pairs one by one, with filters, and buttons to overrule the reward model; `file`: pairs from elsewhere."""
    inspect(workspace, file)


def blind_test(workspace: Workspace, rows: int = 20, file: Path | str | None = None) -> None:
    """Judge `rows` random pairs without seeing scores or which side is which, then see how often you agree."""
    inspect(workspace, file, blind_rows=rows)


def show_verdict(workspace: Workspace) -> None:
    """The verdict and its reasons, win rates and refusals of base, Stage 2 and Stage 3, the four categories."""
    display(HTML(fragment(workspace, "picture")))


def show_answers(workspace: Workspace) -> None:
    """Six held-out prompts with both answers: most improved, most worsened, at random."""
    display(HTML(fragment(workspace, "examples")))


def show_comparison(workspace: Workspace) -> None:
    """All figures of the evaluation, one column a kind of request."""
    display(HTML(fragment(workspace, "table")))


def blind_check(workspace: Workspace, prompts: int = 20) -> None:
    """Choose between Stage 2's and Stage 3's answers without knowing which is which; the report shows what you found."""
    check_blind(workspace, prompts)


def chat(settings: Settings, workspace: Workspace, shuffled: bool = False) -> None:
    """Ask both models, and say which answer is better: pairs of your own for the next training."""
    talk_to_both(settings, workspace, shuffled)


def show_rows(workspace: Workspace, count: int = 2) -> None:
    """The first training rows as DPO sees them."""
    path = workspace.require(workspace.train_rows, made_by="curate")
    rows = [PreferenceRow.model_validate(row) for row in islice(read_jsonl(path), count)]
    _display(Html("").join(map(_row_html, rows)))


def _display(page: Html) -> None:
    display(HTML(page))


def _heading(text: str) -> Html:
    return Html("<h4>{}</h4>").format(text)


def _sign(ok: bool) -> str:
    return "✅" if ok else "❗"


def _pair_html(pair: ScoredPair) -> Html:
    names = side_names({pair.outcome})
    heading = f"{pair.outcome}: {pair.reason}" if pair.reason else str(pair.outcome)
    return Html("<p><b>{}</b> · principles {}</p>{}").format(
        heading,
        ", ".join(pair.principle_ids),
        _sides_html(
            _prompt_html(pair.messages) if pair.messages else pair.prompt,
            (f"{names.base.capitalize()}, score {_number(pair.base_score)}", pair.base_response),
            (f"{names.revised.capitalize()}, score {_number(pair.revised_score)}", pair.revised_response),
        ),
    )


def _example_html(example: Example) -> Html:
    principles = ", ".join(example.principle_ids) or "none"
    heading = f"delta {example.delta:+.2f} · {example.category} · principles {principles}"
    return Html("<p><b>{}</b></p>{}").format(
        heading,
        _sides_html(
            example.prompt,
            (f"{example.sides.base.capitalize()}, score {example.base_score:+.2f}", example.base_response),
            (f"{example.sides.revised.capitalize()}, score {example.revised_score:+.2f}", example.revised_response),
        ),
    )


def _row_html(row: PreferenceRow) -> Html:
    rejected = "Rejected" if row.delta is None else f"Rejected (score {-row.delta:+.2f} against chosen)"
    return _sides_html(
        _prompt_html(row.prompt), ("Chosen", row.chosen[0]["content"]), (rejected, row.rejected[0]["content"])
    )


def _sides_html(prompt: str, *sides: tuple[str, str]) -> Html:
    """A prompt, and below it a column a side: (heading, text)."""
    head = Html('<th style="{};width:50%">{}</th>')
    cell = Html('<td style="{}">{}</td>')
    return Html(
        '<div style="white-space:pre-wrap">{prompt}</div>'
        '<table style="width:100%"><tr>{heads}</tr><tr>{texts}</tr></table><hr>'
    ).format(
        prompt=prompt,
        heads=Html("").join(head.format(CELL, name) for name, _ in sides),
        texts=Html("").join(cell.format(CELL, text) for _, text in sides),
    )


def _prompt_html(messages: Messages) -> Html:
    turn = Html("<i>{}</i>: {}")
    return Html("\n").join(turn.format(message["role"], message["content"]) for message in messages)


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:+.2f}"
