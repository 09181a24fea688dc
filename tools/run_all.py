"""Writes notebooks/run_all.ipynb from 00 to 06: the same cells in one runtime, with one install cell and one form.

What a later notebook shows a second time (the inspector, the report) stands once. A test holds the file to this.
"""

import copy
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
TARGET = NOTEBOOKS / "run_all.ipynb"
_OPENS = "#@title Install", "#@title The run"


def build() -> nbformat.NotebookNode:
    """run_all as it should be: its own title, then the cells of the others."""
    built = nbformat.read(TARGET, as_version=4)
    first, *others = sorted(NOTEBOOKS.glob("0*.ipynb"))
    cells = [built.cells[0], *_without_next(nbformat.read(first, as_version=4).cells[1:])]
    for path in others:
        title, *rest = nbformat.read(path, as_version=4).cells
        cells.append(_heading(title))
        cells += [cell for cell in _without_next(rest) if not cell.source.startswith(_OPENS)]
    built.cells = _once(cells)
    return built


def _heading(title: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook's title and what you get, without its badge, its runtime and its minutes."""
    heading = copy.deepcopy(title)
    lines = title.source.splitlines()
    heading.source = f"{lines[0]}\n\n{next(line for line in lines if line.startswith('**You get**')).strip()}"
    return heading


def _without_next(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells if not cell.source.startswith("**Next:**")]


def _once(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Without the calls that came before, nor what announces them."""
    kept: list[nbformat.NotebookNode] = []
    seen: set[str] = set()
    for cell in cells:
        if cell.cell_type == "code" and cell.source in seen:
            if kept[-1].cell_type == "markdown":
                kept.pop()
            continue
        seen.add(cell.source)
        kept.append(cell)
    return kept


def text() -> str:
    return nbformat.writes(build(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    print(f"written: {TARGET.name}")
