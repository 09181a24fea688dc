"""Errors written for the person who gets them: what happened, and what to do next."""

from __future__ import annotations


class CaiError(Exception):
    """Something the user can mend. `what` happened; `todo` is the next action."""

    exit_code = 1

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(f"{what}\n{todo}")
        self.what = what
        self.todo = todo

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback: the two lines are all a reader of a notebook needs."""
        return [f"{type(self).__name__}: {self.what}", self.todo]


class TrainingRefused(CaiError):
    """The pairs are not worth training on. Not a crash: the report of what was done is written."""

    exit_code = 3


class NotEnoughPairs(TrainingRefused):
    """Too few usable pairs are left."""


class SettingsChanged(CaiError):
    """A stage was begun with other settings or inputs; going on would mix two runs."""


class GoldUnreachable(CaiError):
    """The gold pairs are on the Hub, which cannot be reached: nothing can be calibrated, everything else can go on."""
