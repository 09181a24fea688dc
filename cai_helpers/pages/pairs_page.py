"""reports/pairs.html: the analysis of one file of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cai_helpers.analysis.diagnosis import Finding
from cai_helpers.analysis.statistics import Statistics
from cai_helpers.pages.template import write_page
from cai_helpers.schema import Target


def write_pairs_page(
    path: Path,
    source: str,
    lines: list[tuple[str, str]],
    statistics: Statistics,
    findings: list[Finding],
    gate: list[Target],
    plots: dict[str, Path],
    words: Mapping[str, str],
) -> Path:
    """The analysis of one file of pairs.

    lines: its figures as (what, figure); plots: from pair_pictures.save_pair_plots; words: of the principles, by id.
    """
    return write_page(
        path,
        "pairs.html.j2",
        title=f"Is this data good? {source}",
        source=source,
        lines=lines,
        statistics=statistics,
        findings=findings,
        gate=gate,
        plots=plots,
        words=words,
    )
