"""The `cai` command: the pipeline, each stage alone, and the doctor."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cai_helpers.errors import CaiError, TrainingRefused
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings, load_settings
from cai_helpers.workspace import DEFAULT_ROOT, Workspace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Constitutional AI, Stage 3: a model critiques and revises its own answers, is trained on the better ones "
    "with DPO, and is compared with what it was.\n\n"
    "Try it without a GPU: cai run --preset smoke. Every command can be repeated: it goes on where it stopped.",
)

Fresh = Annotated[bool, typer.Option("--fresh", help="Move this stage's earlier results to archive/ and start over.")]

Strict = Annotated[bool, typer.Option("--strict", help="Refuse to train when any line of curate's gate falls short.")]


def _common(
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


def _command(function: Callable[..., StageReport | int]) -> None:
    """Make `function(settings, workspace, …own options)` a command that takes the common options as well.

    Typer reads options from a signature; writing the eight common ones into each command would be nine copies.
    """

    @functools.wraps(function)
    def command(debug: bool, **options: object) -> None:
        own = {name: options.pop(name) for name in own_parameters}
        try:
            result = function(*_common(**options), **own)
        except CaiError as error:
            if debug:
                raise
            typer.secho(f"Error: {error.what}", fg="red", err=True)
            typer.echo(error.todo, err=True)
            raise typer.Exit(error.exit_code) from None
        if isinstance(result, StageReport):
            show(result)
        elif result:
            raise typer.Exit(result)

    own_parameters = list(inspect.signature(function, eval_str=True).parameters.values())[2:]
    names = {parameter.name for parameter in own_parameters}  # an own --limit takes the place of the common one
    common_parameters = [
        parameter
        for parameter in inspect.signature(_common, eval_str=True).parameters.values()
        if parameter.name not in names
    ]
    debug_parameter = inspect.Parameter(
        "debug",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
    )
    parameters = [*own_parameters, *common_parameters, debug_parameter]
    command.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters])
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    own_parameters = [parameter.name for parameter in own_parameters]
    app.command(function.__name__.removeprefix("_"))(command)


def show(report: StageReport) -> None:
    """Print a report as an aligned table."""
    typer.secho(f"\n{report.title()}", bold=True)
    lines = report.lines()
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        typer.echo(f"  {name.ljust(width)}  " + value.replace("\n", "\n" + " " * (width + 4)))


def _with_strict(settings: Settings, strict: bool) -> Settings:
    if not strict:
        return settings
    return settings.model_copy(update={"curate": settings.curate.model_copy(update={"strict": True})})


@_command
def run(settings: Settings, workspace: Workspace, strict: Strict = False) -> int:
    """The whole pipeline. Exit code 0: done; 3: the pairs are too few or refused, report written; 1: an error."""
    from cai_helpers.pipeline import run_stage3

    report = run_stage3(_with_strict(settings, strict), workspace)
    show(report)
    adapter = workspace.adapter if workspace.adapter.exists() else "none: nothing was trained"
    typer.echo(f"\n  report   {report.page}\n  adapter  {adapter}\n  zip      {report.export.path}")
    return TrainingRefused.exit_code if report.stopped else 0


@_command
def download(settings: Settings, workspace: Workspace) -> StageReport:
    """Fetch base model, adapter and reward model, or say what is missing."""
    from cai_helpers.stages.download import download_models

    return download_models(settings, workspace)


@_command
def bakeoff(
    settings: Settings,
    workspace: Workspace,
    n: Annotated[int, typer.Option("--n", min=2, help="Prompts a protocol.")] = 48,
    protocol: Annotated[
        list[str] | None, typer.Option(help="Compare only these, e.g. --protocol single/short+2. Repeatable.")
    ] = None,
) -> StageReport:
    """Try every critique protocol on a few prompts, and recommend one to `generate`."""
    from cai_helpers.stages.bakeoff import compare_protocols

    report = compare_protocols(settings, workspace, n, protocol)
    workspace.save_settings(settings)
    return report


@_command
def preflight(settings: Settings, workspace: Workspace) -> StageReport:
    """Try the whole path on a little, in minutes: memory, speed, and how long the run will take. Leaves nothing behind."""
    from cai_helpers.stages.preflight import check_path

    return check_path(settings, workspace)


@_command
def generate(settings: Settings, workspace: Workspace, fresh: Fresh = False) -> StageReport:
    """Draft, critique and revise: pairs/traces.jsonl."""
    from cai_helpers.stages.generate import generate_pairs

    report = generate_pairs(settings, workspace, fresh)
    workspace.save_settings(settings)
    return report


@_command
def calibrate(
    settings: Settings,
    workspace: Workspace,
    gold: Annotated[
        str | None, typer.Option(help="Pairs judged by people: a .jsonl or .jsonl.gz file, or a Hub dataset.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Gold pairs to use at most.")] = None,
) -> StageReport:
    """Try the scorer on pairs that people have judged, and say whether to trust it."""
    from cai_helpers.stages.calibrate import calibrate_scorer

    changes = {name: value for name, value in (("gold", gold), ("limit", limit)) if value is not None}
    settings = settings.model_copy(update={"calibrate": settings.calibrate.model_copy(update=changes)})
    report = calibrate_scorer(settings, workspace)
    workspace.save_settings(settings)  # so that `cai run` keeps to these gold pairs
    return report


@_command
def score(settings: Settings, workspace: Workspace) -> StageReport:
    """Give both sides a reward: pairs/pairs.jsonl."""
    from cai_helpers.stages.score import score_pairs

    return score_pairs(settings, workspace)


@_command
def curate(
    settings: Settings,
    workspace: Workspace,
    pairs: Annotated[
        Path | None, typer.Option(exists=True, help="A pairs file from elsewhere; eight columns suffice.")
    ] = None,
) -> StageReport:
    """Filter the pairs, with reasons: dpo_dataset/."""
    from cai_helpers.stages.curate import curate_pairs

    return curate_pairs(settings, workspace, pairs)


@_command
def analyze(
    settings: Settings,
    workspace: Workspace,
    file: Annotated[Path | None, typer.Argument(exists=True, help="A pairs file; default: the workspace's.")] = None,
) -> StageReport:
    """Statistics, diagnosis and pictures of the pairs: reports/pairs.html."""
    from cai_helpers.stages.analyze import analyze_pairs

    return analyze_pairs(settings, workspace, file)


@_command
def train(
    settings: Settings,
    workspace: Workspace,
    fresh: Fresh = False,
    strict: Strict = False,
    sweep: Annotated[
        str | None,
        typer.Option(help="Compare short runs and go on with the best, e.g. --sweep beta=0.05,0.1,0.3"),
    ] = None,
) -> StageReport:
    """Train the LoRA with DPO (or as train.method says): models/lora_adapters/. Exit code 3: too few
    pairs, or refused by --strict."""
    from cai_helpers.stages.train import train_dpo

    settings = _with_strict(settings, strict)
    if sweep is not None:
        from cai_helpers.sweep import sweep as compare

        compared, settings = compare(settings, workspace, sweep, fresh)
        show(compared)
        fresh = False  # the sweep has started over, and left what both share
    report = train_dpo(settings, workspace, fresh)
    workspace.save_settings(settings, section="train")
    return report


@_command
def evaluate(settings: Settings, workspace: Workspace) -> StageReport:
    """Compare the trained model with Stage 2 on held-out prompts."""
    from cai_helpers.stages.evaluate import evaluate_models

    return evaluate_models(settings, workspace)


@_command
def export(settings: Settings, workspace: Workspace) -> StageReport:
    """Pack adapter, data, figures and reports into one checked zip."""
    from cai_helpers.pages.run_page import write_run_report
    from cai_helpers.stages.export import export_artifacts

    write_run_report(settings, workspace)
    return export_artifacts(settings, workspace)


@_command
def doctor(settings: Settings, workspace: Workspace) -> int:
    """Check versions, GPU, disk, your files, and the models against each other. Exit code 1 if something is to do."""
    from cai_helpers.doctor import examine

    checks = examine(settings, workspace)
    for check in checks:
        typer.echo(check.line())
    return int(not all(check.ok for check in checks))


if __name__ == "__main__":
    app()
