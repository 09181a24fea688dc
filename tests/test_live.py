"""The live view: one display, redrawn at most every two seconds, nothing of it unescaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from cai_helpers.notebook import live
from cai_helpers.training.watch.alarms import Alarm
from cai_helpers.training.watch.history import Progress
from cai_helpers.training.watch.views import OF_ANSWERS, OF_PAIRS, OF_REVISIONS, View, view_of
from cai_helpers.workspace import Workspace

ROW = {
    "step": 5, "epoch": 0.1, "seconds": 1.0, "loss": 0.65, "accuracy": 0.75, "margin": 0.1, "rewards_chosen": 0.06,
    "rewards_rejected": -0.04, "lr": 1e-5, "grad_norm": None, "tokens": 100.0, "tokens_per_s": 2766.0, "memory_gib": 5.9,
}  # fmt: skip
EVALUATION = {"step": 5, "eval_loss": 0.66, "eval_accuracy": 0.7}
ALARM = Alarm(name="<b>", step=5, threshold="t", evidence="<script>", advice="a & b")


class Display:
    """Stands for IPython's display: what was shown, and what it was updated to."""

    def __init__(self):
        self.shown, self.updates = [], []

    def __call__(self, page, display_id):
        self.shown.append(page.data)
        return self

    def update(self, page):
        self.updates.append(page.data)


@pytest.fixture
def screen(monkeypatch) -> Display:
    screen = Display()
    monkeypatch.setattr(live, "display", screen)
    return screen


def progress(step: int, rows: list[dict]) -> Progress:
    return Progress(rows, step, 20, 30.0, [], OF_PAIRS)


def test_figures_curves_and_alarms_stand_in_one_well_formed_page():
    page = live.render(Progress([ROW, EVALUATION, ROW | {"step": 10}], 10, 20, 30.0, [ALARM], OF_PAIRS), "logs/run.log")
    ET.fromstring(page)  # also: nothing of an alarm became a tag
    for figure in ("step 10 of 20", "30 s left", "2766", "5.9 GiB", "0.6500", "0.6600", "&lt;script&gt;", "a &amp; b"):
        assert figure in page
    assert page.count("<svg") == 4  # no row has log-probabilities or a gradient norm


def test_on_a_cpu_and_before_the_first_evaluation_nothing_is_made_up():
    page = live.render(progress(5, [ROW | {"memory_gib": None}]), "log")
    assert "GPU memory" not in page
    assert "held-out" not in page


def test_it_is_drawn_once_then_updated_and_not_more_often_than_every_two_seconds(screen, monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    watch = live.training(Workspace(tmp_path))
    for step, at in ((1, 100.0), (2, 101.0), (3, 102.5), (4, 103.0), (20, 103.1)):
        now[0] = at
        watch(progress(step, [ROW]))
    assert len(screen.shown) == 1
    assert [page.split("</b>")[0] for page in screen.updates] == ["<div><b>step 3 of 20", "<div><b>step 20 of 20"]


@pytest.mark.parametrize(
    ("view", "own", "figures", "curves"),
    [
        (
            OF_ANSWERS,
            {"kl": 0.25, "rewards_chosen": 0.06, "rewards_rejected": None},
            {"desirable", "+0.060", "0.25"},
            2,
        ),
        (OF_REVISIONS, {"token_accuracy": 0.75}, {"tokens right", "75%"}, 2),
    ],
    ids=["KTO", "supervised"],
)
def test_every_method_is_shown_by_what_it_measures(view: View, own: dict, figures: set[str], curves: int):
    shared = {key: ROW[key] for key in ("step", "loss", "lr", "tokens_per_s", "memory_gib")}
    rows = [shared | own, {"step": 5, "eval_loss": 0.66}]
    page = live.render(Progress(rows, 5, 20, 30.0, [], view), "log")
    ET.fromstring(page)
    assert all(figure in page for figure in figures | {"0.6500", "0.6600"})
    assert "accuracy" not in page
    assert "undesirable" not in page  # no such answer was in the batches of this row
    assert page.count("<svg") == curves
    assert view_of(rows) is view


def test_a_loss_that_begins_elsewhere_has_no_line_at_ln_2():
    dashed = [
        live.render(progress(5, [ROW | {"loss": loss}]), "log").count("stroke-dasharray") for loss in (0.6931, 1.9)
    ]
    assert dashed == [4, 3]
