"""Is Stage 3 better than Stage 2? All policies answer the same held-out prompts. A killed evaluation resumes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cai_helpers import screen
from cai_helpers.calibration.accuracy import load_calibration, trust_line
from cai_helpers.contents import file_hash
from cai_helpers.errors import StoppedByHand
from cai_helpers.evaluation.adapter import exchanged, weights_hash
from cai_helpers.evaluation.answers import Answers, Keep, answer, basis_of, known_answers, run_of, seeded
from cai_helpers.evaluation.assembly import judged, likelihoods_wanted, responses_of
from cai_helpers.evaluation.categories import measure as measure_categories
from cai_helpers.evaluation.comparison import compare, compare_by_category
from cai_helpers.evaluation.figures import AGAIN, BASE, HELD_OUT, STAGE2, STAGE3, Comparison, Response, TwoOptions
from cai_helpers.evaluation.labeller import is_own_labeller, labeller_of
from cai_helpers.evaluation.likelihood import Likelihood, benign_texts, options_texts, perplexity, two_options
from cai_helpers.evaluation.policies import Policies, load_policies, policies_of
from cai_helpers.evaluation.power import power_line
from cai_helpers.evaluation.prompt_sets import Asked, Options, held_out, other_sets, sources_of, two_option_sets
from cai_helpers.evaluation.report import EvaluateReport
from cai_helpers.evaluation.table import table_of
from cai_helpers.evaluation.verdict import judge
from cai_helpers.inspection.blind_answers import read_human_wins
from cai_helpers.machine.hardware import use_threads
from cai_helpers.machine.processes import is_main_process, this_process
from cai_helpers.manifest import Fingerprint
from cai_helpers.measures.refusals import RULES
from cai_helpers.models.batches import release_all
from cai_helpers.models.hub import EMBEDDED
from cai_helpers.pages.evaluation_picture import save_evaluation_plot
from cai_helpers.readiness.needs import require_ready, require_scorer
from cai_helpers.schema import Prompt
from cai_helpers.scoring.judge import scored_by, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.shares import own_share, take_in
from cai_helpers.store import JsonlStore, write_jsonl
from cai_helpers.workspace import Workspace, holds_workspace

_JUDGE, _LABELLER = "models.reward", "pairs labelled by"  # in the fingerprint


@holds_workspace
def evaluate_models(settings: Settings, workspace: Workspace) -> EvaluateReport:
    """Compare the trained adapter with Stage 2 and the base model; write evaluation/responses.jsonl and a picture.

    The verdict rests on the held-out prompts; the built-in sets and the files of evaluate.prompts are reported beside it.
    The judge is evaluate.scorer, or the scorer that labels where none is named; beside its own labels' win rate that is said.
    Answers are kept batch by batch in evaluation/answers.jsonl, by what they depend on: a killed call resumes, another
    reward model scores again without generating, and a newly trained adapter reuses the other policies' answers. Under
    `accelerate launch` prompts and texts are shared out; the rows are the same as from one process.

    Raises:
        CaiError: there is no adapter or no held-out prompt, a file cannot be read, or a model cannot be loaded.
    """
    adapter = workspace.require(workspace.adapter, made_by="train")
    asked = [*held_out(settings, workspace), *other_sets(settings)]
    fingerprint = _fingerprint(settings, workspace)
    if note := exchanged(workspace):
        workspace.say("evaluate", f"WARNING: {note}. It is evaluated as it is, and the verdict says so.")
    if (report := workspace.finished("evaluate", fingerprint, EvaluateReport)) is not None:
        return report.model_copy(update=_of_today(workspace, report.scorer))

    power = power_line([one.prompt.category for one in asked if one.prompt_set == HELD_OUT], settings.evaluate.margin)
    workspace.say("evaluate", power)
    require_ready(settings, workspace, "evaluate")
    use_threads(settings.threads)
    started = time.monotonic()
    measured = _measure(settings, workspace, asked, adapter)
    report = _report(settings, fingerprint, measured).model_copy(
        update={
            "power": power,
            "adapter": weights_hash(adapter) or "",
            "seconds": time.monotonic() - started,
            **_of_today(workspace, fingerprint[_JUDGE]),
        }
    )
    if not is_main_process():
        return report
    write_jsonl(workspace.responses, (response.model_dump() for response in measured.responses))
    picture = save_evaluation_plot(report.overall, report.by_category, workspace.picture("refusals"))
    workspace.note_metrics("evaluate", report)
    workspace.seal("evaluate", fingerprint, [workspace.responses, picture], report)
    return report


class _Measured(NamedTuple):
    """All that the models and the judge have to say."""

    responses: list[Response]
    two_options: list[TwoOptions]
    perplexity: dict[str, float]
    notes: list[tuple[str, str]]  # of the judge
    generated: int


def _of_today(workspace: Workspace, scorer: str) -> dict[str, str]:
    """What may change after the evaluation is sealed."""
    human = read_human_wins(workspace)
    return {
        "trust": trust_line(load_calibration(workspace, scorer)),
        "exchanged": exchanged(workspace),
        "human": human.line() if human else "",
    }


def _fingerprint(settings: Settings, workspace: Workspace) -> Fingerprint:
    evaluate = settings.evaluate
    return {
        _JUDGE: scorer_identity(scored_by(settings, evaluate.scorer)),
        _LABELLER: labeller_of(workspace),
        "refusals counted by rules": RULES,
        "evaluate.limit": evaluate.limit,
        "evaluate.builtin": evaluate.builtin,
        "evaluate.margin": evaluate.margin,
        "evaluate.prompts and two_options": sources_of(settings),
        "policies": policies_of(settings.models, evaluate),
        "stage 2": basis_of(settings, settings.models.adapter),
        "input adapter": file_hash(workspace.adapter),
        "input eval prompts": file_hash(workspace.eval_prompts),
    }


def _measure(settings: Settings, workspace: Workspace, asked: Sequence[Asked], adapter: Path) -> _Measured:
    """Answers, then their likelihoods under the policies, then the judge, which needs the room."""
    adapters = _adapters(settings, adapter)
    policies = list(adapters)
    load = functools.cache(lambda: load_policies(settings.models, adapter))
    answers, generated = _answers(settings, workspace, asked, adapters, load)
    options = two_option_sets(settings)
    likelihood = _likelihood(settings, workspace, asked, answers, adapters, options, load)
    del load
    release_all()
    judge_settings = scored_by(settings, settings.evaluate.scorer)
    judgements = judged(judge_settings, asked, answers, JsonlStore(workspace.evaluation_scores))
    return _Measured(
        responses=responses_of(asked, answers, judgements, likelihood, policies),
        two_options=[two_options(likelihood, name, pairs, policies) for name, pairs in options.items()],
        perplexity={policy: perplexity(likelihood, policy) for policy in policies if policy != AGAIN},
        notes=judgements.notes,
        generated=generated,
    )


def _adapters(settings: Settings, adapter: Path) -> dict[str, str | None]:
    """Policy → its adapter, for all that answer."""
    stage2 = settings.models.adapter
    all_of = {BASE: None, STAGE2: stage2, STAGE3: str(adapter), AGAIN: stage2}
    return {policy: all_of[policy] for policy in policies_of(settings.models, settings.evaluate)}


def _answers(
    settings: Settings,
    workspace: Workspace,
    asked: Sequence[Asked],
    adapters: dict[str, str | None],
    load: Callable[[], Policies],
) -> tuple[Answers, int]:
    """All answers, and how many of them were generated just now."""
    processes, store = this_process(), JsonlStore(workspace.answers)
    take_in(store)
    processes.wait()
    runs = {policy: run_of(seeded(settings, policy), adapter) for policy, adapter in adapters.items()}
    prompts = [one.prompt for one in asked]
    known = known_answers(store, prompts, runs)
    missing = {
        policy: [prompt for prompt in _prompts_of(policy, asked) if (prompt.id, policy) not in known] for policy in runs
    }
    generated = sum(map(len, missing.values()))
    if not generated:
        return known, 0
    if processes.is_main:
        require_scorer(settings, workspace, "evaluate")
    if known:
        workspace.say("evaluate", f"{len(known)} of {len(known) + generated} answers are there already")
    with own_share(store, processes) as share:
        own = {policy: processes.share(rows, lambda prompt: len(prompt.text)) for policy, rows in missing.items()}
        _generate(settings, own, runs, share, load)
    return known_answers(store, prompts, runs), generated


def _prompts_of(policy: str, asked: Sequence[Asked]) -> list[Prompt]:
    """What a policy answers, each prompt once; Stage 2 again only what the noise is measured on."""
    wanted = {one.prompt.id: one.prompt for one in asked if policy != AGAIN or one.prompt_set == HELD_OUT}
    return list(wanted.values())


def _generate(
    settings: Settings,
    missing: dict[str, list[Prompt]],
    runs: dict[str, str],
    store: JsonlStore,
    load: Callable[[], Policies],
) -> None:
    """Write the answers that are missing to `store`."""
    total = sum(map(len, missing.values()))
    if not total:
        return
    policies = load()
    with screen.bar(total, "evaluate", "answer", hidden=not is_main_process()) as bar:
        try:
            for policy, prompts in missing.items():
                with policies.playing(policy) as generator:
                    keep = Keep(store, runs[policy], policy, settings.evaluate.batch_size)
                    answer(seeded(settings, policy), generator, prompts, keep, bar)
        except KeyboardInterrupt:
            raise _stopped(f"{bar.n} of {bar.total} answers are on disk.") from None


def _likelihood(
    settings: Settings,
    workspace: Workspace,
    asked: Sequence[Asked],
    answers: Answers,
    adapters: dict[str, str | None],
    options: dict[str, list[Options]],
    load: Callable[[], Policies],
) -> Likelihood:
    likelihood = Likelihood(settings, adapters, JsonlStore(workspace.log_probabilities))
    wanted = likelihoods_wanted(asked, answers, list(adapters))
    of_all = [*benign_texts(), *(text for pairs in options.values() for text in options_texts(pairs))]
    try:
        likelihood.measure({policy: [*texts, *of_all] for policy, texts in wanted.items()}, load)
    except KeyboardInterrupt:
        raise _stopped("the answers and the log-probabilities so far are on disk.") from None
    return likelihood


def _stopped(what: str) -> StoppedByHand:
    return StoppedByHand(f"Stopped by hand: {what}", "Run `cai evaluate` again to go on.")


def _report(settings: Settings, fingerprint: Fingerprint, measured: _Measured) -> EvaluateReport:
    scorer, labeller, responses = fingerprint[_JUDGE], fingerprint[_LABELLER], measured.responses
    decides = [response for response in responses if response.prompt_set == HELD_OUT]
    names = dict.fromkeys(response.prompt_set for response in responses if response.prompt_set != HELD_OUT)
    sets: dict[str, dict[str, Comparison]] = {
        name: compare_by_category([response for response in responses if response.prompt_set == name]) for name in names
    }
    toy = settings.models.base.startswith(EMBEDDED)
    return EvaluateReport(
        scorer=scorer,
        labeller=labeller,
        notes=measured.notes,
        judgement=judge(table_of(decides), settings.evaluate.margin, is_own_labeller(scorer, labeller)),
        overall=compare(decides),
        by_category=compare_by_category(decides),
        sets=sets,
        sampled=settings.evaluate.temperature > 0,
        two_options=measured.two_options,
        perplexity=measured.perplexity,
        categories=measure_categories(responses, measured.two_options, toy) if settings.evaluate.builtin != 0 else None,
        generated_now=measured.generated,
        seconds=0.0,
    )
