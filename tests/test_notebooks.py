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


# --- the install cell ---


def install_cell() -> str:
    [source] = {cells(path, "code")[0].source for path in NOTEBOOKS}  # one text in all of them
    return source


class Installing:
    """The install cell, run where its shell line only notes what it would do."""

    def __init__(self, monkeypatch, folder: Path, installed: set[str], uv: bool = True) -> None:
        self.commands: list[str] = []
        self.there = set(installed)
        monkeypatch.chdir(folder)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in self.there else None)
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if uv else None)

    def run(self, works: bool = True) -> None:
        source = re.sub(r"^( *)!(.*)$", r"\1shell(f'\2')", install_cell(), flags=re.M)

        def shell(command: str) -> None:
            self.commands.append(command)
            self.there |= {"cai_helpers", "trl"} if works else set()

        exec(source, {"shell": shell})


def checkout(folder: Path) -> Path:
    (folder / "cai_helpers").mkdir(parents=True)
    (folder / "cai_helpers" / "__init__.py").touch()
    return folder


def test_the_install_cell_adds_trl_and_this_package_and_touches_nothing_else(monkeypatch, tmp_path):
    cell = Installing(monkeypatch, tmp_path, installed=set())
    cell.run()
    [command] = cell.commands
    assert command.startswith("uv pip install --python ")
    assert command.split(" --no-deps ")[1] == f'"trl==1.16.0" "git+{REPOSITORY}"'
    assert "-U" not in command
    assert "--upgrade" not in command


def test_the_install_cell_does_nothing_where_both_are_there_and_ends_in_one_line(monkeypatch, tmp_path, capsys):
    cell = Installing(monkeypatch, tmp_path, installed={"cai_helpers", "trl"})
    cell.run()
    cell.run()
    assert cell.commands == []
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("✅ cai-helpers ")


def test_the_install_cell_takes_pip_where_there_is_no_uv(monkeypatch, tmp_path):
    cell = Installing(monkeypatch, tmp_path, installed=set(), uv=False)
    cell.run()
    assert " -m pip install -q --no-deps " in cell.commands[0]


def test_the_install_cell_prefers_the_checkout_it_stands_in_then_an_uploaded_zip_or_folder(monkeypatch, tmp_path):
    (tmp_path / "content").mkdir()
    zipped = tmp_path / "content" / "cai-helpers-main.zip"
    zipped.touch()
    cell = Installing(monkeypatch, tmp_path / "content", installed=set())
    cell.run()
    zipped.unlink()
    unpacked = checkout(tmp_path / "content" / "cai-helpers-main")
    cell.there = set()
    cell.run()
    checkout(tmp_path / "mine")
    (tmp_path / "mine" / "notebooks").mkdir()
    in_checkout = Installing(monkeypatch, tmp_path / "mine" / "notebooks", installed=set())
    in_checkout.run()
    assert cell.commands[0].endswith(f'"{zipped}"')
    assert cell.commands[1].endswith(f'"{unpacked}"')
    assert in_checkout.commands[0].endswith(f'"{tmp_path / "mine"}"')


def test_an_installation_that_failed_ends_the_cell_in_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(AssertionError, match="was not installed: the lines above say why. Then run this again"):
        Installing(monkeypatch, tmp_path, installed=set()).run(works=False)


# --- written by tools ---


def test_run_all_makes_the_calls_of_the_other_notebooks():
    import run_all

    assert run_all.TARGET.read_text(encoding="utf-8") == run_all.text(), "run `make run-all`"
    one = [cell.source for cell in cells(run_all.TARGET, "code")]
    rest = [cell.source for path in NOTEBOOKS[:-1] for cell in cells(path, "code")]
    left_out = {source.splitlines()[0] for source in rest if source not in one}
    assert left_out == {'#@title The run {display-mode: "form"}'}  # the form of 00 is there
    assert sum("widgets.show_report(" in source for source in one) == 1
    assert any("compare_protocols(" in source for source in one)


def test_the_address_of_the_repository_stands_in_one_place(tmp_path):
    import shutil

    import links

    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "notebooks"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written = links.write_links("me/a-fork", tmp_path)
    assert {path.name for path in NOTEBOOKS} | {"README.md", "pyproject.toml"} <= {path.name for path in written}
    old = links.repository(ROOT)
    assert [path.name for path in before if f"{old}/" in path.read_text("utf-8", "replace").replace("blob/", "/")] == []
    install = nbformat.read(tmp_path / "notebooks" / "00_setup.ipynb", as_version=4).cells[1].source
    assert '"git+https://github.com/me/a-fork"' in install
    links.write_links(old, tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_every_file_that_notebook_06_names_is_in_the_zip(small_run):
    from zipfile import ZipFile

    path = ROOT / "notebooks" / "06_export_artifacts.ipynb"
    text = "\n".join(cell.source for kind in ("markdown", "code") for cell in cells(path, kind))
    named = {name for name in re.findall(r'[`"]([\w./]+\.\w+)[`"]', text) if not name.endswith((".zip", ".com"))}
    assert {"USE.md", "DATASET.md", "README.md", "manifest.json", "reports/report.html"} <= named
    with ZipFile(small_run.zip) as archive:
        packed = {name.removeprefix("stage3_constitutional/") for name in archive.namelist()}
    assert {name for name in named if name not in packed} == {"export.merged"} & named
