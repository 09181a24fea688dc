"""Look at pairs one by one, and overrule the reward model. Every decision is on disk when its button comes back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
from IPython.display import display

from cai_helpers.critique.constitution import principle_texts
from cai_helpers.curation.overrides import Decision, append_override, read_overrides
from cai_helpers.errors import CaiError
from cai_helpers.inspection.rows import CriticLog, Row, curation_is_behind, principles_file, read_rows, select
from cai_helpers.notebook import pair_html
from cai_helpers.notebook.blind_round import BlindRound
from cai_helpers.notebook.controls import FilterBar, button, line, switch, text_field
from cai_helpers.notebook.markup import sendable
from cai_helpers.schema import side_names
from cai_helpers.workspace import Workspace


def inspect(workspace: Workspace, file: Path | str | None = None, blind_rows: int | None = None) -> None:
    """Show the inspector below the cell.

    file: pairs from elsewhere, of which the eight columns suffice; decisions go to the workspace all the same.
    blind_rows: begin with a blind round over so many rows.

    Raises:
        CaiError: there are no pairs, or a row is malformed; the message names it.
    """
    inspector = Inspector(workspace, Path(file) if file is not None else None)
    if blind_rows is not None:
        inspector.open_blind(blind_rows)
    display(inspector.box)


class Inspector:
    """The rows of one file; one of them is on the screen. The methods are what the buttons do."""

    def __init__(self, workspace: Workspace, file: Path | None = None) -> None:
        self.workspace = workspace
        self.rows = read_rows(workspace, file)
        self.decisions = read_overrides(workspace.overrides)
        self.selected = list(range(len(self.rows)))  # places in rows, in the order of the screen
        self.position = 0  # in selected
        # in a file from elsewhere an id may stand for another principle
        self._principles, problem = _principles(workspace) if file is None else ({}, "")
        self._critic_log = CriticLog(workspace.traces)
        self._make_widgets((file or workspace.pairs).name)
        self._show_row()
        self.say(problem, problem=True) if problem else self._say_standing()

    def _make_widgets(self, name: str) -> None:
        self.filters = FilterBar(self.rows, self._guarded(self.filter))
        self.counter, self.page, self.critic, self.status = (widgets.HTML() for _ in range(4))
        self.blind_button = self._button("blind test", self.open_blind)
        self._pairs_view = [
            widgets.HTML(pair_html.title_html(name, len(self.rows))),
            self.filters.box,
            self._make_moving(),
            self._make_deciding(),
            self.status,
            self._make_editor(),
            self.page,
            self.critic,
        ]
        self._body = widgets.VBox(self._pairs_view)
        self.box = widgets.VBox([widgets.HTML(pair_html.style_html()), self._body])
        self.box.add_class("cai-inspector")

    def _make_moving(self) -> widgets.Widget:
        self.previous_button = self._button("◀ previous", self.previous)
        self.next_button = self._button("next ▶", self.next)
        self.random_button = self._button("random", self.random)
        self.jump = text_field("go to no.", "85px")
        self.jump.observe(lambda _: self._guarded(self.go_to)(), names="value")
        self.critic_toggle = widgets.ToggleButton(description="critic's words", layout=widgets.Layout(width="auto"))
        self.critic_toggle.observe(lambda _: self._guarded(self._show_critic)(), names="value")
        self._moving = [self.previous_button, self.next_button, self.random_button, self.jump]
        return line(*self._moving[:2], self.counter, *self._moving[2:], self.critic_toggle, self.blind_button)

    def _make_deciding(self) -> widgets.Widget:
        self.revision_button = self._button("revision is better", lambda: self.decide("revision"))
        self.draft_button = self._button("draft is better", lambda: self.decide("draft"))
        self.drop_button = self._button("drop", lambda: self.decide("drop"))
        self.edit_button = self._button("edit revision", self.edit)
        self.undo_button = self._button("undo", self.undo)
        self.note = text_field("note (kept with your decision)", "230px")
        self._deciding_buttons = [
            *(self.revision_button, self.draft_button, self.drop_button, self.edit_button, self.undo_button),
        ]
        deciding = line(*self._deciding_buttons, self.note)
        deciding.add_class("cai-deciding")
        return deciding

    def _make_editor(self) -> widgets.Widget:
        self.editor = widgets.Textarea(layout=widgets.Layout(width="100%", height="170px"))
        self.save_button = self._button("save my text", self.save_edit)
        self.cancel_button = self._button("cancel", self.cancel_edit)
        self.edit_box = widgets.VBox([self.editor, line(self.save_button, self.cancel_button)])
        self.edit_box.layout.display = "none"
        return self.edit_box

    def _button(self, label: str, action: Callable[[], None]) -> widgets.Button:
        return button(label, self._guarded(action))

    @property
    def row(self) -> Row | None:
        """The row on the screen; None if no row passes the filters."""
        return self.rows[self.selected[self.position]] if self.selected else None

    # --- moving ---

    def next(self) -> None:
        self._move(self.position + 1)

    def previous(self) -> None:
        self._move(self.position - 1)

    def random(self) -> None:
        """Another row than this one, if there is another; unseeded, for a person who wants to be surprised."""
        others = [place for place in range(len(self.selected)) if place != self.position]
        if others:
            self._move(random.choice(others))

    def go_to(self) -> None:
        """To the row whose number is typed, of those that pass the filters, from 1; beyond the ends, to the nearer end."""
        number, self.jump.value = self.jump.value, ""
        if not number:
            return  # the line above calls this again
        if not number.strip().isdecimal():
            return self.say(f"{number!r} is no row number: type one from 1 to {len(self.selected)}.", problem=True)
        self._move(int(number) - 1)

    def _move(self, position: int) -> None:
        self.position = max(0, min(position, len(self.selected) - 1))
        self._show_row()
        self._say_standing()

    def filter(self) -> None:
        """Show the rows that pass the filters now. The row on the screen stays, if it is among them."""
        before = self.row
        wanted = self.filters
        self.selected = select(self.rows, wanted.filters(), wanted.order.value, self.decisions)
        stays = before is not None and wanted.order.value == "file"
        places = (place for place, index in enumerate(self.selected) if stays and self.rows[index] is before)
        self.position = next(places, 0)
        self._show_row()
        self._say_standing()

    # --- deciding ---

    def decide(self, decision: Decision, edited: str | None = None) -> None:
        """Write a decision about the row on the screen; the last one about a row counts."""
        if self.row is None:
            return
        append_override(
            self.workspace.overrides, self.row.key, self.row.pair.id, decision, edited, self.note.value.strip()
        )
        self._after_decision("Decision taken back." if decision == "undo" else "Saved.")

    def undo(self) -> None:
        """Take back the last decision about this row; an earlier one about it stands again."""
        if self.row is None or self.row.key not in self.decisions:
            return
        self.note.value = ""
        self.decide("undo")

    def edit(self) -> None:
        """Open the revision, or what a person made of it before, for editing. Nothing else can be pressed meanwhile."""
        if self.row is None:
            return
        standing = self.decisions.get(self.row.key)
        text = standing.edited if standing is not None and standing.edited else self.row.pair.revised_response
        self.editor.value = sendable(text)
        self._edit_mode(True)

    def save_edit(self) -> None:
        """The text in the editor is the better side from now on, against the draft."""
        if self.row is None:
            return
        text, names = self.editor.value, side_names({self.row.pair.outcome})
        if not text.strip():
            return self.say("There is no text to save. Cancel, or drop the pair.", problem=True)
        if text.strip() == self.row.pair.base_response.strip():
            return self.say(
                f"This is the {names.base}, word for word: there is nothing to prefer. Change it.", problem=True
            )
        self._edit_mode(False)
        self.decide("edit", edited=text)

    def cancel_edit(self) -> None:
        self._edit_mode(False)
        self._show_row()

    def _edit_mode(self, on: bool) -> None:
        switch([*self._moving, *self._deciding_buttons, *self.filters.controls, self.blind_button], not on)
        self.edit_box.layout.display = "" if on else "none"

    def _after_decision(self, done: str) -> None:
        self.decisions = read_overrides(self.workspace.overrides)
        self._show_row()
        count = len({row.key for row in self.rows} & self.decisions.keys())
        plural = "decision stands" if count == 1 else "decisions stand"
        self.say(f"{done} {count} {plural} in pairs/overrides.jsonl. Curate again to apply them.")

    # --- the blind round ---

    def open_blind(self, count: int = 20) -> None:
        """Swap the pairs for a blind round; its end brings them back."""
        self.blind = BlindRound(self.workspace, self.rows, self._close_blind, count)
        self._body.children = [self.blind.box]

    def _close_blind(self, look_at: frozenset[str] | None) -> None:
        self.decisions = read_overrides(self.workspace.overrides)
        self._body.children = self._pairs_view
        self.filters.reset(look_at)
        if look_at:
            self.say("These are the rows you and the reward model disagree on. “show all” brings the others back.")

    # --- the screen ---

    def _show_row(self) -> None:
        row = self.row
        self.counter.value = pair_html.counter_html(self.position, len(self.selected), len(self.rows))
        if row is None:
            self.page.value = pair_html.message_html("No pair passes these filters. “show all” takes them away.")
        else:
            decision = self.decisions.get(row.key)
            self.page.value = pair_html.pair_html(row, decision, self._principles)
            self.note.value = sendable(decision.note) if decision is not None else ""
        self._switch_buttons()
        self._show_critic()

    def _switch_buttons(self) -> None:
        row, last = self.row, len(self.selected) - 1
        two_sides = row is not None and not row.pair.identical
        names = side_names({row.pair.outcome} if row is not None else ())
        self.revision_button.description = f"{names.revised} is better"
        self.draft_button.description = f"{names.base} is better"
        self.edit_button.description = f"edit {names.revised}"
        switch([self.previous_button], self.position > 0)
        switch([self.next_button], self.position < last)
        switch([self.random_button, self.jump], last > 0)
        switch([self.revision_button, self.draft_button], two_sides)
        switch([self.drop_button, self.edit_button], row is not None)
        standing = self.decisions.get(row.key) if row is not None else None
        switch([self.undo_button], standing is not None)
        for name, deciding in zip(("revision", "draft", "drop", "edit"), self._deciding_buttons, strict=False):
            deciding.button_style = "primary" if standing is not None and standing.decision == name else ""

    def _show_critic(self) -> None:
        row = self.row if self.critic_toggle.value else None
        self.critic.value = "" if row is None else pair_html.critic_html(row.pair, self._critic_log.of(row.pair))

    def _say_standing(self) -> None:
        behind = curation_is_behind(self.workspace) if self.decisions else False
        self.say("There are decisions that curation has not seen: curate again to apply them." if behind else "")

    def say(self, message: str, problem: bool = False) -> None:
        self.status.value = pair_html.message_html(message, problem)

    def _guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        """`action`, whose errors are shown here: what a widget's handler raises is seen by nobody."""

        def run() -> None:
            try:
                action()
            except (CaiError, OSError) as error:
                self.say(str(error), problem=True)

        return run


def _principles(workspace: Workspace) -> tuple[dict[str, str], str]:
    """Texts by id, and what kept them from being read, if anything did: pairs can be judged without."""
    try:
        return principle_texts(principles_file(workspace)), ""
    except CaiError as error:
        return {}, f"The texts of the principles cannot be shown. {error}"
