"""HTML that text cannot break out of. What is put into a piece of it is escaped, unless it is such a piece itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

from markupsafe import Markup

from cai_helpers.pages.template import whole_values

CELL = "text-align:left;vertical-align:top;padding:2px 14px 2px 0;white-space:pre-wrap;overflow-wrap:anywhere"

_NEVER_BROKEN = 22  # characters


class Html(Markup):
    """A literal piece of HTML: `Html("<b>{}</b>").format(text)`, `Html("").join(pieces)`. Never `Html(text)`.

    ruff's S704 refuses anything but a literal between the brackets.
    """

    @classmethod
    def escape(cls, value: Any, /) -> Self:
        """What format and join do to whatever is no HTML yet."""
        return super().escape(value if hasattr(value, "__html__") else sendable(str(value)))


def sendable(value: str) -> str:
    """Text that can travel to the browser: half a surrogate pair, which no JSON in UTF-8 can hold, becomes U+FFFD."""
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = (), style: str = CELL) -> Html:
    """Rows of text or HTML as a table, which scrolls by itself where it is too wide. style: CSS of every cell."""
    lines = [_table_row("th", heads, style)] if heads else []
    lines += [_table_row("td", cells, style) for cells in rows]
    return Html('<div style="overflow-x:auto"><table>{}</table></div>').format(Html("").join(lines))


def _table_row(tag: str, cells: Iterable[str], style: str) -> Html:
    cell = Html('<{tag} style="{style}{whole}">{text}</{tag}>')
    return Html("<tr>{}</tr>").format(
        Html("").join(
            cell.format(tag=tag, style=style, whole=_whole_style(text), text=_unbroken(text)) for text in cells
        )
    )


def _unbroken(text: str) -> str:
    """Text whose values stay whole; HTML as it is."""
    return text if hasattr(text, "__html__") else whole_values(sendable(text))


def _whole_style(text: str) -> str:
    """A name or a value is not broken, a sentence is."""
    short = len(text) <= _NEVER_BROKEN and "\n" not in text and not hasattr(text, "__html__")
    return ";white-space:nowrap" if short else ""
