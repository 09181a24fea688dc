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


class StoppedByHand(CaiError):
    """Ctrl-C, or a notebook's stop button. `what` says what is on disk."""

    exit_code = 130  # what shells expect of a command that SIGINT ended


class TrainingRefused(CaiError):
    """The pairs are not worth training on. Not a crash: the report of what was done is written."""

    exit_code = 3


class RoundsEnded(CaiError):
    """The round before is not worth going on from. Not a crash: its results stand."""

    exit_code = 3


class NotEnoughPairs(TrainingRefused):
    """Too few usable pairs are left."""


class SettingsChanged(CaiError):
    """A stage was begun with other settings or inputs; going on would mix two runs."""


class GoldUnreachable(CaiError):
    """The gold pairs are on the Hub, which cannot be reached: nothing can be calibrated, everything else can go on."""


class WorkspaceVanished(CaiError):
    """The folder of the run is not the one any more that was being written to: a drive was unmounted, or it was moved."""

    def __init__(self, root: str, reason: str, saved: str = "") -> None:
        super().__init__(
            f"{root} is not the folder any more that was being written to: {reason}. Nothing was written in its place.{saved}",
            "If it is on a drive, mount it again (in Colab: restart the runtime and run the notebook from the top) and run "
            "the same again: it goes on from what was saved. If you moved or deleted it yourself, start Python anew.",
        )
        self.root, self.reason = root, reason

    def saying(self, saved: str) -> WorkspaceVanished:
        """The same, with what was saved where."""
        return WorkspaceVanished(self.root, self.reason, f" {saved}")


class WorkspaceInUse(CaiError):
    """Another process writes to the workspace."""
