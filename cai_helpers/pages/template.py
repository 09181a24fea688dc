"""A template of assets/report → one self-contained HTML page that a person reads, keeps and prints.

Texts come from models and from strangers: they reach the page through jinja2's autoescape and no other way.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cai_helpers.store import write_atomically

_TEXT_SHOWN = 1500  # characters of one text


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
    return environment.get_template(template).render(**values)


def _data_uri(path: Path) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(path.read_bytes()).decode()


def shorten(text: str) -> str:
    """Its first 1,500 characters, and how many more there are."""
    if len(text) <= _TEXT_SHOWN:
        return text
    return f"{text[:_TEXT_SHOWN]} … ({len(text) - _TEXT_SHOWN:,} more characters)"
