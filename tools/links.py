"""Writes the address of the repository into everything that names it: `make links REPO=owner/name`.

It stands in one place, `Repository` in pyproject.toml; the badges and install cells of the notebooks and the links of the
documents are written from it.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_NAMING = ("pyproject.toml", "*.md", "docs/*.md", "notebooks/*.ipynb")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def repository(root: Path = ROOT) -> str:
    """owner/name, as pyproject.toml has it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def write_links(new: str, root: Path = ROOT) -> list[Path]:
    """The files that named another repository and name `new` now."""
    old = repository(root)
    addresses = re.compile(rf"(github\.com/|colab\.research\.google\.com/github/){re.escape(old)}(?![\w-])")
    written = []
    for path in sorted(file for pattern in _NAMING for file in root.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        linked = addresses.sub(lambda found: found[1] + new, text)
        if linked != text:
            path.write_text(linked, encoding="utf-8")
            written.append(path)
    return written


def main() -> None:
    if len(sys.argv) != 2 or not _REPO.fullmatch(sys.argv[1]):
        sys.exit("Name the repository as owner/name: make links REPO=owner/name")
    for path in write_links(sys.argv[1]):
        print(f"links: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
