"""Is this archive what was packed, and does it say of itself what is in it?"""

from __future__ import annotations

from pathlib import Path

from cai_helpers.artifacts.archive import open_archive
from cai_helpers.artifacts.checks import examine
from cai_helpers.schema import StageReport


class VerifyReport(StageReport):
    path: str
    found: list[tuple[str, str]]

    def title(self) -> str:
        return f"Verified: {self.path}"

    def lines(self) -> list[tuple[str, str]]:
        return [(name, f"ok: {figure}") for name, figure in self.found]


def verify_archive(path: Path) -> VerifyReport:
    """Hashes, the adapter on its base where that is on this machine, the cards against the reports.

    Raises:
        Hostile: it holds what `cai export` never writes.
        CaiError: the first difference.
    """
    with open_archive(path) as archive:
        return VerifyReport(path=str(path), found=examine(archive))
