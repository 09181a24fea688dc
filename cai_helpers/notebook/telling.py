"""How an error ends a notebook's cell: what happened and what to do next, in two lines, in one place for all cells."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from cai_helpers import failures
from cai_helpers.errors import CaiError, StoppedByHand
from cai_helpers.notebook.words import in_notebook_words

_NAMES = ("settings", "workspace", "colab", "widgets", "session")  # what the cells above give to those below
_PACKAGE = "cai_helpers"


def install() -> None:
    """From now on this kernel shows errors so. Without IPython it does nothing; a second call changes nothing."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((Exception, KeyboardInterrupt), _show)


def _show(
    shell: Any, kind: type[BaseException], error: BaseException, trace: TracebackType, tb_offset: Any = None
) -> None:
    """IPython's handler. What is not ours to explain keeps its traceback."""
    told = told_in_notebook(error, trace)
    if told is not None:
        vars(error)["_render_traceback_"] = lambda *_: lines_of(told)  # IPython asks the error how to show it
        error.__traceback__ = None  # its frames would hold models in the GPU's memory
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def lines_of(told: CaiError) -> list[str]:
    """The two lines, in a notebook's words."""
    head = "" if isinstance(told, StoppedByHand) else f"{type(told).__name__}: "
    return [f"{head}{in_notebook_words(told.what)}", in_notebook_words(told.todo)]


def told_in_notebook(error: BaseException, trace: TracebackType | None) -> CaiError | None:
    """The error to show; None: it came from the reader's own code, or is a fault of this package."""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    modules = [frame.f_globals.get("__name__", "") for frame in frames]
    if isinstance(error, KeyboardInterrupt):
        # the body of a module that is no cell's; Python leaves its own frames of an import out
        return _interrupted(
            any(
                one.f_code.co_name == "<module>" and name != "__main__"
                for one, name in zip(frames, modules, strict=True)
            )
        )
    if isinstance(error, CaiError):
        return error
    if isinstance(error, NameError) and error.name in _NAMES and not _in_package(modules):
        return CaiError(
            f"{error.name} is not there: a cell above was not run, or it ended in an error.",
            "Run the cells from the top (Runtime → Run all); what is done already is not done again.",
        )
    return failures.told(error) if _in_package(modules) else None


def _in_package(modules: list[str]) -> bool:
    return any(name.partition(".")[0] == _PACKAGE for name in modules)


def _interrupted(importing: bool) -> CaiError:
    if importing:
        return StoppedByHand(
            "Stopped by hand while libraries were loading; Python may have kept halves of them.",
            "Restart the runtime (Runtime → Restart session), then run the notebook from the top. Nothing on disk is lost.",
        )
    return StoppedByHand(
        "Stopped by hand. What is on disk stays.",
        "Run this cell again to go on: rows, checkpoints and results that are there are not made again.",
    )
