"""The house as README draws it is the house as it stands."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cai_helpers"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_a_room_is_one_line_of_the_readme_and_that_is_its_docstring(room):
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert docstring.count("\n") == 0
    assert f"{room.name}/".ljust(10) in README
    assert docstring in README


def test_a_room_makes_nothing_but_its_docstring_when_it_is_entered():
    for room in ROOMS:
        statements = ast.parse((room / "__init__.py").read_text(encoding="utf-8")).body
        assert len(statements) == 1, f"{room.name}/__init__.py does something"


def test_every_module_at_the_top_is_named_in_the_readme():
    tree = README[README.index("```\ncai_helpers/") :]
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if name not in tree} == set()
