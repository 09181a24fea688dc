"""Show reports, pictures and pairs in a notebook. All text is escaped: model output cannot inject HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from IPython.display import HTML, Image, display

from cai_helpers.analysis.statistics import Example
from cai_helpers.critique.constitution import load_constitution
from cai_helpers.doctor import Check
from cai_helpers.notebook.inspector import inspect
from cai_helpers.schema import Messages, PreferenceRow, ScoredPair, StageReport, Target
from cai_helpers.settings import Settings
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

_CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0;white-space:pre-wrap"


def show(report: StageReport) -> None:
    """A report as a table."""
    rows = "".join(
        f'<tr><td style="{_CELL}">{html.escape(name)}</td><td style="{_CELL}">{html.escape(value)}</td></tr>'
        for name, value in report.lines()
    )
    display(HTML(f"<h4>{html.escape(report.title())}</h4><table>{rows}</table>"))


def show_table(title: str, rows: list[dict[str, str]]) -> None:
    """Rows with the same heads as a table."""
    heads = "".join(f'<th style="{_CELL}">{html.escape(head)}</th>' for head in rows[0])
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{html.escape(value)}</td>' for value in row.values()) + "</tr>"
        for row in rows
    )
    display(HTML(f"<h4>{html.escape(title)}</h4><table><tr>{heads}</tr>{body}</table>"))


def show_settings(settings: Settings) -> None:
    """Every setting, a section a line."""
    sections = settings.model_dump(mode="json")
    top = {name: value for name, value in sections.items() if not isinstance(value, dict)}
    rows = {"": top, **{name: value for name, value in sections.items() if isinstance(value, dict)}}
    body = "".join(
        f'<tr><td style="{_CELL}"><b>{name}</b></td><td style="{_CELL}">'
        + html.escape(" · ".join(f"{field} = {value}" for field, value in values.items()))
        + "</td></tr>"
        for name, values in rows.items()
    )
    display(HTML(f"<table>{body}</table>"))


def show_constitution(settings: Settings) -> None:
    """The principles that this run judges by."""
    own = settings.generate.constitution
    constitution = load_constitution(Path(own) if own else None)
    rows = "".join(
        f'<tr><td style="{_CELL}">{html.escape(principle.id)}</td><td style="{_CELL}">{html.escape(principle.text)}</td></tr>'
        for principle in constitution.principles
    )
    display(HTML(f"<table>{rows}</table>"))


def show_checks(checks: Sequence[Check]) -> None:
    """The doctor's lines."""
    rows = "".join(
        f'<tr><td style="{_CELL}">{"✅" if check.ok else "❗"} {html.escape(check.name)}</td>'
        f'<td style="{_CELL}">{html.escape(check.found)}</td>'
        f'<td style="{_CELL}">{"" if check.ok else html.escape(check.todo)}</td></tr>'
        for check in checks
    )
    display(HTML(f"<table>{rows}</table>"))


def show_targets(gate: Sequence[Target]) -> None:
    """The gate as a table: what is met, and for the rest why and what to try."""
    heads = "".join(
        f'<th style="{_CELL}">{head}</th>' for head in ("", "target", "aim", "found", "why, and what to try")
    )
    rows = "".join(
        f'<tr><td style="{_CELL}">{"✅" if one.ok else "❗"}</td>'
        + "".join(
            f'<td style="{_CELL}">{html.escape(text)}</td>'
            for text in (one.name, one.aim, one.found, f"{one.cause} {one.remedy}".strip())
        )
        + "</tr>"
        for one in gate
    )
    display(HTML(f"<table><tr>{heads}</tr>{rows}</table>"))


def show_examples(examples: Sequence[Example], count: int = 3) -> None:
    """Pairs of the analysis, statistics.worst or statistics.best, draft and revision side by side."""
    display(HTML("".join(map(_example_html, examples[:count])) or "<p>There are none.</p>"))


def show_picture(path: Path, width: int = 820) -> None:
    display(Image(filename=str(path), width=width))


def show_pairs(workspace: Workspace, count: int = 3, outcome: str | None = None) -> None:
    """The first scored pairs, draft and revision side by side; `outcome` picks one kind."""
    path = workspace.require(workspace.pairs, made_by="score")
    pairs = (ScoredPair.model_validate(row) for row in read_jsonl(path))
    chosen = list(islice((pair for pair in pairs if outcome in (None, pair.outcome)), count))
    display(
        HTML("".join(map(_pair_html, chosen)) or f"<p>There is no pair with outcome {html.escape(str(outcome))}.</p>")
    )


def inspect_pairs(workspace: Workspace, file: Path | str | None = None) -> None:
    """All pairs one by one, with filters, and buttons to overrule the reward model; `file`: pairs from elsewhere."""
    inspect(workspace, file)


def blind_test(workspace: Workspace, rows: int = 20, file: Path | str | None = None) -> None:
    """Judge `rows` random pairs without seeing scores or which side is which, then see how often you agree."""
    inspect(workspace, file, blind_rows=rows)


def show_rows(workspace: Workspace, count: int = 2) -> None:
    """The first training rows as DPO sees them."""
    path = workspace.require(workspace.train_rows, made_by="curate")
    rows = [PreferenceRow.model_validate(row) for row in islice(read_jsonl(path), count)]
    display(HTML("".join(_row_html(row) for row in rows)))


def _pair_html(pair: ScoredPair) -> str:
    heading = f"{pair.outcome}: {pair.reason}" if pair.reason else str(pair.outcome)
    return (
        f"<p><b>{html.escape(heading)}</b> · principles {html.escape(', '.join(pair.principle_ids))}</p>"
        + _sides_html(
            _prompt_html(pair.messages) if pair.messages else html.escape(pair.prompt),
            (f"Draft, score {_number(pair.base_score)}", pair.base_response),
            (f"Revision, score {_number(pair.revised_score)}", pair.revised_response),
        )
    )


def _example_html(one: Example) -> str:
    heading = f"delta {one.delta:+.2f} · {one.category} · principles {', '.join(one.principle_ids) or 'none'}"
    return f"<p><b>{html.escape(heading)}</b></p>" + _sides_html(
        html.escape(one.prompt),
        (f"Draft, score {one.base_score:+.2f}", one.base_response),
        (f"Revision, score {one.revised_score:+.2f}", one.revised_response),
    )


def _row_html(row: PreferenceRow) -> str:
    return _sides_html(
        _prompt_html(row.prompt),
        ("Chosen", row.chosen[0]["content"]),
        (
            "Rejected" if row.delta is None else f"Rejected (score {-row.delta:+.2f} against chosen)",
            row.rejected[0]["content"],
        ),
    )


def _sides_html(prompt: str, left: tuple[str, str], right: tuple[str, str]) -> str:
    heads = "".join(f'<th style="{_CELL};width:50%">{html.escape(head)}</th>' for head, _ in (left, right))
    texts = "".join(f'<td style="{_CELL}">{html.escape(text)}</td>' for _, text in (left, right))
    return f'<div style="white-space:pre-wrap">{prompt}</div><table style="width:100%"><tr>{heads}</tr><tr>{texts}</tr></table><hr>'


def _prompt_html(messages: Messages) -> str:
    return "\n".join(f"<i>{message['role']}</i>: {html.escape(message['content'])}" for message in messages)


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:+.2f}"
