"""A real IPython kernel: cells are run, interrupted and killed as a notebook does it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from jupyter_client import KernelManager

ROOT = Path(__file__).resolve().parent.parent


class Ran(NamedTuple):
    text: str  # what was printed and displayed
    error: str  # what the cell ended in, as a reader sees it; "" where it ended well


class Kernel:
    def __init__(self, folder: Path, **environment: str) -> None:
        self._manager = KernelManager(kernel_name="python3")
        known = {
            name: value for name, value in os.environ.items() if name not in ("CAI_PRESET", "CAI_WORKSPACE", "HF_TOKEN")
        }
        paths = [str(ROOT), environment.pop("PYTHONPATH", "")]
        self._manager.start_kernel(
            cwd=str(folder),
            env=known | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"} | environment,
        )
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=120)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    @property
    def pid(self) -> int:
        return self._manager.provisioner.pid

    def run(self, code: str, interrupt_at: str = "", kill_at: str = "", timeout: float = 240) -> Ran:
        """Run a cell to its end; or stop it, or kill the kernel, once its output holds a text."""
        # stop_on_error: an older kernel also drops a cell that comes right after one that ended in an error
        asked = self._client.execute(code, allow_stdin=False, stop_on_error=False)
        text, error, began = "", "", time.monotonic()
        while time.monotonic() - began < timeout:
            message = self._client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            elif kind in ("display_data", "execute_result", "update_display_data"):
                text += "".join(content["data"].get(form, "") for form in ("text/html", "text/plain"))
            elif kind == "error":
                error = "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                return Ran(text, error)
            if kill_at and kill_at in text:
                self._manager.shutdown_kernel(now=True)
                return Ran(text, "killed")
            if interrupt_at and interrupt_at in text:
                interrupt_at = ""
                self._manager.interrupt_kernel()
        raise TimeoutError(f"the cell did not end in {timeout:.0f} s; so far it said:\n{text}")
