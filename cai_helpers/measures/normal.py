"""The form in which two texts count as the same."""

from __future__ import annotations

import unicodedata


def normalised(text: str) -> str:
    """`text` with case, white space and Unicode form (NFKC) levelled."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
