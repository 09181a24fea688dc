"""`cai chat`: one question, two answers side by side, and which one is better, in the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai_helpers.errors import CaiError
from cai_helpers.inspection.talk import STAGE_NAME, WHAT_BECOMES_OF_IT, Exchange, Place, Talk

_PLACES: dict[str, Place] = {"1": "left", "2": "right"}
_HELP = (
    "Write a question. After the answers: 1 or 2, that one is better · u, take the choice back · + , go on from the better "
    "answer · n, a new conversation · q, quit"
)
_NARROW = 80  # columns; below that answers stand below each other


def talk_in_terminal(talk: Talk, read: Callable[[str], str] = input, console: Console | None = None) -> None:
    """Ask until `q`, the end of the input or Ctrl-C. A question that is a single command sign needs a space before it."""
    screen = console or Console(highlight=False)
    screen.print(Text(_HELP))
    screen.print(Text(WHAT_BECOMES_OF_IT, style="dim"))
    while (line := _next_line(talk, read)) is not None:
        try:
            said = _obey(talk, line, screen)
        except CaiError as error:
            said = f"{error.what} {error.todo}"
        if said:
            screen.print(Text(said))


def _next_line(talk: Talk, read: Callable[[str], str]) -> str | None:
    """What the person wrote; None: enough."""
    try:
        line = read("\n…and then? " if talk.history else "\nYou: ")
    except (EOFError, KeyboardInterrupt):
        return None
    return None if line == "q" else line


def _obey(talk: Talk, line: str, screen: Console) -> str:
    """Do what the line says; returns what is to be told."""
    if not line.strip():
        return ""
    if line in _PLACES:
        return _prefer(talk, _PLACES[line])
    if line == "u":
        if talk.preferred is None:
            return "There is no choice about these answers to take back."
        talk.take_back()
        return "Taken back."
    if line == "+":
        talk.go_on()
        return "The conversation goes on from that answer."
    if line == "n":
        talk.start_over()
        return "A new conversation."
    if not talk.loaded:
        screen.print(Text("Loading both models …", style="dim"))
    screen.print(_side_by_side(talk.ask(line), talk.shuffled, screen.width))
    return "Both said the same." if talk.exchange and talk.exchange.alike else ""


def _prefer(talk: Talk, place: Place) -> str:
    talk.prefer(place)
    assert talk.exchange is not None  # prefer has looked
    names = {number: STAGE_NAME[talk.exchange.stage(where)] for number, where in _PLACES.items()}
    told = f" 1 was {names['1']}, 2 was {names['2']}." if talk.shuffled else ""
    return f"Kept in pairs/overrides.jsonl: {STAGE_NAME[talk.exchange.stage(place)]} is better here.{told}"


def _side_by_side(exchange: Exchange, shuffled: bool, width: int) -> Table:
    """Text of a model is text: no markup in it is read, and no control character reaches the terminal."""
    heads = [
        number if shuffled else f"{number}  {STAGE_NAME[exchange.stage(place)]}" for number, place in _PLACES.items()
    ]
    texts = [Text(_printable(exchange.shown(place))) for place in _PLACES.values()]
    table = Table(width=width, show_lines=True)
    if width < _NARROW:
        table.add_column("", width=10)
        table.add_column("")
        for head, text in zip(heads, texts, strict=True):
            table.add_row(head, text)
        return table
    for head in heads:
        table.add_column(Text(head), ratio=1)
    table.add_row(*texts)
    return table


def _printable(text: str) -> str:
    """Without what could move the cursor or clear the screen; half a surrogate pair, which no terminal shows, is "?"."""
    kept = "".join(sign for sign in text if sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cf"))
    return kept.encode("utf-8", "replace").decode("utf-8")
