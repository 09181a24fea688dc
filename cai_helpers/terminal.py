"""Text for a terminal: control characters are shown, not sent.

A prompt or a model's answer can hold escape sequences that clear the screen, retitle the window or write to the clipboard.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # C0, C1, text direction


def visible(text: str) -> str:
    """`text` with every control character but tab and line feed written as its escape: "\\x1b[2J"."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
