"""Short runs that differ in one number, on the same data, compared on the held-out pairs; the best value is returned.

Each run is a workspace of its own in sweep/, so it resumes, is inspected and starts over as any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from cai_helpers.errors import CaiError
from cai_helpers.ground import make_folder
from cai_helpers.schema import Record, StageReport
from cai_helpers.settings import Settings, Train, change_settings
from cai_helpers.stages.train import start_over, train_policy
from cai_helpers.store import write_atomically
from cai_helpers.training.outcome.dpo import DpoReport
from cai_helpers.training.policy.reference_store import folder_of, record_of
from cai_helpers.workspace import Workspace, holds_workspace

# Nats a token: 30 for an answer of 200 tokens. On the embedded models, whatever accuracy and margin say, answers to benign
# requests keep their score up to 0.08, lose some of it at 0.12, and at 0.2 what was won elsewhere.
MOST_KL = 0.15
RULE = (
    "the most held-out pairs ranked right; among those within one pair of the best, the largest margin; runs whose KL "
    f"would grow above {MOST_KL:g} nats a token in the full training are passed over while another is left"
)


class Run(Record):
    """What one value came to, at the checkpoint with the lowest held-out loss."""

    value: float
    accuracy: float  # share of held-out pairs ranked right
    margin: float  # nats: the difference of the two log-ratios. Not times beta, which may be what is swept
    kl: float  # KL(policy ‖ reference), nats a token at the positions of held-out answers: drift.token_kl
    kl_in_full: float  # what that comes to in the full training, by `in_full`
    steps: int
    pairs: int  # held out


class SweepReport(StageReport):
    field: str
    runs: list[Run]
    chosen: float

    def title(self) -> str:
        return f"Sweep of train.{self.field}"

    def lines(self) -> list[tuple[str, str]]:
        rows = [
            (
                f"{self.field}={run.value:g}",
                f"{run.accuracy:.2f} of {run.pairs} held-out pairs right  margin {run.margin:+7.2f} nats  "
                f"KL {run.kl:.3f} nats a token, in full about {run.kl_in_full:.2f}  {run.steps} steps",
            )
            for run in self.runs
        ]
        return [*rows, ("chosen", f"{self.field}={self.chosen:g} ({RULE})")]


@holds_workspace
def sweep(settings: Settings, workspace: Workspace, request: str, fresh: bool = False) -> tuple[SweepReport, Settings]:
    """Train train.sweep_epochs with each value of `request`, "beta=0.05,0.1,0.3"; the report and the settings chosen.

    The reference's log-probabilities and the supervised phase are made by the first run and shared with the others,
    and with the full training that follows, where the swept number does not change them. fresh: earlier runs, and what
    training has made in the workspace, go to archive/.

    Raises:
        CaiError: `request` names no number of the train section, or less than two values; a run fails.
    """
    if settings.train.method == "sft":
        raise CaiError(
            "A sweep compares how pairs are ranked, and train.method=sft learns from the better side alone.",
            "Set train.method=dpo or sft+dpo, or change train.sft_learning_rate by hand.",
        )
    if settings.train.method == "kto":
        raise CaiError(
            "A sweep compares how pairs are ranked, and train.method=kto learns each answer by itself.",
            "Set train.method=dpo or sft+dpo, or change train.beta and train.learning_rate by hand.",
        )
    field, values = parse_sweep(request)
    own = [_settings_of_run(settings, field, value) for value in values]  # a value out of range is refused here
    workspace.require(workspace.train_rows, made_by="curate")
    if fresh:
        workspace.archive("sweep", [workspace.sweep_dir])
        start_over(settings, workspace)
    runs = [
        _run(changed, workspace, field, value, settings.train.epochs)
        for changed, value in zip(own, values, strict=True)
    ]
    report = SweepReport(field=field, runs=runs, chosen=choose(runs).value)
    workspace.note_metrics("sweep", report)
    return report, change_settings(settings, [f"train.{field}={_text(report.chosen)}"])


def parse_sweep(request: str) -> tuple[str, list[float]]:
    """("beta", [0.05, 0.1, 0.3]) of "beta=0.05,0.1,0.3"; "train.beta=…" is the same."""
    name, _, text = request.partition("=")
    name = name.strip().removeprefix("train.")
    numeric = [field for field, info in Train.model_fields.items() if _is_number(info.default)]
    numeric += ["ld_alpha"]  # a number or nothing
    if name not in numeric:
        raise CaiError(f"{name!r} is no number of the train section.", f"Sweep one of {', '.join(numeric)}.")
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(set(values)) < max(2, len(values)):
        raise CaiError(
            f"{request!r} does not give two or more different numbers.", "Write, for example, --sweep beta=0.05,0.1,0.3"
        )
    return name, values


def choose(runs: Sequence[Run]) -> Run:
    """The run that RULE picks; of equals the earlier one."""
    sound = [run for run in runs if run.kl_in_full <= MOST_KL] or list(runs)
    best = max(run.accuracy for run in sound)
    near = [run for run in sound if run.accuracy >= best - 1 / run.pairs - 1e-9]
    return max(near, key=lambda run: run.margin)


def in_full(kl: float, short: float, epochs: float) -> float:
    """The KL to expect after `epochs`, where `short` epochs gave `kl`.

    Near the reference KL is quadratic in how far the weights have moved (its Hessian is the Fisher matrix), and they
    move about as far in each epoch. Measured on the embedded models: three times the steps gave 5 to 8 times the KL.
    """
    return kl * max(1.0, epochs / short) ** 2


def _settings_of_run(settings: Settings, field: str, value: float) -> Settings:
    epochs = [] if field == "epochs" else [f"train.epochs={settings.train.sweep_epochs}"]
    return change_settings(settings, [*epochs, f"train.{field}={_text(value)}"])


def _run(settings: Settings, workspace: Workspace, field: str, value: float, epochs: float) -> Run:
    space = workspace.run_of_sweep(field, value)
    make_folder(space.dataset_dir)
    shutil.copytree(workspace.dataset_dir, space.dataset_dir, dirs_exist_ok=True)
    for done in sorted(workspace.sweep_dir.glob("*=*")):
        share(Workspace(done), space)
    workspace.say("sweep", f"{field}={value:g}, in {space.root}")
    report = train_policy(settings, space)
    assert isinstance(report, DpoReport)  # a sweep of another method was refused
    share(space, workspace)
    return Run(
        value=value,
        accuracy=report.eval_accuracy,
        margin=report.eval_margin / settings.train.beta,
        kl=report.kl,
        kl_in_full=report.kl if field == "epochs" else in_full(report.kl, settings.train.epochs, epochs),
        steps=report.steps,
        pairs=report.eval_pairs,
    )


def share(source: Workspace, target: Workspace) -> None:
    """Give `target` what `source` computed before its DPO began. Either is used only where it fits: it names its basis."""
    wanted = [*folder_of(source).glob("*.json"), record_of(source)] if record_of(source).exists() else []
    sealed = source.manifest_of("sft")
    if sealed.exists() and not target.sft_dir.exists():
        wanted += [*(source.sft_dir / "adapter").iterdir(), source.sft_history, sealed]
    for path in wanted:
        copy = target.root / path.relative_to(source.root)
        if not copy.exists():
            write_atomically(copy, path.read_bytes())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
