"""Makes a virtual environment and installs cai-helpers into it. A torch that is there is used, never replaced.

    python3 tools/install.py .venv                       what `make demo` needs
    python3 tools/install.py .venv --extras test dev     what `make test` needs besides
    python3 tools/install.py .venv-colab --colab         the library versions of Colab's image, installed as on Colab

Needs nothing but Python. torch comes first and by itself: as a dependency of something else, pip would take the newest
build with gigabytes of CUDA.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - said here, before anything that an older Python does not have
    sys.exit(
        "cai-helpers needs Python 3.11 or newer; {} is {}.{}.\nName a newer one: make PYTHON=python3.12".format(
            sys.executable, *sys.version_info[:2]
        )
    )

import argparse
import importlib.util
import os
import platform
import shutil
import site
import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_WHEEL = "torch==2.13.0+cpu"  # a "+cpu" version is never on PyPI: pip finds it in a local folder or not at all
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
COLAB_ONLY = "trl==1.16.0"  # what Colab lacks; the notebooks' first cell installs the same, also with --no-deps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("--extras", nargs="*", default=[], help="extras of pyproject.toml, such as test dev")
    parser.add_argument("--colab", action="store_true", help="requirements-colab.txt, then ours with --no-deps")
    arguments = parser.parse_args()

    environment = arguments.environment.absolute()
    if not works(python_of(environment), "--version"):
        create(environment)
    install_torch(environment)
    if arguments.colab:
        install_as_on_colab(environment)
    else:
        install_package(environment, arguments.extras)


def create(environment: Path) -> None:
    """A virtual environment that sees this Python's torch, if it has one."""
    say(f"creating {environment.name} with Python {platform.python_version()}")
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None  # Debian and Colab leave it out
    if not has_ensurepip and importlib.util.find_spec("pip") is None:
        sys.exit("This Python has neither pip nor ensurepip.\nInstall them first: apt-get install python3-venv")
    outer_torch = works(sys.executable, "-c", "import torch")
    builder = venv.EnvBuilder(
        clear=True, with_pip=has_ensurepip, symlinks=os.name != "nt", system_site_packages=outer_torch
    )
    builder.create(environment)
    if outer_torch and not torch_version(environment):
        # This Python is a virtual environment itself, and "system" meant the one below it.
        link = Path(output_of(environment, "import site; print(site.getsitepackages()[0])")) / "outer.pth"
        link.write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")


def install_torch(environment: Path) -> None:
    if version := torch_version(environment):
        return say(f"torch {version} is there and stays")
    if has_nvidia_gpu() or platform.system() != "Linux":  # elsewhere the ordinary build is a small one
        say("installing torch (the ordinary build)")
        return pip(environment, "install", "torch")
    say("installing torch (the CPU build)")
    if pip_succeeds(environment, "install", "--dry-run", "--no-deps", CPU_WHEEL):
        return pip(environment, "install", CPU_WHEEL)
    pip(environment, "install", "torch", "--index-url", CPU_INDEX)


def install_package(environment: Path, extras: list[str]) -> None:
    say("installing cai-helpers" + (f" with {', '.join(extras)}" if extras else ""))
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    pip(environment, "install", "--editable", target)


def install_as_on_colab(environment: Path) -> None:
    """Colab's pins and the tools of the tests; then, as its notebooks do, trl and ourselves without dependencies."""
    say("installing the versions of Colab's image")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = ROOT / "requirements-colab.txt"
    pip(environment, "install", "--requirement", str(pins), *project["optional-dependencies"]["test"])
    pip(environment, "install", "--no-deps", COLAB_ONLY, "--editable", str(ROOT))


def pip(environment: Path, *arguments: str) -> None:
    if not pip_succeeds(environment, *arguments, show_errors=True):
        sys.exit(f"pip {' '.join(arguments)} failed; what it said stands above.\nThen run the same make target again.")


def pip_succeeds(environment: Path, *arguments: str, show_errors: bool = False) -> bool:
    """Runs pip for the environment, held to the torch that is there.

    Modules are compiled when they are first imported: compiling all of them, as pip would, doubles the time to install
    (62 to 130 s on two cores), and most are never imported.
    """
    python = str(python_of(environment))
    has_pip = works(python, "-c", "import pip")
    runner = [python, "-m", "pip"] if has_pip else [sys.executable, "-m", "pip", "--python", python]
    options = ["--quiet", "--quiet", "--no-compile", "--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        if version := torch_version(environment):
            keep = Path(folder) / "keep.txt"
            keep.write_text(f"torch=={version}\n", encoding="utf-8")
            options += ["--constraint", str(keep)]
        errors = None if show_errors else subprocess.DEVNULL
        command = [*runner, *arguments, *options]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stderr=errors, check=False).returncode == 0


def torch_version(environment: Path) -> str:
    """The version of the torch that the environment sees, or "". Not by importing it, which takes seconds."""
    # half of a torch, as an installation that was stopped leaves it, has no metadata
    code = (
        "from importlib import metadata; print(next((one.version for one in metadata.distributions(name='torch')), ''))"
    )
    return output_of(environment, code)


def has_nvidia_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and works("nvidia-smi", "-L")


def works(*command: str | Path) -> bool:
    """Whether a program starts and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def output_of(environment: Path, code: str) -> str:
    command = [python_of(environment), "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


if __name__ == "__main__":
    main()
