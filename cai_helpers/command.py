"""A function of settings and workspace → a command with the options that all share, its errors told and its exit code."""

import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cai_helpers import failures
from cai_helpers.errors import CaiError, StoppedByHand
from cai_helpers.machine.processes import (
    is_main_process,
    let_main_speak_first,
    loss_of_another,
    require_one_process,
)
from cai_helpers.paths import DEFAULT_ROOT
from cai_helpers.terminal import visible

if TYPE_CHECKING:  # pydantic is behind them
    from cai_helpers.schema import StageReport
    from cai_helpers.settings import Settings
    from cai_helpers.workspace import Workspace

_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)

_KEEP = inspect.Parameter(
    "keep",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            help="Keep the run there as well, and bring it back from there: a folder on a drive, or hub:OWNER/NAME, private."
        ),
    ],
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
) -> "tuple[Settings, Workspace]":
    """The options every command takes, read into settings and a workspace."""
    from cai_helpers.settings import as_override, load_settings
    from cai_helpers.workspace import Workspace

    space = Workspace(workspace)
    changes = named_models(model, adapter)
    if prompts is not None:
        changes += [as_override("prompts.source", _given(prompts, "--prompts")), "prompts.eval_source=null"]
    changes += [f"prompts.limit={limit}"] if limit else []
    changes += [f"seed={seed}"] if seed is not None else []
    changes += ["cpu=true"] if cpu else []
    saved = str(space.settings_file) if space.settings_file.exists() else None
    settings = load_settings(preset or saved or os.environ.get("CAI_PRESET", "t4"), changes + (set_ or []))
    return settings, space


def make_command(function: Callable[..., "StageReport | int"], shares_work: bool = False) -> Callable[..., None]:
    """`function(settings, workspace, …own options)` as a command that takes the shared options as well.

    shares_work: several processes of an `accelerate launch` may run it together; others are refused there.

    Typer reads options from a signature; writing the nine shared ones into each command would be nine copies. An
    option of the function's own takes the place of a shared one of the same name.

    What the command ends with: 0, done; 1, an error or, of the doctor, something to do; 3, training was refused or no further
    round should follow; 4, the verdict is not the one that was required; 130, stopped by hand. (A command line that cannot
    be understood ends with typer's 2 before this begins.)
    """
    own = _parameters(function)[2:]
    names = {parameter.name for parameter in own}
    shared = [parameter for parameter in _parameters(shared_options) if parameter.name not in names]

    def work(keep: str | None, **options: Any) -> "StageReport | int":
        if not shares_work:
            require_one_process(function.__name__)
        if keep is None:
            return alone(**options)
        return _kept(lambda: alone(**options), options["workspace"], _given(keep, "--keep"))

    def alone(**options: Any) -> "StageReport | int":
        of_function = {name: options.pop(name) for name in names}
        if (previous := of_function.get("previous")) is not None and options["preset"] is None:
            options["preset"] = _settings_of(options["workspace"]) or _settings_of(previous)
        return function(*shared_options(**options), **of_function)

    return _as_command(work, function, [*own, *shared, _KEEP])


def _kept(work: Callable[[], "StageReport | int"], root: Path, place: str) -> "StageReport | int":
    """`work`, with the run of `root` kept at `place` while it lasts; an error where the place lacks some of it at the end."""
    from cai_helpers.keeping.keeper import keep
    from cai_helpers.workspace import Workspace

    with keep(Workspace(root), place) as keeper:
        result = work()
        if not keeper.close():
            if not isinstance(result, int):
                show(result)
            raise CaiError(
                f"The work is done and lies in {root}, but it is {keeper.line()}",
                "Mend the place and run the same command again: what is done is not done again, only kept. Or copy that folder "
                "by hand.",
            )
    typer.echo(f"  kept     {keeper.line()}")
    return result


def _settings_of(root: Path) -> str | None:
    """The file of settings of a workspace, where there is one."""
    from cai_helpers.workspace import Workspace

    file = Workspace(root).settings_file
    return str(file) if file.exists() else None


def make_plain_command(function: Callable[..., "StageReport | int"]) -> Callable[..., None]:
    """`function(…own options)` as a command: of an archive, which brings its own settings. It ends as the others do."""
    return _as_command(function, function, _parameters(function))


def _as_command(
    work: Callable[..., "StageReport | int"], named: Callable[..., Any], options: list[inspect.Parameter]
) -> Callable[..., None]:
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*options, _DEBUG]]

    def command(debug: bool, **given: Any) -> None:
        os.umask(0o077)  # prompts, answers and a person's decisions are nobody else's on a shared machine
        code = _run(lambda: work(**given), debug)
        if code:
            raise typer.Exit(code)

    command.__name__ = named.__name__
    command.__doc__ = named.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    return command


def show(report: "StageReport") -> None:
    """Print a report as an aligned table."""
    if not is_main_process():
        return
    typer.secho(f"\n{report.title()}", bold=True)
    lines = report.lines()
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        typer.echo(f"  {name.ljust(width)}  " + visible(value).replace("\n", "\n" + " " * (width + 4)))


def named_models(model: str | None, adapter: str | None) -> list[str]:
    """The changes that --model and --adapter ask for; None: the option was not given."""
    from cai_helpers.settings import as_override

    changes = [] if model is None else [as_override("models.base", _given(model, "--model"))]
    if adapter is not None:
        none = adapter == "none"
        changes.append("models.adapter=null" if none else as_override("models.adapter", _given(adapter, "--adapter")))
    return changes


def _given(value: str, option: str) -> str:
    if not value.strip():
        raise CaiError(f"{option} is empty.", "Give a name, or leave the option out.")
    return value


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _run(work: Callable[[], "StageReport | int"], debug: bool) -> int:
    """The exit code; what `work` reports, or why it ended, is printed."""
    try:
        result = work()
        if isinstance(result, int):
            return result
        show(result)
        return 0
    except (Exception, KeyboardInterrupt) as ending:  # noqa: BLE001 - a command never ends in a traceback
        let_main_speak_first()
        error = failures.told(ending) or loss_of_another(ending) or failures.unexpected(ending)
        if debug:
            traceback.print_exception(ending)
        what = error.what if isinstance(error, StoppedByHand) else f"Error: {error.what}"
        typer.secho(visible(what), fg="red", err=True)
        typer.echo(visible(error.todo), err=True)
        return error.exit_code
