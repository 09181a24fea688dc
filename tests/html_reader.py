"""What a browser makes of a piece of HTML: its texts, its elements, the values of its attributes."""

from __future__ import annotations

import html.parser


class HtmlReader(html.parser.HTMLParser):
    """Reads a page at once; an attribute that runs a script fails the test."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[str] = []
        self.attribute_values: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")], self.get_starttag_text()
        self.attribute_values += [value for _, value in attributes if value is not None]

    def handle_data(self, data):
        self.texts.append(data)


def text_of(page: str) -> str:
    return "".join(texts_of(page))


def texts_of(page: str) -> list[str]:
    return HtmlReader(page).texts


def elements_of(page: str) -> list[str]:
    return HtmlReader(page).elements
