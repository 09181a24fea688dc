"""What a notebook cell shows, in a real browser: headless Chromium on this machine.

    python tools/browser_page.py --workspace artifacts/demo --out docs/inspector.png

takes the picture of the inspector for the README, with the pairs of that workspace. The browser tests use the rest.
voila shows the cell; with ipywidgets 7, which is Colab's, JupyterLab 3 does. Needs the extra "browser" and the
system's Chromium (Debian: apt-get install chromium); no browser is downloaded.
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
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ROOT = Path(__file__).resolve().parent.parent
INSPECTOR = ".cai-inspector"
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
    *("--disable-quic", "--disable-component-update", "--disable-sync"),
]
_SECONDS_TO_START = 60
_LAB_OPTIONS = ["--ServerApp.token=", "--ServerApp.password=", "--allow-root"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="a run that has been scored and curated")
    parser.add_argument("--out", type=Path, required=True, help="a .png")
    parser.add_argument("--width", type=int, default=1120, help="of the window, in pixels")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with site(dark=arguments.dark) as here, browser_page(arguments.width) as page:
        box = here.show(page, inspector_cell(arguments.workspace))
        box.locator("select").nth(0).select_option(index=1)
        box.get_by_role("button", name="critic's words").click()
        box.locator(".cai-critic").wait_for()
        page.mouse.move(0, 0)
        box.screenshot(path=arguments.out)
    print(arguments.out)


def inspector_cell(workspace: Path, call: str = "inspect_pairs(workspace)") -> str:
    return (
        "from cai_helpers.notebook import widgets\n"
        "from cai_helpers.workspace import Workspace\n"
        f"workspace = Workspace({str(workspace.absolute())!r})\n"
        f"widgets.{call}"
    )


def missing() -> str:
    """What of the needed programs is not there, and how to get it; empty if nothing is missing."""
    wanted = ("playwright", "jupyterlab" if _colab_widgets() else "voila")
    lacking = [name for name in wanted if not _installed(name)]
    told = [f"{', '.join(lacking)}: pip install -e '.[browser]'"] if lacking else []
    if chromium() is None:
        told.append("Chromium: apt-get install chromium (or your system's package of it)")
    return "; ".join(told)


def chromium() -> str | None:
    """Path of the system's Chromium, if there is one."""
    return next((path for name in _CHROMIUM if (path := shutil.which(name))), None)


def _installed(name: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(name))
    return False


def _colab_widgets() -> bool:
    return metadata.version("ipywidgets").startswith("7.")


class Site(NamedTuple):
    """A server of notebooks in `folder`."""

    folder: Path
    port: int

    def show(self, page: Page, cell: str) -> Locator:
        """Run `cell` in a notebook of its own, and give the inspector that it shows."""
        path = self.folder / f"page{len(list(self.folder.glob('*.ipynb')))}.ipynb"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, path)
        if _colab_widgets():
            page.goto(f"http://127.0.0.1:{self.port}/lab/tree/{path.name}?reset")
            _run_first_cell(page)
        else:
            page.goto(f"http://127.0.0.1:{self.port}/voila/render/{path.name}")
        box = page.locator(INSPECTOR)
        box.wait_for(timeout=60_000)
        return box


def _run_first_cell(page: Page) -> None:
    """Press JupyterLab's run button until it is heard: what is pressed before the kernel is there is lost."""
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=60_000)
    for _ in range(10):
        page.locator(".jp-CodeCell .jp-Editor").first.click()
        page.locator('button[data-command="runmenu:run"]').click()
        page.wait_for_timeout(1000)
        if page.locator(".jp-CodeCell .jp-InputPrompt").first.inner_text() != "[ ]:":
            return
    raise RuntimeError("JupyterLab did not run the cell.")


@contextlib.contextmanager
def site(dark: bool = False) -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        options = [f"--port={port}", "--no-browser"]
        if _colab_widgets():
            command = ["jupyterlab", folder, *options, *_LAB_OPTIONS]
        else:
            command = ["voila", folder, *options, f"--theme={'dark' if dark else 'light'}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
        with (Path(folder) / "server.log").open("w+", encoding="utf-8") as log:
            server = subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log)
            try:
                _wait_for(port, server, Path(log.name))
                yield Site(Path(folder), port)
            finally:
                server.terminate()
                server.wait(timeout=20)


@contextlib.contextmanager
def browser_page(width: int = 1180, height: int = 900) -> Iterator[Page]:
    """An empty page of headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
        finally:
            browser.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"The notebook server did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


if __name__ == "__main__":
    main()
