"""Judge two texts without knowing which is which: pairs against the reward model, or Stage 3's answers against Stage 2's."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import display

from cai_helpers.curation.overrides import append_override, read_overrides
from cai_helpers.errors import CaiError
from cai_helpers.inspection.blind import (
    Judgement,
    Shown,
    Verdict,
    agreement,
    append_judgement,
    draw_rows,
    read_judgements,
    side_on_the_left,
)
from cai_helpers.inspection.blind_answers import read_answer_rows
from cai_helpers.inspection.rows import Row
from cai_helpers.notebook import pair_html
from cai_helpers.notebook.blind_tasks import Task, answers_task, pairs_task
from cai_helpers.notebook.controls import button, line
from cai_helpers.notebook.markup import Html
from cai_helpers.workspace import Workspace

_SEED = 0  # of the draw and of the shuffled sides: whoever opens a file again goes on where they stopped
_TITLE = Html('<div class="cai cai-title"><b>{}</b><span>Which answer is better?</span></div>')


def check_blind(workspace: Workspace, prompts: int = 20) -> None:
    """Show the blind check of Stage 3 against Stage 2 below the cell.

    Raises:
        CaiError: nothing was evaluated yet, or a line of evaluation/blind.jsonl is no judgement.
    """
    rows = read_answer_rows(workspace)
    blind = BlindRound(workspace, rows, lambda _: None, prompts, answers_task(workspace, rows))
    box = widgets.VBox([widgets.HTML(pair_html.style_html()), blind.box])
    box.add_class("cai-inspector")
    display(box)


class BlindRound:
    """One round: how many rows, the rows one by one, the result. The methods are what the buttons do.

    on_close: called at the end, with the keys of rows to look at, or None.
    """

    def __init__(
        self,
        workspace: Workspace,
        rows: list[Row],
        on_close: Callable[[frozenset[str] | None], None],
        count: int = 20,
        task: Task | None = None,
    ) -> None:
        self.task = task or pairs_task(workspace, rows)
        self.workspace = workspace
        self.rows = rows
        self._on_close = on_close
        self.drawn: list[int] = []  # places in rows
        self.position = 0
        self.judged: dict[str, Judgement] = {}  # of this round, by key
        self.count = widgets.BoundedIntText(value=count, min=1, max=10_000, layout=widgets.Layout(width="90px"))
        self.page, self.status = widgets.HTML(), widgets.HTML()
        self._buttons = line()
        title = widgets.HTML(_TITLE.format(self.task.title))
        self.box = widgets.VBox([title, self._buttons, self.status, self.page])
        self.introduce()

    def introduce(self) -> None:
        """The first page."""
        self.page.value = pair_html.message_html(self.task.introduction)
        self.status.value = ""
        rows = widgets.HTML(Html('<div class="cai">{} to judge</div>').format(self.task.what))
        self._offer(self.count, rows, self._button("start", self.start), *self._way_back())

    def start(self) -> None:
        """Draw the rows and show the first."""
        done = {judgement.key for judgement in read_judgements(self.task.file)}
        self.drawn = draw_rows(self.rows, self.count.value, _SEED, done, self.task.fit)
        self.position, self.judged = 0, {}
        if not self.drawn:
            return self.say(self.task.nothing_left)
        left, right = self._button("◀ left is better", self.left), self._button("right is better ▶", self.right)
        skip, back = self._button(self.task.neither, self.skip), self._button("go back one", self.back)
        self._offer(left, right, skip, back, self._button("stop here", self.finish))
        self._show_row()

    def left(self) -> None:
        self._judge(self.left_side)

    def right(self) -> None:
        self._judge("draft" if self.left_side == "revision" else "revision")

    def skip(self) -> None:
        self._judge("skip")

    def back(self) -> None:
        """To the row before, to judge it again; the later judgement counts."""
        self.position = max(0, self.position - 1)
        self._show_row()

    @property
    def row(self) -> Row:
        return self.rows[self.drawn[self.position]]

    @property
    def left_side(self) -> Shown:
        return side_on_the_left(self.row.key, _SEED)

    def _judge(self, better: Verdict) -> None:
        if self.position >= len(self.drawn):
            return  # a second click that arrived after the last row
        self.judged[self.row.key] = append_judgement(self.task.file, self.row, better, self.left_side)
        self.position += 1
        if self.position == len(self.drawn):
            self.finish()
        else:
            self._show_row()

    def _show_row(self) -> None:
        self.status.value = pair_html.counter_html(self.position, len(self.drawn), len(self.drawn))
        self.page.value = pair_html.blind_html(self.row.pair, self.left_side)

    def finish(self) -> None:
        """The result of what was judged so far."""
        self.position = len(self.drawn)
        this_round, all_rounds = self.judged.values(), read_judgements(self.task.file)
        self.page.value = self.task.result(this_round, all_rounds)
        self.status.value = pair_html.message_html(f"Your judgements are in {self.task.named}.")
        again = self._button("another round", self.introduce)
        self._offer(*(self._what_to_do_with_pairs() if self.task.of_pairs else []), again, *self._way_back())

    def _what_to_do_with_pairs(self) -> list[widgets.Widget]:
        self.this_round = agreement(self.judged.values(), self.rows)
        self.keep_button = self._button("keep them as decisions", self.keep)
        self.look_button = self._button("look at the rows we disagree on", self.look)
        self.keep_button.disabled = self.this_round.judged == 0
        self.look_button.disabled = not self.this_round.disagreed
        return [self.keep_button, self.look_button]

    def _way_back(self) -> list[widgets.Widget]:
        return [self._button("back to the pairs", self.close)] if self.task.of_pairs else []

    def keep(self) -> None:
        """Let this round's judgements overrule the reward model. A pair that has a decision keeps the one it has."""
        standing = read_overrides(self.workspace.overrides)
        kept = 0
        for judgement in self.judged.values():
            better = judgement.better
            if better == "skip" or judgement.key in standing:
                continue
            append_override(self.workspace.overrides, judgement.key, judgement.id, better, note="blind test")
            kept += 1
        self.keep_button.disabled = True
        self.say(f"{kept} judgements are decisions now, in pairs/overrides.jsonl. Curate again to apply them.")

    def look(self) -> None:
        self._on_close(frozenset(self.this_round.disagreed))

    def close(self) -> None:
        self._on_close(None)

    def say(self, message: str, problem: bool = False) -> None:
        self.status.value = pair_html.message_html(message, problem)

    def _offer(self, *controls: widgets.Widget) -> None:
        self._buttons.children = controls

    def _button(self, label: str, action: Callable[[], None]) -> widgets.Button:
        def run() -> None:
            try:
                action()
            except (CaiError, OSError) as error:
                self.say(str(error), problem=True)

        return button(label, run)
