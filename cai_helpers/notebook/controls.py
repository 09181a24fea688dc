"""The buttons and filters of the inspector, as ipywidgets 7.7.1 and 8 both know them. They do nothing by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import ipywidgets as widgets

from cai_helpers.inspection.rows import Facet, Filters, Order, Row, delta_bounds, values_of
from cai_helpers.notebook.markup import sendable
from cai_helpers.notebook.pair_html import DECISION_MEANING
from cai_helpers.schema import side_names

_LONGEST_LABEL = 40


def button(label: str, on_click: Callable[[], None], width: str = "auto") -> widgets.Button:
    """A button that calls `on_click` without arguments."""
    made = widgets.Button(description=label, layout=widgets.Layout(width=width))
    made.on_click(lambda _: on_click())
    return made


def text_field(hint: str, width: str) -> widgets.Text:
    """One line of text; its value changes when Enter is pressed or the field is left."""
    return widgets.Text(placeholder=hint, continuous_update=False, layout=widgets.Layout(width=width))


def line(*children: widgets.Widget) -> widgets.HBox:
    """Widgets side by side, on a second line where the window is narrow."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def switch(controls: Sequence[widgets.Widget], on: bool) -> None:
    for control in controls:
        control.disabled = not on


class FilterBar:
    """What is shown and in which order. `on_change` is called after every change by hand, and once by `reset`."""

    def __init__(self, rows: list[Row], on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._keys: frozenset[str] | None = None
        self.outcome = _facet(rows, "outcome", "any outcome")
        names = side_names({row.pair.outcome for row in rows})
        self.chosen = _facet(
            rows,
            "chosen",
            "either side chosen",
            {"base": f"{names.base} chosen", "revised": f"{names.revised} chosen"},
        )
        self.category = _facet(rows, "category", "any category")
        self.curation = _facet(rows, "curation", "kept or left out")
        self.decision = _dropdown(
            [("decided or not", ""), ("not decided", "undecided"), ("decided", "decided")]
            + [(meaning, name) for name, meaning in DECISION_MEANING.items()],
            "150px",
        )
        self.order = _dropdown(
            [(order if order != "file" else "file order", order) for order in get_args(Order)], "150px"
        )
        self.text = text_field("search the texts", "190px")
        self._bounds = delta_bounds(rows)
        self.delta = _delta_slider(self._bounds)
        self._reset = button("show all", self.reset)
        self._fields = [self.outcome, self.chosen, self.category, self.curation, self.decision, self.order, self.text]
        for field in [*self._fields, self.delta]:
            field.observe(self._changed, names="value")
        self.box = line(*self._fields, self.delta, self._reset)
        self.box.add_class("cai-panel")
        self.controls = [*self._fields, self.delta, self._reset]

    def filters(self) -> Filters:
        """As they stand now. The delta slider at full width lets rows without delta pass as well."""
        bounds = {}
        if self._bounds is not None:
            low, high = self.delta.value
            full = low <= self.delta.min and high >= self.delta.max
            bounds = {} if full else {"low": low, "high": high}
        fields = {name: getattr(self, name).value for name in ("outcome", "chosen", "category", "curation", "decision")}
        return Filters(**fields, **bounds, text=self.text.value.strip(), keys=self._keys)

    def reset(self, keys: frozenset[str] | None = None) -> None:
        """Show all rows in file order, or only those with these keys."""
        self._keys = keys
        on_change, self._on_change = self._on_change, lambda: None
        for field in (self.outcome, self.chosen, self.category, self.curation, self.decision, self.text):
            field.value = ""
        self.order.value = "file"
        self.delta.value = (self.delta.min, self.delta.max)
        self._on_change = on_change
        on_change()

    def _changed(self, _: object) -> None:
        self._on_change()


def _facet(rows: list[Row], field: Facet, every: str, names: dict[str, str] | None = None) -> widgets.Dropdown:
    options = [
        (f"{sendable((names or {}).get(value, value))[:_LONGEST_LABEL]} ({count:,})", value)
        for value, count in values_of(rows, field).items()
    ]
    return _dropdown([(every, ""), *options], "150px")


def _dropdown(options: list[tuple[str, str]], width: str) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, value=options[0][1], layout=widgets.Layout(width=width))


def _delta_slider(bounds: tuple[float, float] | None) -> widgets.FloatRangeSlider:
    low, high = bounds if bounds is not None and bounds[0] < bounds[1] else (0.0, 1.0)
    slider = widgets.FloatRangeSlider(
        value=(low, high),
        min=low,
        max=high,
        step=0.1,
        readout_format="+.1f",
        description="delta",
        continuous_update=False,
        layout=widgets.Layout(width="330px"),
    )
    slider.style.description_width = "40px"
    slider.disabled = bounds is None
    return slider
