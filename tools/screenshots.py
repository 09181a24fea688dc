"""Pictures of the notebooks as a person sees them, run on the embedded models: light, dark, and on a phone.

    python tools/screenshots.py --out artifacts/screenshots            # all of them, some minutes
    python tools/screenshots.py --out artifacts/screenshots 02_generate_pairs 05_evaluate

Runs each notebook (preset smoke) into OUT/executed, once: what is there already is only rendered again. Widgets, such as the
inspector, are not in these pictures; tools/browser_page.py takes theirs. Needs the extra "browser", nbclient and nbconvert,
and the system's Chromium.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import nbformat
from browser_page import ROOT, browser_page

_LONGEST = 12_000  # pixels of a page that are taken; Chromium takes no more than 16,384


class Look(NamedTuple):
    name: str
    theme: str
    width: int


LOOKS = (Look("light", "light", 1180), Look("dark", "dark", 1180), Look("narrow", "light", 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("notebooks", nargs="*", help="names without .ipynb; default: all")
    arguments = parser.parse_args()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in paths:
        if not arguments.notebooks or path.stem in arguments.notebooks:
            executed = run(path, arguments.out / "executed")
            for look in LOOKS:
                print(take(executed, look, arguments.out), flush=True)


def run(path: Path, folder: Path) -> Path:
    """The notebook with its outputs; run_all has a workspace of its own, the others share one."""
    target = folder / path.name
    if target.exists():
        return target
    from nbclient import NotebookClient

    folder.mkdir(parents=True, exist_ok=True)
    workspace = folder / ("run_all" if path.stem == "run_all" else "run")
    os.environ |= {"CAI_PRESET": "smoke", "CAI_WORKSPACE": str(workspace.absolute()), "HF_HUB_OFFLINE": "1"}
    os.environ["PYTHONPATH"] = str(ROOT)
    notebook = nbformat.read(path, as_version=4)
    # in a folder of their own: what a cell writes beside itself does not land in the checkout
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    nbformat.write(notebook, target)
    return target


def take(executed: Path, look: Look, folder: Path) -> Path:
    """A picture of the whole notebook."""
    from nbconvert import HTMLExporter

    page_file = folder / f"{executed.stem}-{look.name}.html"
    body, _ = HTMLExporter(theme=look.theme).from_filename(str(executed))
    page_file.write_text(body, encoding="utf-8")
    picture = page_file.with_suffix(".png")
    with browser_page(look.width) as page:
        page.route("http*://**", lambda route: route.abort())  # scripts of other servers, which the outputs do not need
        page.emulate_media(color_scheme="dark" if look.theme == "dark" else "light")
        page.goto(page_file.resolve().as_uri(), wait_until="domcontentloaded")
        for frame in page.locator("iframe").all():  # what was never on the screen is not painted
            frame.scroll_into_view_if_needed()
            page.wait_for_timeout(500)
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(500)
        height = min(page.evaluate("document.documentElement.scrollHeight"), _LONGEST)
        page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": look.width, "height": height})
    return picture


if __name__ == "__main__":
    main()
