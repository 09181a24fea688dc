"""A notebook's widgets in a real browser: voila runs the cells, headless Chromium shows the page.

    python tools/browser_page.py --workspace artifacts/demo --out docs/inspector.png

takes the picture of the inspector for the README, with the pairs of that workspace. The browser tests use the rest.
Needs the extra "browser" and the system's Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
    *("--disable-quic", "--disable-component-update", "--disable-sync"),
]
SECONDS_TO_START = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="a run that has been scored and curated")
    parser.add_argument("--out", type=Path, required=True, help="a .png")
    parser.add_argument("--width", type=int, default=1180, help="of the window, in pixels")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    cell = inspector_cell(arguments.workspace)
    with served(cell, "dark" if arguments.dark else "light") as url, browser_page(url, arguments.width) as page:
        page.get_by_role("button", name="next ▶").wait_for()
        page.locator("select").nth(0).select_option(index=1)
        page.get_by_role("button", name="critic's words").click()
        page.locator(".cai-critic").wait_for()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        page.locator(".widget-vbox, .jupyter-widget-vbox").first.screenshot(path=arguments.out)
    print(arguments.out)


def inspector_cell(workspace: Path) -> str:
    return (
        "from cai_helpers.notebook import widgets\n"
        "from cai_helpers.workspace import Workspace\n"
        f"widgets.inspect_pairs(Workspace({str(workspace.absolute())!r}))"
    )


def chromium() -> str | None:
    """Path of the system's Chromium, if there is one."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


@contextlib.contextmanager
def served(cell: str, theme: str = "light") -> Iterator[str]:
    """The address of a page on this machine that shows what the notebook cell `cell` shows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), path)
        port = _free_port()
        command = [sys.executable, "-m", "voila", str(path), f"--port={port}", "--no-browser", f"--theme={theme}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
        with (Path(folder) / "voila.log").open("w+", encoding="utf-8") as log:
            server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            try:
                _wait_for(port, server, Path(log.name))
                yield f"http://127.0.0.1:{port}/"
            finally:
                server.terminate()
                server.wait(timeout=20)


@contextlib.contextmanager
def browser_page(url: str, width: int = 1180, height: int = 900) -> Iterator[Page]:
    """`url` in headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
            page.goto(url)
            yield page
        finally:
            browser.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"voila did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


if __name__ == "__main__":
    main()
