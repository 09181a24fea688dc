"""A function of settings and workspace → a command with the options that all share, its errors told and its exit code."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cai_helpers.errors import CaiError, StoppedByHand
from cai_helpers.paths import DEFAULT_ROOT
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings, load_settings
from cai_helpers.workspace import Workspace

_STOPPED = StoppedByHand("Stopped by hand.", "What is on disk stays: run the same command again to go on.")
_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)


def shared_options(
    preset: Annotated[
        str | None,
        typer.Option(
            help="smoke (embedded models, CPU), t4, a100, or a YAML file. Default: what the workspace was made with, else t4."
        ),
    ] = None,
    workspace: Annotated[Path, typer.Option(help="Folder of the run; everything is written below it.")] = DEFAULT_ROOT,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl, .jsonl.gz or .txt file, or a Hub dataset. The evaluation prompts are split off it."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Training prompts to use at most.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: Hub id or folder.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Your Stage-2 LoRA: Hub id or folder; 'none' for no adapter.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of everything.")] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Run t4 or a100 without a GPU all the same: days with a model of usual size.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, e.g. --set train.beta=0.2. Repeatable.")
    ] = None,
) -> tuple[Settings, Workspace]:
    """The options every command takes, read into settings and a workspace."""
    space = Workspace(workspace)
    changes = [f"models.base={model}"] if model else []
    changes += [f"models.adapter={'null' if adapter == 'none' else adapter}"] if adapter else []
    changes += [f"prompts.source={prompts}", "prompts.eval_source=null"] if prompts else []
    changes += [f"prompts.limit={limit}"] if limit else []
    changes += [f"seed={seed}"] if seed is not None else []
    changes += ["cpu=true"] if cpu else []
    saved = str(space.settings_file) if space.settings_file.exists() else None
    settings = load_settings(preset or saved or os.environ.get("CAI_PRESET", "t4"), changes + (set_ or []))
    return settings, space


def make_command(function: Callable[..., StageReport | int]) -> Callable[..., None]:
    """`function(settings, workspace, …own options)` as a command that takes the shared options as well.

    Typer reads options from a signature; writing the nine shared ones into each command would be nine copies. An
    option of the function's own takes the place of a shared one of the same name.

    What the command ends with: 0, done; 1, an error or, of the doctor, something to do; 3, training was refused; 130,
    stopped by hand. (A command line that cannot be understood ends with typer's 2 before this begins.)
    """
    own = _parameters(function)[2:]
    names = {parameter.name for parameter in own}
    shared = [parameter for parameter in _parameters(shared_options) if parameter.name not in names]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *shared, _DEBUG]]

    def command(debug: bool, **options: Any) -> None:
        of_function = {name: options.pop(name) for name in names}
        code = _run(lambda: function(*shared_options(**options), **of_function), debug)
        if code:
            raise typer.Exit(code)

    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    return command


def show(report: StageReport) -> None:
    """Print a report as an aligned table."""
    typer.secho(f"\n{report.title()}", bold=True)
    lines = report.lines()
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        typer.echo(f"  {name.ljust(width)}  " + value.replace("\n", "\n" + " " * (width + 4)))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _run(work: Callable[[], StageReport | int], debug: bool) -> int:
    """The exit code; what `work` reports, or why it ended, is printed."""
    try:
        result = work()
        if isinstance(result, StageReport):
            show(result)
            return 0
        return result
    except (CaiError, KeyboardInterrupt) as ending:
        error = ending if isinstance(ending, CaiError) else _STOPPED
        if debug:
            traceback.print_exception(ending)
        typer.secho(error.what if isinstance(error, StoppedByHand) else f"Error: {error.what}", fg="red", err=True)
        typer.echo(error.todo, err=True)
        return error.exit_code
