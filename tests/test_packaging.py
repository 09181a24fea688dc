"""What is installed, from where, and what stays untouched."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COLAB_LIST = Path(os.environ.get("CAI_SHARED", ROOT.parent / "shared")) / "colab" / "pip-freeze.gpu.txt"
MODELS = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
HEAVY = MODELS | {"matplotlib", "pandas", "scipy", "IPython", "ipywidgets"}
# import name -> the line of requirements.txt that brings it, where they differ
BROUGHT_BY = {"yaml": "pyyaml", "typing_extensions": "pydantic", "markupsafe": "jinja2", "IPython": "ipywidgets"}

needs_colab_list = pytest.mark.skipif(
    not COLAB_LIST.exists(),
    reason="needs Colab's pip freeze: set CAI_SHARED to the folder with colab/pip-freeze.gpu.txt",
)


def lines_of(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def requirements() -> list[Requirement]:
    return [Requirement(line) for line in lines_of("requirements.txt")]


def pins_in(lines: list[str]) -> dict[str, str]:
    pinned = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pinned}


def unmet(pins: dict[str, str], exempt: set[str]) -> list[str]:
    wanted = [requirement for requirement in requirements() if requirement.name not in exempt]
    return [
        f"{requirement} (there: {pins.get(canonicalize_name(requirement.name), 'nothing')})"
        for requirement in wanted
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("cai_install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- importing ---


@pytest.mark.parametrize(
    ("module", "unwanted"), [("cai_helpers", HEAVY), ("cai_helpers.cli", HEAVY), ("cai_helpers.pipeline", MODELS)]
)
def test_importing_loads_no_heavy_library(module, unwanted):
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert unwanted & set(run.stdout.split()) == set()


def test_importing_the_package_takes_no_time():
    code = "import time; start = time.perf_counter(); import cai_helpers; print(time.perf_counter() - start)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(run.stdout) < 0.5


def test_every_library_that_is_imported_is_a_requirement():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    imported = set()
    for path in (ROOT / "cai_helpers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"cai_helpers", "google"}  # google.colab exists on Colab alone
    assert {name for name in others if canonicalize_name(BROUGHT_BY.get(name, name)) not in declared} == set()


# --- Colab ---


@needs_colab_list
def test_colab_has_everything_but_trl():
    """So that `pip install --no-deps trl cai-helpers` there is enough, and replaces nothing."""
    assert unmet(pins_in(COLAB_LIST.read_text(encoding="utf-8").splitlines()), exempt={"trl"}) == []


@needs_colab_list
def test_the_second_environment_has_colabs_versions():
    colab = pins_in(COLAB_LIST.read_text(encoding="utf-8").splitlines())
    ours = pins_in(lines_of("requirements-colab.txt"))
    assert {name: (version, colab.get(name)) for name, version in ours.items() if version != colab.get(name)} == {}


def test_the_second_environment_pins_every_requirement():
    assert unmet(pins_in(lines_of("requirements-colab.txt")), exempt={"trl", "torch"}) == []


@needs_colab_list
def test_trl_lacks_nothing_on_colab_and_finds_two_libraries_older_than_it_asks_for():
    """What a resolver would change, and --no-deps does not: `make test-colab` runs with the older ones."""
    wanted = [Requirement(line) for line in metadata.requires("trl") or []]
    pins = pins_in(COLAB_LIST.read_text(encoding="utf-8").splitlines())
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert [one.name for one in needed if canonicalize_name(one.name) not in pins] == []
    assert {one.name for one in needed if not one.specifier.contains(pins[canonicalize_name(one.name)])} == {
        "datasets", "pyarrow"
    }  # fmt: skip
    assert {"datasets", "pyarrow"} <= pins_in(lines_of("requirements-colab.txt")).keys()


def test_the_trl_that_colab_gets_is_one_we_accept(install):
    trl = next(requirement for requirement in requirements() if requirement.name == "trl")
    assert trl.specifier.contains(install.COLAB_ONLY.removeprefix("trl=="))


# --- the wheel, which is what Colab gets ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "cai_helpers", source / "cai_helpers", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_every_module_and_asset(wheel):
    package = ROOT / "cai_helpers"
    files = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert files - set(wheel.namelist()) == set()


def test_the_wheel_brings_the_cai_command_and_the_requirements(wheel):
    entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "cai = cai_helpers.__main__:main" in wheel.read(entry_points).decode()
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", wheel.read(metadata).decode(), flags=re.MULTILINE)
    assert {canonicalize_name(name) for name in required} == {canonicalize_name(r.name) for r in requirements()}


# --- which torch ---


@pytest.mark.parametrize(
    ("there", "gpu", "cpu_wheel", "installed"),
    [
        ("2.11.0+cu128", True, False, []),
        ("2.6.0", False, True, []),
        ("", True, True, [("install", "torch")]),
        ("", False, True, [("install", "torch==2.13.0+cpu")]),
        ("", False, False, [("install", "torch", "--index-url", "https://download.pytorch.org/whl/cpu")]),
    ],
    ids=["Colab", "torch is there", "a GPU without torch", "pip finds a CPU wheel", "a CPU and the internet"],
)
def test_torch_is_taken_as_found_else_fits_the_machine(install, monkeypatch, there, gpu, cpu_wheel, installed):
    commands = []
    monkeypatch.setattr(install, "torch_version", lambda environment: there)
    monkeypatch.setattr(install, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    monkeypatch.setattr(install, "pip_succeeds", lambda environment, *arguments: cpu_wheel)
    monkeypatch.setattr(install, "pip", lambda environment, *arguments: commands.append(arguments))
    install.install_torch(Path("environment"))
    assert commands == installed


def test_pip_is_held_to_the_torch_that_is_there(install, monkeypatch):
    seen = []

    def run(command, **_):
        if "--constraint" in command:
            seen.append(Path(command[command.index("--constraint") + 1]).read_text(encoding="utf-8"))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(install, "torch_version", lambda environment: "2.11.0+cu128")
    monkeypatch.setattr(install, "works", lambda *command: True)
    monkeypatch.setattr(install.subprocess, "run", run)
    install.pip(Path("environment"), "install", "trl")
    assert seen == ["torch==2.11.0+cu128\n"]


def test_an_old_python_is_told_which_one_is_needed():
    source = (ROOT / "tools" / "install.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))  # else the message below would be a SyntaxError
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.version_info = (3, 9, 2); exec({source!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "needs Python 3.11 or newer" in run.stderr
    assert "is 3.9." in run.stderr
