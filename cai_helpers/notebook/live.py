"""Pairs and training as they happen: each in one place that is drawn again, not printed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_helpers.critique.constitution import principle_texts
from cai_helpers.critique.making import Making
from cai_helpers.critique.making import Watcher as MakingWatcher
from cai_helpers.errors import CaiError
from cai_helpers.notebook.curves import curve
from cai_helpers.notebook.in_place import InPlace
from cai_helpers.notebook.making_html import finished_html, making_html
from cai_helpers.notebook.markup import Html, table
from cai_helpers.planning.plan import HERE, plan_run
from cai_helpers.screen import duration
from cai_helpers.settings import Settings
from cai_helpers.training.watch.alarms import Row
from cai_helpers.training.watch.history import Progress, Watcher
from cai_helpers.training.watch.views import View
from cai_helpers.workspace import Workspace

_CELL = "text-align:left;padding:2px 14px 2px 0;white-space:nowrap"
_ALARM = "rgb(213,94,0)"
_BEFORE = ("download", "calibrate", "generate")  # stages of the plan that are over when the pairs are made


def generation(settings: Settings, workspace: Workspace) -> MakingWatcher:
    """What `generate_pairs(settings, workspace, watch=…)` shows its pairs with: the newest, what became of all, the time left.

    What the rest of the run will take is planned now, in some seconds, before a model is loaded.
    """
    place = InPlace()
    rest = None if workspace.manifest_of("generate").exists() else minutes_after(settings, workspace)
    own = settings.generate.constitution
    principles = principle_texts(Path(own) if own else None)

    def watch(making: Making) -> None:
        over = making.done >= making.total
        if place.due(last=over):
            place.show(finished_html(making) if over else making_html(making, principles, rest))

    return watch


def minutes_after(settings: Settings, workspace: Workspace) -> float | None:
    """Of the stages after generating, by the plan; None where it cannot be made: it is no reason to stop."""
    try:
        plan = plan_run(settings, workspace, card=HERE)
    except CaiError:
        return None
    return sum(minutes for stage, minutes in plan.minutes.items() if stage not in _BEFORE)


def training(workspace: Workspace) -> Watcher:
    """What `train_policy(settings, workspace, watch=…)` shows its progress with: figures, curves, alarms, the time left."""
    place = InPlace()

    def watch(progress: Progress) -> None:
        if place.due(last=progress.step >= progress.steps):
            place.show(render(progress, str(workspace.run_log.relative_to(workspace.root))))

    return watch


def render(progress: Progress, log: str) -> Html:
    """The page of one moment of a training."""
    training_rows = [row for row in progress.rows if "loss" in row]
    evaluations = [row for row in progress.rows if "eval_loss" in row]
    left = "done" if progress.step >= progress.steps else f"{duration(progress.seconds_left)} left"
    head = Html("<b>step {} of {}</b> · {} · every line is in {}").format(progress.step, progress.steps, left, log)
    alarm_line = Html('<p style="border-left:4px solid {};padding-left:8px;margin:4px 0">{}</p>')
    return Html("<div>{head}{alarms}{figures}<div>{curves}</div></div>").format(
        head=head,
        alarms=Html("").join(alarm_line.format(_ALARM, alarm.line()) for alarm in progress.alarms),
        figures=_figures(progress.view, training_rows, evaluations),
        curves=Html("").join(curve(panel, progress.rows) for panel in progress.view.panels),
    )


def _figures(view: View, training_rows: Sequence[Row], evaluations: Sequence[Row]) -> Html:
    if not training_rows:
        return Html("")
    last = training_rows[-1]
    latest = last | (evaluations[-1] if evaluations else {})
    shown = {
        figure.name: format(latest[figure.key], figure.form)
        for figure in view.figures
        if latest.get(figure.key) is not None
    }
    shown |= {"learning rate": f"{last['lr']:.1e}", "tokens/s": f"{last['tokens_per_s']:.0f}"}
    if last["memory_gib"] is not None:
        shown["GPU memory"] = f"{last['memory_gib']:.1f} GiB"
    return table([list(shown.values())], heads=list(shown), style=_CELL)
