"""The live view: one display, redrawn at most every two seconds, nothing of it unescaped."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from cai_helpers.critique.making import Making
from cai_helpers.notebook import in_place, live
from cai_helpers.notebook.making_html import making_html, outcomes_html
from cai_helpers.schema import Prompt, Trace
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
    monkeypatch.setattr(in_place, "display", screen)
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
    monkeypatch.setattr(in_place.time, "monotonic", lambda: now[0])
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


def test_the_margin_of_kto_is_the_gap_between_its_rewards():
    rows = [{"step": 5, "rewards_chosen": 0.3, "rewards_rejected": -0.1}, {"step": 6, "rewards_chosen": 0.3}]
    (panel,) = [panel for panel in OF_ANSWERS.panels if panel.title == "Margin"]
    assert [panel.points(key, rows) for key in panel.lines] == [[(5, pytest.approx(0.4))], []]


def test_a_loss_that_begins_elsewhere_has_no_line_at_ln_2():
    dashed = [
        live.render(progress(5, [ROW | {"loss": loss}]), "log").count('stroke-dasharray="3 4"')
        for loss in (0.6931, 1.9)
    ]
    assert dashed == [4, 3]


def test_every_curve_has_axes_with_round_numbers_and_the_unit_that_they_count():
    rows = [ROW, ROW | {"step": 40, "loss": 0.41, "accuracy": 0.93}]
    page = live.render(progress(40, rows), "log")
    loss = ET.fromstring(page).find(".//svg")
    texts = ["".join(text.itertext()) for text in loss.iter("text")]
    assert texts[:3] == ["Loss DPO loss", "training", "held out"]
    assert texts[3:] == ["0.4", "0.5", "0.6", "0.7", "step 5", "40"]
    assert "background" not in page  # it takes the theme's: light or dark


def test_equal_values_have_an_axis_too():
    flat = live.render(progress(5, [ROW, ROW | {"step": 10}]), "log")
    assert "nan" not in flat
    ET.fromstring(flat)


# --- pairs ---


def made(count: int, total: int = 420) -> Making:
    trace = Trace(
        id="a",
        prompt=Prompt(
            id="a", messages=[{"role": "user", "content": "How do I <i>steal</i> it?"}], category="harmless", source="t"
        ),
        draft="Cut the lock.",
        draft_finish="stop",
        principle_ids=["HP001"],
        protocol="single/short",
        critic_outputs=["CRITIQUE: It helps a thief. REVISION: Cut the bread."],
        critique="It helps a thief.",
        revision="Cut the bread.",
        outcome="revised",
        reason="usable revision",
        tokens=20,
    )
    return Making(trace, {"revised": count - 3, "kept": 2, "meta_commentary": 1}, count, total, 60.0, 840.0, 1234.0)


def test_the_newest_pair_what_became_of_all_and_the_time_left_stand_in_one_well_formed_page():
    page = making_html(made(128), {"HP001": "Do not help a person to hurt someone."}, minutes_after=41.0)
    ET.fromstring(page)
    for part in (
        "128 of 420 pairs", "14 min left for the pairs", "about 55 min until the whole run is done", "1,234 tokens/s",
        "How do I &lt;i&gt;steal&lt;/i&gt; it?", "<del>lock</del>", "<ins>bread</ins>", "It helps a thief.",
        "Do not help a person to hurt someone.", "meta commentary",
    ):  # fmt: skip
        assert part in page
    texts = "".join(ET.fromstring(page).itertext())
    assert "HP001" not in texts


def test_each_outcome_is_a_bar_as_long_as_its_share():
    widths = [bar.get("style").split(";")[0] for bar in ET.fromstring(outcomes_html(made(128))).iter("i")]
    assert widths == ["width:100.0%", "width:1.6%", "width:0.8%"]


def test_without_a_plan_the_time_of_the_whole_run_is_not_made_up():
    assert "whole run" not in making_html(made(128), {}, None)


def test_pairs_are_drawn_in_place_and_the_last_leaves_one_line_and_its_counts(screen, monkeypatch, smoke, tmp_path):
    now = [100.0]
    monkeypatch.setattr(in_place.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live, "minutes_after", lambda settings, workspace: 5.0)
    watch = live.generation(smoke, Workspace(tmp_path))
    assert screen.shown == []  # before the first pair there is nothing to see
    for count, at in ((10, 100.0), (20, 101.0), (30, 102.5), (420, 102.6)):
        now[0] = at
        watch(made(count))
    assert len(screen.shown) == 1
    assert ["30 of 420 pairs" in screen.updates[0], len(screen.updates)] == [True, 2]
    assert "✓ 420 pairs in 60 s" in screen.updates[1]
    assert "Cut the" not in screen.updates[1]
