"""Show reports, pictures and pairs in a notebook. All text stays text: see `markup.Html`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from IPython.display import HTML, Image, display

from cai_helpers.analysis.statistics import Example
from cai_helpers.critique.constitution import load_constitution, principle_texts
from cai_helpers.inspection.rows import Row, principles_file
from cai_helpers.notebook.blind_round import check_blind
from cai_helpers.notebook.chat import talk_to_both
from cai_helpers.notebook.folded import folded, report_html, settings_html
from cai_helpers.notebook.frame import frame_html
from cai_helpers.notebook.inspector import inspect
from cai_helpers.notebook.markup import Html, table
from cai_helpers.notebook.pair_html import pair_html, side, style_html, turns_html
from cai_helpers.notebook.words import in_notebook_words
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.pages.verdict_view import fragment
from cai_helpers.readiness.check import Check
from cai_helpers.schema import PreferenceRow, ScoredPair, StageReport, Target
from cai_helpers.settings import Settings
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace


def show(report: StageReport) -> None:
    """A report: what matters first, the rest folded."""
    _display(report_html(report))


def show_table(title: str, rows: list[dict[str, str]], note: str = "") -> None:
    """Rows with the same heads as a table, and what they come to."""
    below = Html("<p><b>{}</b></p>").format(note) if note else Html("")
    _display(_heading(title) + table((list(row.values()) for row in rows), heads=list(rows[0])) + below)


def show_settings(settings: Settings) -> None:
    """What the run is about and what was changed; every setting is folded below."""
    _display(settings_html(settings))


def show_constitution(settings: Settings) -> None:
    """The principles that this run judges by."""
    own = settings.generate.constitution
    constitution = load_constitution(Path(own) if own else None)
    by_category = {
        category.title: [principle for principle in constitution.principles if principle.category == name]
        for name, category in constitution.categories.items()
    }
    _display(
        table(
            (title if place == 0 else "", Html('<span title="{}">{}</span>').format(principle.id, principle.text))
            for title, principles in by_category.items()
            for place, principle in enumerate(principles)
        )
    )


def show_checks(checks: Sequence[Check]) -> None:
    """The doctor's lines: what is to be mended, and the rest folded."""
    rows = [(f"{_sign(check.ok)} {check.name}", check.found, "" if check.ok else check.todo) for check in checks]
    missing = [row for row, check in zip(rows, checks, strict=True) if not check.ok]
    told = f"all {len(rows)} checks hold" if not missing else f"{len(missing)} of {len(rows)} checks ask for something"
    _display(
        Html("<p><b>{} {}</b></p>").format(_sign(not missing), told)
        + (table(missing) if missing else Html(""))
        + folded("every check", table(rows))
    )


def show_targets(gate: Sequence[Target]) -> None:
    """The gate as a table: what is met, and for the rest why and what to try."""
    rows = (
        (_sign(target.ok), target.name, target.aim, target.found, f"{target.cause} {target.remedy}".strip())
        for target in gate
    )
    _display(table(rows, heads=("", "target", "aim", "found", "why, and what to try")))


def show_examples(examples: Sequence[Example], workspace: Workspace, count: int = 3) -> None:
    """Pairs of the analysis, statistics.worst or statistics.best, draft and revision side by side, all turns of the prompt."""
    words = principle_texts(principles_file(workspace))
    by_id = {row["id"]: row for row in read_jsonl(workspace.pairs)} if workspace.pairs.exists() else {}
    pairs = [
        ScoredPair.model_validate(by_id.get(example.id) or {**example.model_dump(), "chosen": None})
        for example in examples[:count]
    ]
    shown = Html("").join(_pair_html(pair, words) for pair in pairs)
    _display(style_html() + shown if shown else Html("<p>There are none.</p>"))


def show_picture(path: Path, width: int = 820) -> None:
    display(Image(filename=str(path), width=width))


def show_pairs(workspace: Workspace, count: int = 3, outcome: str | None = None) -> None:
    """The first scored pairs, draft and revision side by side; `outcome` picks one kind."""
    path = workspace.require(workspace.pairs, made_by="score")
    pairs = (ScoredPair.model_validate(row) for row in read_jsonl(path))
    chosen = list(islice((pair for pair in pairs if outcome in (None, pair.outcome)), count))
    nothing = Html("<p>There is no pair with outcome {}.</p>").format(outcome)
    words = principle_texts(principles_file(workspace))
    shown = Html("").join(_pair_html(pair, words) for pair in chosen)
    _display(style_html() + shown if shown else nothing)


def inspect_pairs(workspace: Workspace, file: Path | str | None = None) -> None:
    """All pairs one by one, with filters, and buttons to overrule the reward model; `file`: pairs from elsewhere."""
    inspect(workspace, file)


def blind_test(workspace: Workspace, rows: int = 20, file: Path | str | None = None) -> None:
    """Judge `rows` random pairs without seeing scores or which side is which, then see how often you agree."""
    inspect(workspace, file, blind_rows=rows)


def show_verdict(workspace: Workspace) -> None:
    """The verdict and its reasons, win rates and refusals of base, Stage 2 and Stage 3, the four categories."""
    display(HTML(in_notebook_words(fragment(workspace, "picture"))))


def show_answers(workspace: Workspace) -> None:
    """Six held-out prompts with both answers: most improved, most worsened, at random."""
    display(HTML(in_notebook_words(fragment(workspace, "examples"))))


def show_comparison(workspace: Workspace) -> None:
    """All figures of the evaluation, one column a kind of request."""
    display(HTML(in_notebook_words(fragment(workspace, "table"))))


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
    _display(style_html() + Html("").join(map(_row_html, rows)))


def show_report(settings: Settings, workspace: Workspace, height: int = 620) -> Path:
    """Write the report of the run as it stands, and show it."""
    page = write_run_report(settings, workspace)
    show_page(page, height)
    return page


def show_page(page: Path, height: int = 620) -> None:
    """A page inside the notebook, in a frame of its own: nothing in it can touch the notebook."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consider using IPython.display.IFrame")  # which needs an address
        display(HTML(frame_html(page, height)))


def _display(page: Html) -> None:
    display(HTML(in_notebook_words(page)))


def _heading(text: str) -> Html:
    return Html("<h4>{}</h4>").format(text)


def _sign(ok: bool) -> str:
    return "✔" if ok else "✘"


def _pair_html(pair: ScoredPair, words: Mapping[str, str]) -> Html:
    return pair_html(Row(pair, "", None), None, words)


def _row_html(row: PreferenceRow) -> Html:
    rejected = "" if row.delta is None else f"reward {row.delta:.2f} below the chosen one"
    sides = side("Chosen", row.chosen[0]["content"], []) + side(
        "Rejected", row.rejected[0]["content"], [], told=rejected
    )
    return Html('<div class="cai" style="margin-bottom:18px">{}<div class="cai-sides">{}</div></div>').format(
        turns_html(row.prompt), sides
    )
