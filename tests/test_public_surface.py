"""What a user of the package imports: everything that is exported is there and documented, and nothing else is public."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cai_helpers

PUBLIC = [name for name in cai_helpers.__all__ if name != "__version__"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_exported_is_there_and_documented(name):
    exported = getattr(cai_helpers, name)
    assert exported.__name__ == name
    assert exported.__module__.startswith("cai_helpers.")
    own = exported.__doc__ or ""
    assert len(own.split()) >= 4, f"{name} has no docstring of its own"


def test_nothing_else_is_public():
    public = {name for name in vars(cai_helpers) if not name.startswith("_")}
    modules = {name for name in public if isinstance(vars(cai_helpers)[name], ModuleType)}
    assert {name for name in modules if not vars(cai_helpers)[name].__name__.startswith("cai_helpers.")} == set()
    assert public - modules <= set(PUBLIC)
    assert set(cai_helpers.__all__) <= set(dir(cai_helpers))


def test_every_stage_is_exported():
    stages = {path.stem for path in (ROOT / "cai_helpers" / "stages").glob("*.py")} - {"__init__"}
    homes = {getattr(cai_helpers, name).__module__ for name in PUBLIC if inspect.isfunction(getattr(cai_helpers, name))}
    assert {f"cai_helpers.stages.{stage}" for stage in stages} <= homes


def test_what_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'train_ppo'"):
        cai_helpers.train_ppo  # noqa: B018
    with pytest.raises(ImportError, match="train_ppo"):
        exec("from cai_helpers import train_ppo")


def test_the_lines_of_the_docstring_import_no_heavy_library():
    code = "import sys; from cai_helpers import *; print(*(m for m in ('torch', 'transformers', 'trl') if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_the_readme_names_the_surface():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in PUBLIC if f"`{name}`" not in readme] == []
