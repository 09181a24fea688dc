"""Is Stage 3 better than Stage 2? Both answer the same held-out prompts. A killed evaluation resumes."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from tqdm.auto import tqdm

from cai_helpers.calibration.accuracy import NOT_CALIBRATED, load_calibration, trust_line
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError, StoppedByHand
from cai_helpers.evaluation.answers import Answers, Keep, answer, basis_of, known_answers, run_of
from cai_helpers.evaluation.comparison import (
    CAUTION,
    OWN_LABELLER,
    READABLE_CATEGORY,
    Change,
    Comparison,
    Judgement,
    Response,
    compare,
    compare_by_category,
    judge,
)
from cai_helpers.evaluation.labeller import is_own_labeller, labeller_of
from cai_helpers.evaluation.policies import load_policies
from cai_helpers.machine.hardware import use_threads
from cai_helpers.manifest import Fingerprint
from cai_helpers.measures.intervals import Interval
from cai_helpers.measures.refusals import is_refusal
from cai_helpers.models.batches import release_memory
from cai_helpers.models.language import STAGE2, STAGE3
from cai_helpers.pages.evaluation_picture import save_evaluation_plot
from cai_helpers.readiness.needs import require_ready, require_scorer
from cai_helpers.schema import BENIGN, Completion, Prompt, StageReport
from cai_helpers.scoring.judge import ResponsePair, judge_pairs, scored_by, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace, holds_workspace

_JUDGE, _LABELLER = "models.reward", "pairs labelled by"  # in the fingerprint


class EvaluateReport(StageReport):
    scorer: str
    notes: list[tuple[str, str]]  # what the scorer says of this call
    judgement: Judgement
    overall: Comparison
    by_category: dict[str, Comparison]
    generated_now: int  # answers; the others were there already
    seconds: float
    trust: str = NOT_CALIBRATED  # what gold pairs say of the scorer, see calibration.trust_line
    labeller: str | None = None  # who labelled the training pairs; None: not known, they came from elsewhere

    @property
    def judged(self) -> str:
        """What stands beside a win rate whose judge labelled the training pairs."""
        return f", {OWN_LABELLER}" if is_own_labeller(self.scorer, self.labeller) else ""

    def title(self) -> str:
        return "Evaluation against Stage 2"

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("verdict", f"{self.judgement.verdict}: {self.judgement.reason}"),
            ("caution", CAUTION),
            ("judged by", self.scorer),
            ("pairs labelled by", self._labelled()),
            ("gold pairs", self.trust),
            *self.notes,
            *_comparison_lines("all prompts", self.overall, self.judged),
            *(
                line
                for name, comparison in self.by_category.items()
                for line in _comparison_lines(_readable(name), comparison, self.judged)
            ),
            ("this call", f"{self.generated_now} answers generated; {self.seconds:.0f} s"),
        ]

    def summary(self) -> list[tuple[str, str]]:
        wins = f"{self.overall.win_rate.percent()} of {self.overall.prompts} held-out prompts"
        return [
            ("win rate against Stage 2", wins + self.judged),
            ("the judge, on gold pairs", self.trust),
            *(
                (f"refusals of {_readable(name)}", _change(comparison.refusals))
                for name, comparison in self.by_category.items()
            ),
            ("verdict", f"{self.judgement.verdict}: {self.judgement.reason}"),
        ]

    def _labelled(self) -> str:
        if self.labeller is None:
            return "not known: they came from elsewhere"
        if self.judged:
            return "the same: that it prefers Stage 3 says that training obeyed; name another judge in evaluate.scorer"
        return self.labeller


@holds_workspace
def evaluate_models(settings: Settings, workspace: Workspace) -> EvaluateReport:
    """Compare the trained adapter with Stage 2 and write evaluation/responses.jsonl and reports/refusals.png.

    The judge is evaluate.scorer, or the scorer that labels where none is named; beside its own labels' win rate that is said.
    Answers are kept batch by batch in evaluation/answers.jsonl, by what they depend on: a killed call resumes, another
    reward model scores again without generating, and a newly trained adapter reuses Stage 2's answers.

    Raises:
        CaiError: there is no adapter or no held-out prompt, or a model cannot be loaded.
    """
    adapter = workspace.require(workspace.adapter, made_by="train")
    prompts = _held_out(settings, workspace)
    fingerprint = _fingerprint(settings, workspace)
    if (report := workspace.finished("evaluate", fingerprint, EvaluateReport)) is not None:
        return report.model_copy(update={"trust": trust_line(load_calibration(workspace, report.scorer))})

    require_ready(settings, workspace, "evaluate")
    use_threads(settings.threads)
    started = time.monotonic()
    store = JsonlStore(workspace.answers)
    runs = {STAGE2: run_of(settings, settings.models.adapter), STAGE3: run_of(settings, str(adapter))}
    answers = known_answers(store, prompts, runs)
    missing = {stage: [prompt for prompt in prompts if (prompt.id, stage) not in answers] for stage in runs}
    generated = sum(map(len, missing.values()))
    if generated:
        require_scorer(settings, workspace, "evaluate")
        if answers:
            workspace.say("evaluate", f"{len(answers)} of {len(prompts) * 2} answers are there already")
        answers |= _generate(settings, adapter, missing, runs, store)
        release_memory()  # the reward model needs the room

    judge_settings = scored_by(settings, settings.evaluate.scorer)
    responses, notes = _scored(judge_settings, prompts, answers, JsonlStore(workspace.evaluation_scores))
    write_jsonl(workspace.responses, (response.model_dump() for response in responses))
    report = _report(
        fingerprint[_JUDGE], fingerprint[_LABELLER], responses, notes, generated, time.monotonic() - started
    )
    report = report.model_copy(update={"trust": trust_line(load_calibration(workspace, report.scorer))})
    picture = save_evaluation_plot(report.overall, report.by_category, workspace.picture("refusals"))
    workspace.note_metrics("evaluate", report)
    workspace.seal("evaluate", fingerprint, [workspace.responses, picture], report)
    return report


def _held_out(settings: Settings, workspace: Workspace) -> list[Prompt]:
    """The held-out prompts; a limit takes the same mixture of them for each seed."""
    path = workspace.require(workspace.eval_prompts, made_by="generate")
    prompts = [Prompt.model_validate(row) for row in read_jsonl(path)]
    if not prompts:
        raise CaiError(
            "No prompt was held out for evaluation.",
            "Set prompts.eval_count (or prompts.eval_source) and generate in a new --workspace.",
        )
    prompts.sort(key=lambda prompt: hashlib.sha256(f"{settings.seed}:evaluate:{prompt.id}".encode()).digest())
    return prompts[: settings.evaluate.limit]


def _fingerprint(settings: Settings, workspace: Workspace) -> Fingerprint:
    return {
        _JUDGE: scorer_identity(scored_by(settings, settings.evaluate.scorer)),
        _LABELLER: labeller_of(workspace),
        "evaluate.limit": settings.evaluate.limit,
        "stage 2": basis_of(settings, settings.models.adapter),
        "input adapter": file_hash(workspace.adapter),
        "input eval prompts": file_hash(workspace.eval_prompts),
    }


def _generate(
    settings: Settings, adapter: Path, missing: dict[str, list[Prompt]], runs: dict[str, str], store: JsonlStore
) -> Answers:
    policies = load_policies(settings.models, adapter)
    answers: Answers = {}
    with tqdm(total=sum(map(len, missing.values())), desc="evaluate", unit="answer") as bar:
        try:
            for stage, prompts in missing.items():
                with policies.playing(stage) as generator:
                    keep = Keep(store, runs[stage], stage, settings.evaluate.batch_size)
                    answers |= answer(settings, generator, prompts, keep, bar)
        except KeyboardInterrupt:
            raise StoppedByHand(
                f"Stopped by hand: {bar.n} of {bar.total} answers are on disk.", "Run `cai evaluate` again to go on."
            ) from None
    return answers


def _scored(
    settings: Settings, prompts: list[Prompt], answers: Answers, store: JsonlStore
) -> tuple[list[Response], list[tuple[str, str]]]:
    asked = [
        ResponsePair(prompt.messages, answers[prompt.id, STAGE2].text, answers[prompt.id, STAGE3].text)
        for prompt in prompts
    ]
    judged = judge_pairs(settings, asked, store)
    responses = [
        _response(prompt, answers[prompt.id, STAGE2], answers[prompt.id, STAGE3], *scores)
        for prompt, scores in zip(prompts, judged.scores, strict=True)
    ]
    return responses, judged.notes


def _response(
    prompt: Prompt, before: Completion, after: Completion, score_before: float, score_after: float
) -> Response:
    return Response(
        id=prompt.id,
        category=prompt.category,
        prompt=prompt.text,
        stage2=before.text,
        stage3=after.text,
        stage2_score=score_before,
        stage3_score=score_after,
        stage2_refuses=is_refusal(before.text),
        stage3_refuses=is_refusal(after.text),
        stage2_finish=before.finish,
        stage3_finish=after.finish,
    )


def _report(
    scorer: str,
    labeller: str | None,
    responses: list[Response],
    notes: list[tuple[str, str]],
    generated: int,
    seconds: float,
) -> EvaluateReport:
    overall, by_category = compare(responses), compare_by_category(responses)
    return EvaluateReport(
        scorer=scorer,
        labeller=labeller,
        notes=notes,
        judgement=judge(overall, by_category.get(BENIGN), is_own_labeller(scorer, labeller)),
        overall=overall,
        by_category=by_category,
        generated_now=generated,
        seconds=seconds,
    )


def _comparison_lines(name: str, comparison: Comparison, judged: str) -> list[tuple[str, str]]:
    lines = [
        ("prompts", str(comparison.prompts)),
        (
            "win rate",
            f"{comparison.win_rate.percent()}: {comparison.wins} won, {comparison.ties} tied, {comparison.losses} lost{judged}",
        ),
        (
            "mean reward difference",
            "too few prompts" if comparison.mean_delta is None else comparison.mean_delta.number(),
        ),
        ("refusals", _change(comparison.refusals)),
        ("cut off at the token limit", _change(comparison.truncated)),
        ("degenerate answers", _change(comparison.degenerate)),
        ("topic fit of answers", f"{_fit(comparison.fit_before)} → {_fit(comparison.fit_after)}"),
        ("mean length", f"{comparison.words_before:.0f} → {comparison.words_after:.0f} words"),
    ]
    return [(f"{name}: {what}", figure) for what, figure in lines]


def _change(change: Change) -> str:
    return f"{change.before.percent()} → {change.after.percent()}, {change.difference.points()}"


def _fit(fit: Interval | None) -> str:
    return "too few answers" if fit is None else fit.percent()


def _readable(category: str) -> str:
    return READABLE_CATEGORY.get(category, category)
