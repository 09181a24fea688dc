"""One display that is drawn again and not shown again: no widget, so that it works in every front end and stays when saved."""

from __future__ import annotations

import math
import time
from typing import Any

from IPython.display import HTML, display

from cai_helpers.notebook.markup import Html
from cai_helpers.notebook.words import in_notebook_words

_EVERY = 2.0  # seconds between two drawings


class InPlace:
    """Shows nothing before the first page."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._at = -math.inf

    def due(self, last: bool = False) -> bool:
        """Whether to draw now; the last page always is. What was drawn a moment ago need not be made again."""
        return last or time.monotonic() - self._at >= _EVERY

    def show(self, page: Html) -> None:
        self._at = time.monotonic()
        shown = HTML(in_notebook_words(page))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)
