"""Long tables with what matters first and the rest folded."""

from __future__ import annotations

from typing import Any

from cai_helpers.notebook.markup import Html, table
from cai_helpers.schema import StageReport
from cai_helpers.settings import PRESETS, Settings, load_settings

_SHORT = 9  # lines that are read at a glance: nothing of them is folded


def folded(summary: str, *body: Html) -> Html:
    """`body` behind a line that opens it; no script, so that it works wherever a notebook is shown."""
    return Html('<details style="margin:6px 0"><summary style="cursor:pointer">{}</summary>{}</details>').format(
        summary, Html("").join(body)
    )


def report_html(report: StageReport) -> Html:
    """The report of a stage."""
    lines = report.lines()
    heading = Html("<h4>{}</h4>").format(report.title())
    if len(lines) <= _SHORT:
        return heading + table(lines)
    first = report.first_lines()
    rest = [line for line in lines if line not in first]
    return heading + table(first) + folded(f"all figures ({len(rest)} more lines)", table(rest))


def settings_html(settings: Settings) -> Html:
    """What a run is about, what differs from its preset, and all the rest by section."""
    values = settings.model_dump(mode="json")
    sections = {name: value for name, value in values.items() if isinstance(value, dict)}
    changed = list(_changed(settings))
    yours = [("changed from the preset", "; ".join(changed))] if changed else []
    return table([*_about(settings), *yours]) + folded(
        f"all {sum(map(len, sections.values()))} settings, by section",
        *(
            folded(name, table((field, _text(value)) for field, value in section.items()))
            for name, section in sections.items()
        ),
    )


def _about(settings: Settings) -> list[tuple[str, str]]:
    models, prompts = settings.models, settings.prompts
    many = "all of them" if prompts.limit is None else f"{prompts.limit:,}"
    return [
        ("preset", settings.preset),
        ("model", models.base),
        ("Stage-2 adapter", models.adapter or "none: the model itself is where training starts"),
        ("scorer", "the model itself (AI feedback)" if settings.score.by == "ai_feedback" else models.reward.model),
        ("prompts", f"{many} of {prompts.source}; {prompts.eval_count} held out"),
        ("way of asking", settings.generate.protocol),
        ("training", f"{settings.train.method}, beta {settings.train.beta:g}, {settings.train.epochs:g} epochs"),
    ]


def _changed(settings: Settings) -> list[str]:
    if settings.preset not in PRESETS:
        return []
    theirs, ours = load_settings(settings.preset).model_dump(mode="json"), settings.model_dump(mode="json")
    return [
        f"{name}.{field} = {_text(value)}"
        for name, section in ours.items()
        if isinstance(section, dict)
        for field, value in section.items()
        if theirs[name][field] != value
    ]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items() if one not in (None, {}, []))
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
