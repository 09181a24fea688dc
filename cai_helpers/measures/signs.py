"""Plain words that are looked for before an expression, because every match of it holds one of them: far quicker."""

from __future__ import annotations


def stands_in(text: str, signs: tuple[str, ...]) -> bool:
    """Whether one of the signs stands in `text`."""
    for sign in signs:  # noqa: SIM110  (`any` takes half as long again, and this is most of the time of a large file)
        if sign in text:
            return True
    return False
