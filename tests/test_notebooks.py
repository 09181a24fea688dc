"""The form of the notebooks. That they run is nbval's part: `make test`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
MOST_LINES = 20
BUILDING_CODE = re.compile(r"^\s*(async |await )?(def|class|for|while|try|with|lambda)\b", flags=re.MULTILINE)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_the_eight_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == [
        "00_setup",
        "01_download_models",
        "02_generate_pairs",
        "03_analyze_pairs",
        "04_train_dpo",
        "05_evaluate",
        "06_export_artifacts",
        "run_all",
    ]


@each_notebook
def test_a_notebook_is_valid(path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))


@each_notebook
def test_a_notebook_is_committed_without_what_a_run_leaves(path):
    assert "widgets" not in nbformat.read(path, as_version=4).metadata
    assert [cell.source for cell in cells(path, "code") if cell.outputs or cell.execution_count] == []


@each_notebook
def test_cells_are_short_and_call_the_package(path):
    sources = [cell.source for cell in cells(path, "code")]
    assert [source for source in sources if len(source.splitlines()) > MOST_LINES] == []
    assert [source for source in sources if BUILDING_CODE.search(source)] == []


@each_notebook
def test_a_notebook_opens_on_its_title_and_its_own_colab_badge(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    github = REPOSITORY.removeprefix("https://")
    link = f"https://colab.research.google.com/{github.replace('.com', '', 1)}/blob/main/notebooks/{path.name}"
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    assert re.findall(r"\[!\[[^]]*]\(([^)]*)\)]\(([^)]*)\)", first.source) == [(badge, link)]


@each_notebook
def test_colab_opens_a_notebook_on_a_t4(path):
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata["accelerator"] == "GPU"
    assert metadata["colab"]["gpuType"] == "T4"
    assert metadata["kernelspec"]["name"] == "python3"


@each_notebook
def test_the_install_cell_leaves_colabs_libraries_alone(path):
    installs = re.findall(r"[%!]\s*pip install.*", "\n".join(cell.source for cell in cells(path, "code")))
    assert installs == [f'%pip install -q --no-deps "trl==1.16.0" "cai-helpers @ git+{REPOSITORY}"']


@each_notebook
def test_no_text_of_a_notebook_asks_for_a_shell(path):
    text = "\n".join(cell.source for kind in ("markdown", "code") for cell in cells(path, kind))
    assert re.findall(r"`cai [a-z]+[^`]*`|(?<![\w-])--(?!no-deps)[a-z][\w-]*", text) == []


@pytest.mark.parametrize("name", ["03_analyze_pairs", "05_evaluate", "06_export_artifacts"])
def test_the_report_and_the_inspector_are_shown_where_pairs_and_results_are_read(name):
    code = "\n".join(cell.source for cell in cells(ROOT / "notebooks" / f"{name}.ipynb", "code"))
    assert re.search(r"widgets\.show_(report|page)\(", code)
    assert "widgets.inspect_pairs(workspace" in code


def test_pairs_and_training_are_watched_while_they_are_made():
    code = "\n".join(cell.source for path in NOTEBOOKS for cell in cells(path, "code"))
    assert "watch=live.generation(settings, workspace)" in code
    assert "watch=live.training(workspace)" in code


def test_every_file_that_notebook_06_names_is_in_the_zip(small_run):
    from zipfile import ZipFile

    path = ROOT / "notebooks" / "06_export_artifacts.ipynb"
    text = "\n".join(cell.source for kind in ("markdown", "code") for cell in cells(path, kind))
    named = {name for name in re.findall(r'[`"]([\w./]+\.\w+)[`"]', text) if not name.endswith((".zip", ".com"))}
    assert {"USE.md", "DATASET.md", "README.md", "manifest.json", "reports/report.html"} <= named
    with ZipFile(small_run.zip) as archive:
        packed = {name.removeprefix("stage3_constitutional/") for name in archive.namelist()}
    assert {name for name in named if name not in packed} == {"export.merged"} & named
