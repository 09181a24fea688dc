"""The next round: a finished run's adapter becomes Stage 2, on the held-out prompts of the first run."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, RoundsEnded
from cai_helpers.evaluation.figures import HELD_OUT, Response
from cai_helpers.evaluation.rounds import RULE, Round, RoundsReport, first_round, later_round, why_stop
from cai_helpers.manifest import Manifest
from cai_helpers.pages.rounds_picture import save_rounds_plot
from cai_helpers.schema import Record
from cai_helpers.settings import Settings, as_override, change_settings
from cai_helpers.store import read_json, read_jsonl, write_atomically, write_json, write_jsonl
from cai_helpers.workspace import Workspace, holds_workspace

_DAMAGED = "Run `cai evaluate` in the workspace of the round before, then begin the next one in a new --workspace."


class _Before(Record):
    """What is known of the rounds before, and who judged the first of them."""

    judge: str
    rounds: list[Round]


@holds_workspace
def begin_round(settings: Settings, workspace: Workspace, previous: Workspace, anyway: bool = False) -> Settings:
    """The settings of the round after `previous`: its adapter as Stage 2, the same held-out prompts, never trained on.

    What the rounds before came to is measured and kept in rounds/.

    anyway: begin it although the rule ends the rounds, to see what comes of that.

    Raises:
        RoundsEnded: the round before is not better, or shows signs of collapse, and `anyway` is False.
        CaiError: `previous` is not a finished run.
    """
    _require_finished(previous)
    if not workspace.rounds_before.exists():
        before = _before(previous)
        if not anyway and (reason := why_stop(before.rounds)) is not None:
            raise RoundsEnded(
                f"Round {before.rounds[-1].number + 1} does not begin. {reason[0].upper()}{reason[1:]}.",
                f"Take the round before as your result, or add --anyway to see what would come. The rule: {RULE}.",
            )
        kept = previous.rounds_held_out.exists()
        held_out = previous.rounds_held_out if kept else previous.eval_prompts
        write_atomically(workspace.rounds_held_out, held_out.read_bytes())
        write_jsonl(workspace.first_responses, (row.model_dump() for row in _first_of(previous)))
        write_json(workspace.rounds_before, before.model_dump(mode="json"))
    return change_settings(
        settings,
        [
            as_override("models.adapter", previous.adapter),
            as_override("prompts.eval_source", workspace.rounds_held_out),
        ],
    )


@holds_workspace
def finish_round(settings: Settings, workspace: Workspace) -> RoundsReport:
    """Measure this round, put it beside those before in rounds/rounds.json, and draw reports/rounds.png."""
    evaluation = _evaluation(workspace)
    before = _Before.model_validate(read_json(workspace.rounds_before, _DAMAGED))
    responses, first = _responses(workspace.responses), _responses(workspace.first_responses)
    same_judge = before.judge == evaluation.report["scorer"]
    own = later_round(
        len(before.rounds),
        evaluation.report["judgement"]["verdict"],
        responses,
        first if same_judge and {row.id for row in first} == {row.id for row in responses} else None,
    )
    rounds = [*before.rounds, own]
    write_json(workspace.rounds, _Before(judge=before.judge, rounds=rounds).model_dump(mode="json"))
    save_rounds_plot(rounds, workspace.picture("rounds"))
    return RoundsReport(rounds=rounds, stop=why_stop(rounds))


def _require_finished(previous: Workspace) -> None:
    evaluation = previous.manifest("evaluate") if previous.root.is_dir() else None
    if evaluation is None or not previous.responses.exists():
        raise CaiError(
            f"{previous.root} is not a finished run: it has no evaluation.",
            "Name the folder of a run that was trained and evaluated (--workspace of that run); take in a zip first with "
            "`cai import`.",
        )
    if evaluation.fingerprint.get("input adapter") != file_hash(previous.adapter):
        raise CaiError(
            f"The evaluation in {previous.root} is of another adapter than the one that lies there.",
            "Run `cai evaluate` in that workspace first.",
        )


def _evaluation(workspace: Workspace) -> Manifest:
    manifest = workspace.manifest("evaluate")
    if manifest is None:
        raise CaiError(f"{workspace.root} is not evaluated.", "Run `cai evaluate` first.")
    return manifest


def _before(previous: Workspace) -> _Before:
    """What the rounds up to `previous` came to; counted now where it was a first run."""
    if previous.rounds.exists():
        return _Before.model_validate(read_json(previous.rounds, _DAMAGED))
    responses, evaluation = _responses(previous.responses), _evaluation(previous)
    first = later_round(1, evaluation.report["judgement"]["verdict"], responses, responses)
    return _Before(judge=evaluation.report["scorer"], rounds=[first_round(responses), first])


def _first_of(previous: Workspace) -> list[Response]:
    """The first evaluation: its Stage 2 is what all rounds are compared with."""
    return _responses(previous.first_responses if previous.first_responses.exists() else previous.responses)


def _responses(path: Path) -> list[Response]:
    rows = map(Response.model_validate, read_jsonl(path))
    return [row for row in rows if row.prompt_set == HELD_OUT]
