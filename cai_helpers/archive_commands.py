"""Commands on a zip that `cai export` wrote: it brings its own settings, so they take no shared options.

What is quoted or imported inside a function loads when a command runs, so that `cai --help` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cai_helpers.command import named_models
from cai_helpers.errors import CaiError
from cai_helpers.paths import DEFAULT_ROOT

if TYPE_CHECKING:
    from cai_helpers.schema import StageReport
    from cai_helpers.stages.take_in import What


def verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A zip that `cai export` wrote.")],
) -> "StageReport":
    """Is a zip what was packed? Every hash, the adapter on its base, the cards against the reports. Exit code 1: no."""
    from cai_helpers.stages.verify import verify_archive

    return verify_archive(file)


def push(
    to: Annotated[str | None, typer.Option(help="Model repository for the adapter, user/repo.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Dataset repository for the pairs, user/pairs.")] = None,
    file: Annotated[Path | None, typer.Option(help="The zip; default: the workspace's.")] = None,
    workspace: Annotated[Path, typer.Option(help="Folder of the run.")] = DEFAULT_ROOT,
    public: Annotated[bool, typer.Option("--public", help="Everyone may see it. Without this it is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and send nothing.")] = False,
) -> "StageReport":
    """Put the zip's adapter and pairs on the Hub, one commit each. Private by default; a second call changes nothing."""
    from cai_helpers.stages.push import push_archive
    from cai_helpers.workspace import Workspace

    space = Workspace(workspace)
    path = file or space.require(space.zip, made_by="export")
    return push_archive(path, to, dataset, public, dry_run, _confirm)


def _confirm(question: str) -> bool:
    """No, where nobody is there to answer."""
    return sys.stdin.isatty() and typer.confirm(question)


def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A zip that `cai export` wrote.")],
    workspace: Annotated[Path, typer.Option(help="A folder that is not there yet, or is empty.")],
    what: Annotated[
        str, typer.Option("--as", help="run: all of it; pairs: the pairs alone; stage2: the adapter, for a new run.")
    ] = "run",
    model: Annotated[str | None, typer.Option(help="Base model here, where it was a folder there.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Stage-2 LoRA here, where it was a folder there.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the run. Repeatable.")] = None,
) -> "StageReport":
    """Take a run from a zip into a workspace: each stage goes on there. Hostile zips are refused before a byte is written."""
    from cai_helpers.stages.take_in import KINDS, import_archive
    from cai_helpers.workspace import Workspace

    if what not in KINDS:
        raise CaiError(f"--as {what} is not known.", f"Use one of {', '.join(KINDS)}.")
    overrides = [*named_models(model, adapter), *(set_ or [])]
    return import_archive(file, Workspace(workspace), cast("What", what), overrides)
