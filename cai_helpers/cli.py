"""The `cai` command: the pipeline, each stage alone, and the doctor.

What is quoted or imported inside a function loads when a command runs, so that `cai --help` answers at once.
"""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cai_helpers import archive_commands
from cai_helpers.command import make_command, make_plain_command, show
from cai_helpers.errors import RoundsEnded, TrainingRefused
from cai_helpers.terminal import visible

if TYPE_CHECKING:
    from cai_helpers.schema import StageReport
    from cai_helpers.settings import Settings
    from cai_helpers.workspace import Workspace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to load than all the rest
    help="Constitutional AI, Stage 3: a model critiques and revises its own answers, is trained on the better ones "
    "with DPO, and is compared with what it was.\n\n"
    "Try it without a GPU: cai run --preset smoke. Every command can be repeated: it goes on where it stopped.",
)


class Required(Enum):
    """What a script may ask of the verdict."""

    BETTER = "better"


VERDICT_MISSED = 4  # exit code of `cai evaluate --require`

Fresh = Annotated[bool, typer.Option("--fresh", help="Move this stage's earlier results to archive/ and start over.")]

Strict = Annotated[bool, typer.Option("--strict", help="Refuse to train when any line of curate's gate falls short.")]


def _command(function: Callable[..., "StageReport | int"]) -> None:
    app.command(function.__name__)(make_command(function))


def _shared_command(function: Callable[..., "StageReport | int"]) -> None:
    """One that `accelerate launch -m cai_helpers.cli` may run in several processes."""
    app.command(function.__name__)(make_command(function, shares_work=True))


def _with_strict(settings: "Settings", strict: bool) -> "Settings":
    if not strict:
        return settings
    return settings.model_copy(update={"curate": settings.curate.model_copy(update={"strict": True})})


@_command
def run(
    settings: "Settings",
    workspace: "Workspace",
    strict: Strict = False,
    previous: Annotated[
        Path | None,
        typer.Option(
            "--from", help="The folder of a finished run: its adapter is Stage 2 of this one, the next round."
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="With --from: begin the round although the rule ends the rounds.")
    ] = False,
) -> int:
    """The whole pipeline. Exit code 0: done; 3: the pairs are too few or refused, or no further round should follow, report
    written; 1: an error."""
    from cai_helpers.pipeline import run_stage3

    if previous is not None:
        from cai_helpers.rounds import begin_round
        from cai_helpers.workspace import Workspace

        settings = begin_round(settings, workspace, Workspace(previous), anyway)
    report = run_stage3(_with_strict(settings, strict), workspace)
    show(report)
    adapter = workspace.adapter if workspace.adapter.exists() else "none: nothing was trained"
    typer.echo(f"\n  report   {report.page}\n  adapter  {adapter}\n  zip      {report.export.path}")
    if report.stopped:
        return TrainingRefused.exit_code
    return _tell_rounds(settings, workspace) if workspace.rounds_before.exists() else 0


def _tell_rounds(settings: "Settings", workspace: "Workspace") -> int:
    """The table of the rounds; 3 where no further one should follow."""
    from cai_helpers.rounds import finish_round

    rounds = finish_round(settings, workspace)
    show(rounds)
    typer.echo(f"  picture  {workspace.picture('rounds')}")
    return RoundsEnded.exit_code if rounds.stop else 0


@_command
def download(settings: "Settings", workspace: "Workspace") -> "StageReport":
    """Fetch base model, adapter and reward model, or say what is missing."""
    from cai_helpers.stages.download import download_models

    return download_models(settings, workspace)


@_command
def bakeoff(
    settings: "Settings",
    workspace: "Workspace",
    n: Annotated[int, typer.Option("--n", min=2, help="Prompts a protocol.")] = 48,
    protocol: Annotated[
        list[str] | None, typer.Option(help="Compare only these, e.g. --protocol single/short+2. Repeatable.")
    ] = None,
) -> "StageReport":
    """Try every critique protocol on a few prompts, and recommend one to `generate`."""
    from cai_helpers.stages.bakeoff import compare_protocols

    report = compare_protocols(settings, workspace, n, protocol)
    workspace.save_settings(settings)
    return report


@_command
def plan(
    settings: "Settings",
    workspace: "Workspace",
    card: Annotated[
        str | None,
        typer.Option(
            help="t4, l4, a100: by its data sheet; here: this machine, measured. Default: here on a GPU, else the preset's."
        ),
    ] = None,
) -> int:
    """What the run will take: memory by part, minutes by stage. No weight is loaded. Exit code 1: it does not fit."""
    from cai_helpers.planning.plan import plan_run, require_fits

    planned = plan_run(settings, workspace, card)
    show(planned)
    require_fits(planned)
    return 0


@_command
def principles(
    settings: "Settings",
    workspace: "Workspace",
    n: Annotated[int, typer.Option("--n", min=2, help="Prompts a principle.")] = 48,
) -> "StageReport":
    """Revise the same drafts under each principle alone: which of them pays? Drawn in reports/which_principle_pays.png."""
    from cai_helpers.stages.principles import compare_principles

    return compare_principles(settings, workspace, n)


@_command
def preflight(
    settings: "Settings",
    workspace: "Workspace",
    fresh: Annotated[bool, typer.Option("--fresh", help="Try it again although nothing has changed.")] = False,
) -> "StageReport":
    """Try the whole path on a little, in minutes: memory, speed, and how long the run will take. No result is touched."""
    from cai_helpers.stages.preflight import check_path

    return check_path(settings, workspace, fresh)


@_shared_command
def generate(settings: "Settings", workspace: "Workspace", fresh: Fresh = False) -> "StageReport":
    """Draft, critique and revise: pairs/traces.jsonl."""
    from cai_helpers.stages.generate import generate_pairs

    report = generate_pairs(settings, workspace, fresh)
    workspace.save_settings(settings)
    return report


@_command
def calibrate(
    settings: "Settings",
    workspace: "Workspace",
    gold: Annotated[
        str | None, typer.Option(help="Pairs judged by people: a .jsonl or .jsonl.gz file, or a Hub dataset.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Gold pairs to use at most.")] = None,
    scorers: Annotated[
        str | None,
        typer.Option(help="Compare these, e.g. NAME,OTHER:chat or OTHER:chat:2048 (input, max_length)."),
    ] = None,
) -> "StageReport":
    """Try the scorer on pairs that people have judged, and say whether to trust it."""
    from cai_helpers.stages.calibrate import calibrate_scorer
    from cai_helpers.stages.compare_scorers import compare_scorers

    changes = {name: value for name, value in (("gold", gold), ("limit", limit)) if value is not None}
    settings = settings.model_copy(update={"calibrate": settings.calibrate.model_copy(update=changes)})
    if scorers is not None:
        return compare_scorers(settings, workspace, [name.strip() for name in scorers.split(",") if name.strip()])
    report = calibrate_scorer(settings, workspace)
    workspace.save_settings(settings)  # so that `cai run` keeps to these gold pairs
    return report


@_shared_command
def score(settings: "Settings", workspace: "Workspace") -> "StageReport":
    """Give both sides a reward: pairs/pairs.jsonl."""
    from cai_helpers.stages.score import score_pairs

    return score_pairs(settings, workspace)


@_command
def curate(
    settings: "Settings",
    workspace: "Workspace",
    pairs: Annotated[
        Path | None, typer.Option(exists=True, help="A pairs file from elsewhere; eight columns suffice.")
    ] = None,
) -> "StageReport":
    """Filter the pairs, with reasons: dpo_dataset/."""
    from cai_helpers.stages.curate import curate_pairs

    return curate_pairs(settings, workspace, pairs)


@_command
def analyze(
    settings: "Settings",
    workspace: "Workspace",
    file: Annotated[Path | None, typer.Argument(exists=True, help="A pairs file; default: the workspace's.")] = None,
) -> "StageReport":
    """Statistics, diagnosis and pictures of the pairs: reports/pairs.html."""
    from cai_helpers.stages.analyze import analyze_pairs

    return analyze_pairs(settings, workspace, file)


@_shared_command
def train(
    settings: "Settings",
    workspace: "Workspace",
    fresh: Fresh = False,
    strict: Strict = False,
    sweep: Annotated[
        str | None,
        typer.Option(help="Compare short runs and go on with the best, e.g. --sweep beta=0.05,0.1,0.3"),
    ] = None,
) -> "StageReport":
    """Train the LoRA with DPO (or as train.method says): models/lora_adapters/. Exit code 3: too few
    pairs, or refused by --strict."""
    from cai_helpers.stages.train import train_policy

    settings = _with_strict(settings, strict)
    if sweep is not None:
        from cai_helpers.sweep import sweep as compare

        compared, settings = compare(settings, workspace, sweep, fresh)
        show(compared)
        fresh = False  # the sweep has started over, and left what both share
    report = train_policy(settings, workspace, fresh)
    workspace.save_settings(settings, section="train")
    return report


@_shared_command
def evaluate(
    settings: "Settings",
    workspace: "Workspace",
    require: Annotated[
        Required | None, typer.Option(help="Exit with 4 unless this is the verdict; for scripts.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train and evaluate under so many seeds, this training being the first.")
    ] = 1,
) -> "StageReport | int":
    """Compare the trained model with Stage 2 and the base model on held-out prompts. Exit code 4: not as --require asks."""
    from cai_helpers.seeds import evaluate_seeds
    from cai_helpers.stages.evaluate import evaluate_models

    report = evaluate_models(settings, workspace) if seeds == 1 else evaluate_seeds(settings, workspace, seeds)
    if require is None or report.judgement.verdict == require.value:
        return report
    show(report)
    typer.secho(f"\nNot {require.value}: the verdict is {report.judgement.verdict!r}.", fg="red", err=True)
    return VERDICT_MISSED


@_command
def chat(
    settings: "Settings",
    workspace: "Workspace",
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Do not say which answer is whose before one was chosen.")
    ] = False,
) -> int:
    """Talk to Stage 2 and Stage 3 side by side, and say which answer is better: pairs for the next training."""
    from cai_helpers.inspection.talk import Talk
    from cai_helpers.inspection.terminal import talk_in_terminal

    talk_in_terminal(Talk(settings, workspace, shuffled))
    return 0


@_command
def export(settings: "Settings", workspace: "Workspace") -> "StageReport":
    """Pack adapter, data, figures and reports into one checked zip."""
    from cai_helpers.pages.run_page import write_run_report
    from cai_helpers.stages.export import export_artifacts

    write_run_report(settings, workspace)
    return export_artifacts(settings, workspace)


@_command
def doctor(settings: "Settings", workspace: "Workspace") -> int:
    """Check versions, GPU, disk, your files, and the models against each other. Exit code 1 if something is to do."""
    from cai_helpers.doctor import examine

    checks = examine(settings, workspace)
    for check in checks:
        typer.echo(visible(check.line()))
    return int(not all(check.ok for check in checks))


for _of_an_archive in (archive_commands.verify, archive_commands.push, archive_commands.import_):
    app.command(_of_an_archive.__name__.rstrip("_"))(make_plain_command(_of_an_archive))

if __name__ == "__main__":
    app()
