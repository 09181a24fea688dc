"""Pictures of the notebooks as a person sees them, run on the embedded models: light, dark, and on a phone.

    python tools/screenshots.py --out artifacts/screenshots            # all of them, some minutes
    python tools/screenshots.py --out artifacts/screenshots 02_generate_pairs 05_evaluate

    python tools/screenshots.py --out artifacts/screenshots --gallery docs      # also the four of the README

Runs each notebook (preset smoke) into OUT/executed, once: what is there already is only rendered again. Widgets, such as the
inspector, are not in these pictures; tools/browser_page.py takes theirs. Needs the extra "browser", nbclient and nbconvert,
and the system's Chromium.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import nbformat
from browser_page import ROOT, browser_page
from PIL import Image

from cai_helpers.critique.constitution import principle_texts
from cai_helpers.critique.making import Making
from cai_helpers.inspection.worddiff import word_diff
from cai_helpers.notebook import live
from cai_helpers.notebook.making_html import making_html
from cai_helpers.settings import load_settings
from cai_helpers.stages.generate import generate_pairs
from cai_helpers.store import read_jsonl
from cai_helpers.training.watch.history import Progress
from cai_helpers.training.watch.views import view_of
from cai_helpers.workspace import Workspace

_TALLEST = 722  # pixels of a picture in the README
_LONGEST = 12_000  # pixels of a page that are taken; Chromium takes no more than 16,384


class Look(NamedTuple):
    name: str
    theme: str
    width: int


LOOKS = (Look("light", "light", 1180), Look("dark", "dark", 1180), Look("narrow", "light", 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--gallery", type=Path, help="where to put the pictures of the README")
    parser.add_argument("notebooks", nargs="*", help="names without .ipynb; default: all")
    arguments = parser.parse_args()
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in paths:
        if not arguments.notebooks or path.stem in arguments.notebooks:
            executed = run(path, arguments.out / "executed")
            for look in LOOKS:
                print(take(executed, look, arguments.out), flush=True)
    if arguments.gallery:
        for picture in gallery(arguments.out, arguments.gallery):
            print(picture, flush=True)


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
        height = min(page.evaluate("document.documentElement.scrollHeight"), _LONGEST)
        page.set_viewport_size({"width": look.width, "height": height})  # what is not on the screen is not painted
        page.wait_for_timeout(1500)
        page.screenshot(path=picture)
    return picture


def gallery(out: Path, folder: Path) -> list[Path]:
    """The pictures of the README: pairs under way, a failure on a phone, curves, the verdict."""
    pairs, training = out / "making.html", out / "training.html"
    pairs.write_text(_page(_pairs_under_way()), encoding="utf-8")
    training.write_text(_page(_curves(Workspace(out / "executed" / "run")), dark=True), encoding="utf-8")
    light, dark, phone = LOOKS[0]._replace(width=1000), LOOKS[1]._replace(width=1000), LOOKS[2]
    shots = {
        "notebook_pairs": (pairs, light, "body > div"),
        "notebook_training": (training, dark, "body > div"),
        "notebook_verdict": (out / "05_evaluate-light.html", light, ".cv:has(.cv-card)"),
        "notebook_phone": (out / "02_generate_pairs-narrow.html", phone, ".cai:has(.cai-sides) >> nth=-1"),
    }
    return [_part(file, look, selector, folder / f"{name}.png") for name, (file, look, selector) in shots.items()]


def _pairs_under_way() -> str:
    """What the cell that makes pairs shows in the middle of a run, made just now: a pair whose changes are marked."""
    settings = load_settings("smoke", ["generate.protocol=single/short"])
    seen: list[Making] = []
    with tempfile.TemporaryDirectory() as folder:
        rest = live.minutes_after(settings, Workspace(Path(folder) / "run"))
        generate_pairs(settings, Workspace(Path(folder) / "run"), watch=seen.append)
    middle = [one for one in seen if 0.4 < one.done / one.total < 0.8 and _is_marked(one)]
    return making_html(middle[0], principle_texts(), rest)


def _curves(workspace: Workspace) -> str:
    """What the cell that trains leaves."""
    rows = list(read_jsonl(workspace.history))
    steps = rows[-1]["step"]
    return live.render(Progress(rows, steps, steps, 0.0, [], view_of(rows)), "logs/run.log")


def _page(piece: str, dark: bool = False) -> str:
    style = "font-family:system-ui,'DejaVu Sans',sans-serif;font-size:14px;margin:14px"
    return f'<!doctype html><body style="{style}{";background:#111;color:#eee" if dark else ""}">{piece}</body>'


def _is_marked(making: Making) -> bool:
    trace = making.newest
    return trace is not None and trace.outcome == "revised" and word_diff(trace.draft, trace.revision).legible


def _part(page_file: Path, look: Look, selector: str, picture: Path) -> Path:
    """A picture of the first element that the selector finds, with a margin of its own ground."""
    with browser_page(look.width) as page:
        page.route("http*://**", lambda route: route.abort())
        page.emulate_media(color_scheme="dark" if look.theme == "dark" else "light")
        page.goto(page_file.resolve().as_uri(), wait_until="domcontentloaded")
        part = page.locator(selector).first
        part.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        box = part.bounding_box()
        assert box is not None  # it was scrolled to
        top = page.evaluate("window.scrollY") + box["y"]
        clip = {"x": max(box["x"] - 10, 0), "y": max(top - 10, 0), "width": box["width"] + 20}
        height = min(box["height"] + 20, _TALLEST)
        page.screenshot(path=picture, full_page=True, clip={**clip, "height": height})
    Image.open(picture).convert("RGB").quantize(128).save(picture, optimize=True)  # few colours: a third of the bytes
    return picture


if __name__ == "__main__":
    main()
