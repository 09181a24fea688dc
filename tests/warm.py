"""`cai` in real processes that begin in a moment: forked from one that has imported everything.

A new interpreter takes seconds to import torch; a hundred faults would take minutes of that alone. What is forked is a
process like any other: it has its own number, takes signals, dies of SIGKILL, and ends with `cai`'s own exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ended:
    code: int  # negative: the number of the signal that ended it
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last lines of the standard error: what happened and what to do."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        return "\n".join(lines[-2:])


class Running:
    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def is_over(self) -> bool:
        return (self._folder / "code").exists()

    def text(self) -> str:
        """What it has said so far; nothing before it has begun."""
        files = (self._folder / "err", self._folder / "out")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def wait(self, seconds: float = 120) -> Ended:
        until = time.monotonic() + seconds
        while not self.is_over():
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"it had not ended after {seconds} s: {self.text()[-2000:]}")
            time.sleep(0.01)
        code = int((self._folder / "code").read_text())
        out, err = ((self._folder / name).read_text(errors="replace") for name in ("out", "err"))
        return Ended(code, out, err)


class Warm:
    """A process with everything imported, which forks a `cai` for each call."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(
        self, *arguments: object, cwd: Path | None = None, stdin: str = "", prelude: str = "", **environment: str
    ) -> Running:
        """`cai` with these arguments; prelude: Python that the process runs before, to plant a fault in itself."""
        self._count += 1
        folder = self._folder / f"call-{self._count}"
        folder.mkdir(parents=True)
        (folder / "in").write_text(stdin)
        call = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "cwd": str(cwd or folder),
            "environment": environment,
            "prelude": prelude,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return Running(int(self._process.stdout.readline()), folder)

    def python(self, program: str, stdin: str = "") -> Ended:
        """`python -c program`, with everything imported already."""
        return self.start(stdin=stdin, prelude=f"{program}\nraise SystemExit(0)").wait(300)

    def cai(
        self, *arguments: object, cwd: Path | None = None, stdin: str = "", prelude: str = "", **environment: str
    ) -> Ended:
        return self.start(*arguments, cwd=cwd, stdin=stdin, prelude=prelude, **environment).wait(300)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _serve() -> None:
    """Fork for each line of standard input; the reaper of each writes down how it ended."""
    import importlib
    import pkgutil

    import cai_helpers

    for name in ("torch", "transformers.models.gemma.modeling_gemma", "transformers.models.bert.modeling_bert", "peft", "trl",
                 "trl.trainer.dpo_trainer", "matplotlib.pyplot"):  # fmt: skip
        importlib.import_module(name)
    for module in pkgutil.walk_packages(cai_helpers.__path__, "cai_helpers."):
        if ".notebook" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    print("ready", flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        reader, writer = os.pipe()
        if os.fork() == 0:  # the reaper: waits for its own child, so that a signal to that one is seen as what it is
            child = os.fork()
            if child == 0:
                _become_cai(call)
            os.write(writer, f"{child}\n".encode())
            _, status = os.waitpid(child, 0)
            code = Path(call["folder"], "code.tmp")
            code.write_text(str(os.waitstatus_to_exitcode(status)))
            code.rename(code.with_name("code"))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            print(pipe.readline().strip(), flush=True)


def _become_cai(call: dict) -> None:
    folder = Path(call["folder"])
    for descriptor, name, flags in (
        (0, "in", os.O_RDONLY),
        (1, "out", os.O_WRONLY | os.O_CREAT),
        (2, "err", os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(folder / name, flags, 0o600), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    os.chdir(call["cwd"])
    os.environ.update(call["environment"])
    sys.argv = ["cai", *call["arguments"]]
    code = 1
    try:
        from cai_helpers.__main__ import main

        exec(call["prelude"], {"__name__": "__main__"})
        main()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - it is what the test looks for
        import traceback

        traceback.print_exc()
        code = 70  # what a shell would see as 1: told apart here, since no fault may end so
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
