"""Is it the method or the seed? The same training under several seeds, each evaluated on the same prompts, and all together.

Each further seed is a workspace of its own in seeds/, so it resumes, is inspected and starts over as any other.
"""

from __future__ import annotations

from pathlib import Path

from cai_helpers.evaluation.comparison import compare_by_category
from cai_helpers.evaluation.figures import HELD_OUT, Comparison, Judgement, Response, readable
from cai_helpers.evaluation.labeller import is_own_labeller, labeller_of
from cai_helpers.evaluation.table import table_of
from cai_helpers.evaluation.verdict import judge
from cai_helpers.machine.processes import require_one_process
from cai_helpers.schema import Record, StageReport
from cai_helpers.settings import Settings, change_settings
from cai_helpers.stages.evaluate import EvaluateReport, evaluate_models
from cai_helpers.stages.train import train_policy
from cai_helpers.store import read_jsonl, write_atomically
from cai_helpers.workspace import Workspace, holds_workspace


class OfSeed(Record):
    """What one training came to."""

    seed: int
    judgement: Judgement
    by_category: dict[str, Comparison]


class SeedsReport(StageReport):
    runs: list[OfSeed]
    judgement: Judgement  # of all answers together, by conversation
    by_category: dict[str, Comparison]  # the same

    def title(self) -> str:
        return f"Evaluation of {len(self.runs)} trainings that differ in their seed"

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("verdict over all", f"{self.judgement.verdict}: {self.judgement.reason}"),
            *((f"seed {run.seed}", f"{run.judgement.verdict}; {_rates(run.by_category)}") for run in self.runs),
            *((f"range, {readable(name)}", self._range(name)) for name in self.by_category),
            (
                "read it so",
                "the verdict over all has the intervals of the prompts, each counted once; the range tells what the seed does",
            ),
        ]

    def _range(self, name: str) -> str:
        rates = [100 * run.by_category[name].win_rate.value for run in self.runs]
        return f"win rate {min(rates):.0f} to {max(rates):.0f} %"


@holds_workspace
def evaluate_seeds(settings: Settings, workspace: Workspace, count: int) -> SeedsReport:
    """Train and evaluate under `count` seeds, from that of the settings on; the workspace's own training is the first.

    All are evaluated on the same held-out prompts with the same seed of sampling: they differ in their training alone.

    Raises:
        CaiError: a training or an evaluation fails; the others' results stay.
    """
    require_one_process("evaluate --seeds")
    first = evaluate_models(settings, workspace)
    reports = [first]
    spaces = [workspace]
    for seed in range(settings.seed + 1, settings.seed + count):
        space = Workspace(workspace.root / "seeds" / f"seed={seed}")
        workspace.say("seeds", f"seed {seed}, in {space.root}")
        _share(workspace, space)
        train_policy(change_settings(settings, [f"seed={seed}"]), space)
        reports.append(evaluate_models(change_settings(settings, ["evaluate.builtin=0"]), space))
        spaces.append(space)
    responses = [one for space in spaces for one in _held_out(space)]
    own = is_own_labeller(first.scorer, first.labeller)
    report = SeedsReport(
        runs=[_run(settings.seed + place, one) for place, one in enumerate(reports)],
        judgement=judge(table_of(responses), settings.evaluate.margin, own),
        by_category=compare_by_category(responses),
    )
    workspace.note_metrics("seeds", report)
    return report


def _run(seed: int, report: EvaluateReport) -> OfSeed:
    return OfSeed(seed=seed, judgement=report.judgement, by_category=report.by_category)


def _share(source: Workspace, target: Workspace) -> None:
    """The same pairs and prompts; and the answers of the policies that no training changes."""
    files = [source.eval_prompts, *(path for path in source.dataset_dir.iterdir() if path.is_file())]
    if labeller_of(source) is not None:
        files.append(source.manifest_of("score"))
    for path in files:
        _copy(path, target.root / path.relative_to(source.root))
    for path in (source.answers, source.log_probabilities, source.evaluation_scores):
        copy = target.root / path.relative_to(source.root)
        if path.exists() and not copy.exists():
            _copy(path, copy)


def _copy(path: Path, target: Path) -> None:
    content = path.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        write_atomically(target, content)


def _held_out(workspace: Workspace) -> list[Response]:
    rows = map(Response.model_validate, read_jsonl(workspace.responses))
    return [row for row in rows if row.prompt_set == HELD_OUT]


def _rates(by_category: dict[str, Comparison]) -> str:
    return ", ".join(f"{readable(name)} won {one.win_rate.percent()}" for name, one in by_category.items())
