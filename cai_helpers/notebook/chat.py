"""Talk to Stage 2 and Stage 3 in a notebook: one box, two answers, and a click that says which one is better."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import display

from cai_helpers.errors import CaiError
from cai_helpers.inspection.talk import STAGE_NAME, WHAT_BECOMES_OF_IT, Exchange, Place, Talk
from cai_helpers.inspection.worddiff import word_diff
from cai_helpers.models.language import STAGE2, STAGE3
from cai_helpers.notebook import pair_html
from cai_helpers.notebook.controls import button, line, switch
from cai_helpers.notebook.markup import Html
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

_TITLE = Html(
    '<div class="cai cai-title"><b>Talk to both</b><span>The same question, the same seed, two answers</span></div>'
)


def talk_to_both(settings: Settings, workspace: Workspace, shuffled: bool = False) -> None:
    """Show the chat below the cell. The models are loaded at the first question.

    Raises:
        CaiError: nothing was trained yet.
    """
    display(Chat(Talk(settings, workspace, shuffled)).box)


class Chat:
    """One question and its two answers are on the screen. The methods are what the buttons do."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.question = widgets.Textarea(
            placeholder="Ask both models something", layout=widgets.Layout(width="100%", height="70px")
        )
        self.ask_button = self._button("ask both", self.ask)
        self.left_button = self._button("◀ this one is better", lambda: self.prefer("left"))
        self.right_button = self._button("this one is better ▶", lambda: self.prefer("right"))
        self.undo_button = self._button("take back", self.take_back)
        self.go_on_button = self._button("go on from the better one", self.go_on)
        self.new_button = self._button("new conversation", self.start_over)
        self.free_button = self._button("free the memory", self.free)
        self.shuffle = widgets.ToggleButton(
            value=talk.shuffled, description="shuffle sides", layout=widgets.Layout(width="auto")
        )
        self.shuffle.observe(lambda _: self._guarded(self._shuffle)(), names="value")
        self.page, self.status = widgets.HTML(), widgets.HTML()
        asking = line(self.ask_button, self.shuffle, self.new_button, self.free_button)
        choosing = line(self.left_button, self.right_button, self.undo_button, self.go_on_button)
        self.box = widgets.VBox(
            [
                widgets.HTML(pair_html.style_html()),
                *(widgets.HTML(_TITLE), self.question, asking, self.status, self.page, choosing),
                widgets.HTML(pair_html.message_html(WHAT_BECOMES_OF_IT)),
            ]
        )
        self.box.add_class("cai-inspector")
        self.box.add_class("cai-chat")
        self._show()

    def ask(self) -> None:
        """Both models answer what stands in the box."""
        switch([self.ask_button], False)
        self.say("Both models are answering …" if self.talk.loaded else "Loading both models …")
        try:
            self.talk.ask(self.question.value)
        finally:
            switch([self.ask_button], True)
        self.question.value = ""
        self._show()
        alike = self.talk.exchange is not None and self.talk.exchange.alike
        self.say("Both said the same, so neither is better. Ask something else." if alike else "Which one is better?")

    def prefer(self, place: Place) -> None:
        """The answer there is better; it is on disk when this returns."""
        self.talk.prefer(place)
        self._show()
        assert self.talk.exchange is not None  # prefer has looked
        self.say(f"Kept in pairs/overrides.jsonl: {STAGE_NAME[self.talk.exchange.stage(place)]} is better here.")

    def take_back(self) -> None:
        self.talk.take_back()
        self._show()
        self.say("Taken back.")

    def go_on(self) -> None:
        """The next question goes on from the better answer."""
        self.talk.go_on()
        self.say("The conversation goes on from that answer: ask the next question.")

    def start_over(self) -> None:
        self.talk.start_over()
        self._show()
        self.say("A new conversation.")

    def free(self) -> None:
        """Give the models' memory back, for the stages that come after."""
        self.talk.close()
        self.say("The models are out of memory; the next question loads them again.")

    def _shuffle(self) -> None:
        self.talk.shuffled = self.shuffle.value
        self.say(
            "Sides are shuffled from the next question on." if self.shuffle.value else "Stage 2 is on the left again."
        )

    def _show(self) -> None:
        exchange, preferred = self.talk.exchange, self.talk.preferred
        self.page.value = Html("") if exchange is None else exchange_html(exchange, preferred, self.talk.hides_names)
        switch([self.left_button, self.right_button], exchange is not None and not exchange.alike)
        switch([self.undo_button, self.go_on_button], preferred is not None)
        for place, one in (("left", self.left_button), ("right", self.right_button)):
            one.button_style = "primary" if preferred == place else ""

    def say(self, message: str, problem: bool = False) -> None:
        self.status.value = pair_html.message_html(message, problem)

    def _button(self, label: str, action: Callable[[], None]) -> widgets.Button:
        return button(label, self._guarded(action))

    def _guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        """`action`, whose errors are shown here: what a widget's handler raises is seen by nobody."""

        def run() -> None:
            try:
                action()
            except (CaiError, OSError) as error:
                self.say(str(error), problem=True)

        return run


def exchange_html(exchange: Exchange, preferred: Place | None, nameless: bool) -> Html:
    """The conversation, and both answers side by side; with names, the words that differ are marked."""
    diff = word_diff(exchange.answers[STAGE2].text, exchange.answers[STAGE3].text)
    marked = diff.legible and not nameless
    sides = Html("")
    for place in ("left", "right"):
        stage = exchange.stage(place)
        pieces, tag = (diff.after, "ins") if stage == STAGE3 else (diff.before, "del")
        text = pair_html.marked(pieces, tag) if marked and exchange.answers[stage].text else exchange.shown(place)
        name = place.capitalize() if nameless else STAGE_NAME[stage]
        sides += pair_html.side(name, text, [pair_html.yours(preferred == place)], preferred == place)
    return Html('<div class="cai">{}<div class="cai-sides">{}</div></div>').format(
        pair_html.turns_html(exchange.messages), sides
    )
