"""A template of assets/report → one self-contained HTML page that a person reads, keeps and prints.

Texts come from models and from strangers: they reach the page through jinja2's autoescape and no other way.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cai_helpers.store import write_atomically

_TEXT_SHOWN = 1500  # characters of one text
_NUMBER = r"(?:(?:below|above|at least|aim|[&<>≤≥]|&lt;|&gt;) )?[+−-]?\d[\d.,]*"
_UNIT = r"(?: (?:%|points|GiB|MB|min|s|h|nats|tokens/s)(?![\w]))?"
_VALUE = re.compile(rf"(?<![\w#.]){_NUMBER}{_UNIT}(?: \([+−-]?\d[^()<>]{{0,24}}\))?")


def write_page(path: Path, template: str, **values: Any) -> Path:
    page = render(template, **values)
    # a lone surrogate, which a model may emit, has no UTF-8 form
    write_atomically(path, page.encode("utf-8", "xmlcharrefreplace"))
    return path


def render(template: str, **values: Any) -> str:
    """The template filled in; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("cai_helpers", "assets/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["shorten"] = shorten
    environment.filters["whole"] = whole_values
    return environment.get_template(template).render(**values)


def whole_values(text: str) -> Markup:
    """Text in which no line ends inside a value: not in "61 % (52–69 %)", "+0.42 (+0.31 to +0.53)" or "14.5 GiB"."""
    whole = _VALUE.sub(_kept_whole, str(escape(text)))
    return Markup(whole)  # noqa: S704 (escaped)


def _kept_whole(value: re.Match[str]) -> str:
    return f'<span style="white-space:nowrap">{value[0]}</span>' if " " in value[0] else value[0]


def _data_uri(path: Path) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(path.read_bytes()).decode()


def shorten(text: str) -> str:
    """Its first 1,500 characters, and how many more there are."""
    if len(text) <= _TEXT_SHOWN:
        return text
    return f"{text[:_TEXT_SHOWN]} … ({len(text) - _TEXT_SHOWN:,} more characters)"
