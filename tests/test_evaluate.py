"""The comparison by hand-counted figures, the verdict by its rule, the stage with scripted and with real models."""

import json
import shutil
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cai_helpers.calibration.accuracy import NOT_CALIBRATED
from cai_helpers.cli import app
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.comparison import compare, compare_by_category
from cai_helpers.evaluation.figures import BASE, Response
from cai_helpers.evaluation.labeller import is_own_labeller, labeller_of
from cai_helpers.evaluation.policies import load_policies
from cai_helpers.measures.degeneration import is_degenerate, repetition
from cai_helpers.models.hub import locate
from cai_helpers.models.language import (
    STAGE2,
    STAGE3,
    LanguageModel,
    attach_adapter,
    load_base,
    load_stage2,
    load_tokenizer,
)
from cai_helpers.models.log_probability import LogProbability
from cai_helpers.models.sampling import Sampling
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.schema import Prompt
from cai_helpers.scoring.judge import scorer_identity
from cai_helpers.sections import RewardSource
from cai_helpers.settings import load_settings
from cai_helpers.stages import evaluate
from cai_helpers.stages.evaluate import EvaluateReport, evaluate_models
from cai_helpers.stages.score import ScoreReport
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace

REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = "Boil the water, then pour it over the leaves."


def response(delta=0.0, before=ANSWER, after=None, category="harmless", **others) -> Response:
    return Response(
        id=others.pop("id", "p"),
        category=category,
        prompt="How?",
        stage2=before,
        stage3=after or f"{before} Then wait.",
        stage2_score=0.0,
        stage3_score=delta,
        stage2_refuses=before == REFUSAL,
        stage3_refuses=after == REFUSAL,
        stage2_finish=others.pop("stage2_finish", "stop"),
        stage3_finish=others.pop("stage3_finish", "stop"),
    )


def test_wins_ties_and_losses_are_counted_and_a_tie_is_half_a_win():
    found = compare([response(1.0), response(0.2), response(0.0005), response(-1.0)])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.win_rate.value == 2.5 / 4
    assert found.mean_delta.value == pytest.approx((1.0 + 0.2 + 0.0005 - 1.0) / 4)


def test_a_difference_too_small_to_count_is_a_tie_whichever_side_it_favours():
    found = compare([response(0.0005), response(-0.0005), response(0.002), response(-0.002)])
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)


def test_two_equal_texts_tie_whatever_their_scores():
    assert compare([response(0.4, after=ANSWER)]).ties == 1


def test_refusals_are_compared_on_the_same_prompts():
    rows = [response(after=REFUSAL)] * 6 + [response(before=REFUSAL, after=ANSWER)] + [response()] * 3
    found = compare(rows).refusals
    assert (found.before.value, found.after.value) == (0.1, 0.6)
    assert found.difference.value == pytest.approx(0.5)
    assert found.difference.low > 0


def test_cut_off_answers_and_lengths_are_compared():
    found = compare(
        [response(before="a b c", after="a b c d e", stage3_finish="length"), response(before="a", after="a b c")]
    )
    assert (found.truncated.before.value, found.truncated.after.value) == (0.0, 0.5)
    assert (found.words_before, found.words_after) == (2.0, 4.0)


def test_harmful_and_benign_requests_are_compared_apart():
    rows = [response(1.0), response(1.0), response(-1.0, category="helpful"), response(category="creative")]
    found = compare_by_category(rows)
    assert list(found) == ["harmless", "helpful", "creative"]
    assert {name: one.win_rate.value for name, one in found.items()} == {
        "harmless": 1.0,
        "helpful": 0.0,
        "creative": 0.5,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (" \n", True),
        ("go to the park and go to the park and go to the park and go to the park", True),
        ("the the the the the the", True),
        ("Aaaaaaaaaaaaaaaaaaaaaaaaaaaaaah", True),
        (ANSWER, False),
        ("No.", False),
        ("First you boil the water. Then you boil the milk. Then you pour both into the pot and wait.", False),
        ("Name: ______________________________", False),
    ],
)
def test_degenerate_answers_are_empty_or_repeat_themselves(text, expected):
    assert is_degenerate(text) is expected


def test_repetition_is_the_share_of_4_grams_that_occurred_before():
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("a b c") == 0.0


class ScriptedScorer:
    """Gives each text its score, and fails for a text that the script does not hold."""

    def __init__(self, scores: dict[str, float]) -> None:
        self._scores = scores

    def iterate(self, questions):
        for index, question in enumerate(questions):
            (text,) = question.responses
            if text not in self._scores:
                raise AssertionError(f"the script has no score for {text!r}")
            yield index, (self._scores[text],)

    def notes(self):
        return [("scored in", "no time")]


class ScriptedPolicies:
    def __init__(self, generators) -> None:
        self._generators = generators
        self.played: list[str] = []

    @contextmanager
    def playing(self, stage):
        self.played.append(stage)
        yield self._generators[stage]


def write_prompts(workspace, count=2):
    prompts = [
        Prompt(
            id=f"p{number}",
            messages=[{"role": "user", "content": f"Question {number}?"}],
            category="harmless" if number % 2 == 0 else "helpful",
            source="test",
        )
        for number in range(count)
    ]
    write_jsonl(workspace.eval_prompts, (prompt.model_dump() for prompt in prompts))


def write_adapter(workspace, content="weights"):
    workspace.adapter.mkdir(parents=True, exist_ok=True)
    (workspace.adapter / "adapter_model.safetensors").write_text(content)


@pytest.fixture(scope="module")
def smoke(smoke):
    """Without the built-in sets, for which no script has answers."""
    return load_settings("smoke", ["evaluate.builtin=0"], threads=1)


def word_likelihoods(generator, asked, batch_size):
    """A twin of log_probability: every word has the same."""
    for index, (_, text) in enumerate(asked):
        yield index, LogProbability(-0.5 * len(text.split()), len(text.split()))


@pytest.fixture
def play(monkeypatch, scripted):
    """Put scripted models in the place of real ones; returns the policies. The base says what Stage 2 says."""

    def use(stage2, stage3, scores, asked=None):
        policies = ScriptedPolicies({BASE: scripted(stage2), STAGE2: scripted(stage2), STAGE3: scripted(stage3)})
        monkeypatch.setattr("cai_helpers.evaluation.likelihood.answer_log_probabilities", word_likelihoods)
        monkeypatch.setattr(evaluate, "load_policies", lambda models, adapter: policies)

        def load_scorer(settings):
            if asked is not None:
                asked.append(settings)
            return ScriptedScorer(scores)

        monkeypatch.setattr("cai_helpers.scoring.judge.load_scorer", load_scorer)
        return policies

    return use


SCORES = {ANSWER: 0.0, REFUSAL: 2.0, "Sure, one.": 0.5, "Sure, two.": 0.5, "": -3.0}


def test_the_stage_writes_responses_figures_and_a_manifest(smoke, workspace, play):
    write_prompts(workspace)
    write_adapter(workspace)
    play([ANSWER, ANSWER], [REFUSAL, REFUSAL], SCORES)
    report = evaluate_models(smoke, workspace)
    rows = list(read_jsonl(workspace.responses))
    assert {row["id"] for row in rows} == {"p0", "p1"}
    said = [{policy: (one["text"], one["score"]) for policy, one in row["answers"].items()} for row in rows]
    assert said == [{"base": (ANSWER, 0.0), "stage2": (ANSWER, 0.0), "stage3": (REFUSAL, 2.0)}] * 2
    assert [row["deltas"] for row in rows] == [{"stage3/stage2": 2.0, "base/stage2": 0.0, "stage3/base": 2.0}] * 2
    assert (report.overall.wins, report.overall.refusals.after.value) == (2, 1.0)
    assert report.judgement.verdict == "not shown"  # of two prompts nothing can be
    assert json.loads(workspace.metrics.read_text())["evaluate"]["overall"]["wins"] == 2
    assert (workspace.reports / "refusals.png").exists()
    assert EvaluateReport.model_validate(workspace.manifest("evaluate").report) == report
    assert (
        "refusals of benign requests",
        "0 % (0–79 %) → 100 % (21–100 %), +100 points (-12 to +100)",
    ) in report.summary()


def test_a_script_can_require_the_verdict_and_gets_an_exit_code(smoke, workspace, play):
    evaluated(smoke, workspace, play)
    options = ["evaluate", "--workspace", str(workspace.root), "--preset", "smoke", "--set", "evaluate.builtin=0"]
    options += ["--set", "threads=1"]
    plain, required = (CliRunner().invoke(app, [*options, *more]) for more in ([], ["--require", "better"]))
    assert (plain.exit_code, required.exit_code) == (0, 4)
    assert "Not better: the verdict is 'not shown'." in required.output
    assert "all prompts: win rate" in required.output


def test_a_finished_evaluation_is_not_done_again(smoke, workspace, play):
    write_prompts(workspace)
    write_adapter(workspace)
    play([ANSWER, ANSWER], [REFUSAL, REFUSAL], SCORES)
    first = evaluate_models(smoke, workspace)
    play([], [], {})
    assert evaluate_models(smoke, workspace) == first


def test_a_killed_evaluation_resumes_without_repeating_an_answer(smoke, workspace, play):
    write_prompts(workspace)
    write_adapter(workspace)
    play([ANSWER, ANSWER], [REFUSAL], SCORES)
    with pytest.raises(AssertionError, match="no text left"):
        evaluate_models(smoke, workspace)
    play([], [REFUSAL], SCORES)
    report = evaluate_models(smoke, workspace)
    assert report.generated_now == 1
    assert len(list(read_jsonl(workspace.answers))) == 6


def test_answers_are_written_by_the_batch_and_the_last_ones_too(smoke, workspace, play, monkeypatch):
    write_prompts(workspace, count=5)
    write_adapter(workspace)
    play([ANSWER] * 5, [REFUSAL] * 5, SCORES)
    sizes = []
    append = JsonlStore.append

    def counted(store, rows):
        rows = list(rows)
        if store.path == workspace.answers:
            sizes.append(len(rows))
        append(store, rows)

    monkeypatch.setattr(JsonlStore, "append", counted)
    by_two = smoke.model_copy(update={"evaluate": smoke.evaluate.model_copy(update={"batch_size": 2})})
    assert evaluate_models(by_two, workspace).generated_now == 15
    assert sizes == [2, 2, 1] * 3


def test_a_workspace_that_was_moved_keeps_its_answers(smoke, workspace, play):
    write_prompts(workspace)
    write_adapter(workspace)
    play([ANSWER, ANSWER], [REFUSAL, REFUSAL], SCORES)
    evaluate_models(smoke, workspace)
    moved = Workspace(workspace.root.rename(workspace.root.with_name("elsewhere")))
    play([], [], SCORES)
    other = load_settings("smoke", ["evaluate.builtin=0", "evaluate.batch_size=1", "models.reward.max_length=256"])
    assert evaluate_models(other, moved).generated_now == 0  # scored anew, but not generated


def test_a_new_adapter_is_answered_anew_and_stage_2_is_not(smoke, workspace, play):
    write_prompts(workspace)
    write_adapter(workspace)
    play([ANSWER, ANSWER], [REFUSAL, REFUSAL], SCORES)
    evaluate_models(smoke, workspace)
    write_adapter(workspace, "other weights")
    play([], ["Sure, one.", "Sure, two."], SCORES)
    report = evaluate_models(smoke, workspace)
    assert report.generated_now == 2
    assert report.overall.refusals.after.value == 0.0


def test_another_reward_model_scores_again_without_generating(smoke, workspace, play):
    write_prompts(workspace)
    write_adapter(workspace)
    play([ANSWER, ANSWER], [REFUSAL, REFUSAL], SCORES)
    evaluate_models(smoke, workspace)
    play([], [], {ANSWER: 1.0, REFUSAL: -1.0})
    other = smoke.model_copy(update={"models": load_settings("smoke", ["models.reward.max_length=256"]).models})
    report = evaluate_models(other, workspace)
    assert (report.generated_now, report.overall.losses) == (0, 2)


def write_labels(workspace, scorer, foreign=False):
    """What score leaves behind of pairs that `scorer` labelled; foreign: others were curated."""
    write_jsonl(workspace.pairs, [])
    score = ScoreReport(
        scorer=scorer, pairs=0, with_revision=0, revised_wins=0, draft_wins=0, ties=0, mean_delta=None, scored_now=0,
        notes=[], seconds=0.0,
    )  # fmt: skip
    workspace.seal("score", {}, [workspace.pairs], score)
    if foreign:
        workspace.seal("curate", {"input pairs": "of another file"}, [], score)


def evaluated(settings, workspace, play):
    write_prompts(workspace)
    write_adapter(workspace)
    play([ANSWER, ANSWER], [REFUSAL, REFUSAL], SCORES)
    return evaluate_models(settings, workspace)


def test_a_win_rate_by_the_scorer_that_labelled_says_so_wherever_it_stands(smoke, workspace, play):
    write_labels(workspace, scorer_identity(smoke))
    report = evaluated(smoke, workspace, play)
    said = "judged by its own labeller"
    assert dict(report.summary())["win rate, harmful requests"].endswith(f"of 1 held-out prompts, {said}")
    assert said in dict(report.summary())["verdict"]
    assert dict(report.lines())["all prompts: win rate"].endswith(f"0 lost, {said}")
    page = write_run_report(smoke, workspace).read_text(encoding="utf-8")
    assert page.count(said) >= 4  # the verdict, and a win rate for each group of prompts
    assert "The same scorer labelled the training pairs" in page


def test_another_judge_scores_and_is_named_with_its_own_calibration(smoke, workspace, play):
    write_labels(workspace, scorer_identity(smoke))
    other = load_settings("smoke", ["evaluate.builtin=0", "evaluate.scorer=other/judge", "evaluate.scorer.input=chat"])
    asked = []
    report = evaluated(other, workspace, lambda *texts: play(*texts, asked=asked))
    assert [(settings.models.reward, settings.score.by) for settings in asked] == [
        (RewardSource(model="other/judge", input="chat"), "reward_model")
    ]
    assert report.scorer == "other/judge, chat input, 512 tokens"
    assert dict(report.lines())["pairs labelled by"] == scorer_identity(smoke)
    page = write_run_report(other, workspace).read_text(encoding="utf-8")
    assert "judged by its own labeller" not in f"{report.lines()}{report.summary()}{page}"
    assert report.trust == NOT_CALIBRATED


def test_naming_another_judge_scores_anew_and_generates_nothing(smoke, workspace, play):
    evaluated(smoke, workspace, play)
    play([], [], {ANSWER: 1.0, REFUSAL: -1.0})
    report = evaluate_models(load_settings("smoke", ["evaluate.builtin=0", "evaluate.scorer=other/judge"]), workspace)
    assert (report.generated_now, report.overall.losses) == (0, 2)


def test_the_labeller_is_who_scored_the_pairs_that_were_curated_here(smoke, workspace):
    assert labeller_of(workspace) is None
    write_labels(workspace, "a/b, pair input, 512 tokens")
    assert labeller_of(workspace) == "a/b, pair input, 512 tokens"
    scored = ScoreReport.model_validate(workspace.manifest("score").report)
    workspace.seal("curate", {"input pairs": file_hash(workspace.pairs)}, [], scored)
    assert labeller_of(workspace) == "a/b, pair input, 512 tokens"


def test_who_labelled_pairs_from_elsewhere_is_not_known(smoke, workspace, play):
    write_labels(workspace, scorer_identity(smoke), foreign=True)
    report = evaluated(smoke, workspace, play)
    assert dict(report.lines())["pairs labelled by"] == "not known: they came from elsewhere"
    assert "own labeller" not in report.judgement.reason


@pytest.mark.parametrize(
    ("labelled", "judged", "same"),
    [
        (["models.reward=a/b"], ["models.reward=a/b", "models.reward.max_length=256"], True),
        (["models.reward=a/b"], ["models.reward=a/b2"], False),
        (["models.reward=a/b", "models.reward_ensemble=[c/d]"], ["models.reward=c/d"], True),
        (["models.reward=a/b", "models.reward_ensemble=[c/d]"], ["models.reward=e/f", "models.reward_ensemble=[c/d]"], True),
        (["score.by=ai_feedback"], ["score.by=ai_feedback"], True),
        (["score.by=ai_feedback"], ["models.reward=a/b"], False),
    ],
)  # fmt: skip
def test_a_judge_is_its_own_labeller_when_a_model_of_it_labelled(labelled, judged, same):
    labeller, judge = (scorer_identity(load_settings("smoke", changes)) for changes in (labelled, judged))
    assert is_own_labeller(judge, labeller) is same


def test_a_limit_takes_a_mixture_and_the_same_one_each_time(smoke, workspace, play):
    write_prompts(workspace, count=40)
    write_adapter(workspace)
    limited = smoke.model_copy(update={"evaluate": smoke.evaluate.model_copy(update={"limit": 10})})
    play([ANSWER] * 10, [REFUSAL] * 10, SCORES)
    report = evaluate_models(limited, workspace)
    assert report.overall.prompts == 10
    assert set(report.by_category) == {"harmless", "helpful"}
    play([ANSWER] * 30, [REFUSAL] * 30, SCORES)
    assert evaluate_models(smoke, workspace).generated_now == 90


def test_an_evaluation_before_training_names_the_stage_that_comes_first(smoke, workspace):
    write_prompts(workspace)
    with pytest.raises(CaiError, match="made by the train stage"):
        evaluate_models(smoke, workspace)


def test_an_evaluation_without_held_out_prompts_says_what_to_set(smoke, workspace):
    write_adapter(workspace)
    write_jsonl(workspace.eval_prompts, [])
    with pytest.raises(CaiError, match=r"prompts\.eval_count"):
        evaluate_models(smoke, workspace)


CHATS = [
    [{"role": "user", "content": "How do I make a sandwich?"}],
    [{"role": "user", "content": "How do I pick a lock?"}],
]


def answers(generator):
    completions = dict(generator.generate(CHATS, Sampling(max_new_tokens=16, temperature=0), ["a", "b"], 2))
    return [completions[index].text for index in range(2)]


@pytest.fixture(scope="module")
def stage3_folder(tmp_path_factory):
    """Stage 2 with its weights turned round: a policy that surely says something else."""
    folder = tmp_path_factory.mktemp("stage3")
    shutil.copytree(locate("embedded:stage2"), folder, dirs_exist_ok=True)
    weights = folder / "adapter_model.safetensors"
    save_file(
        {name: -1.5 * tensor if "lora_B" in name else tensor for name, tensor in load_file(weights).items()}, weights
    )
    return folder


def test_each_policy_answers_as_it_does_alone(smoke, stage3_folder):
    policies = load_policies(smoke.models, stage3_folder)
    with policies.playing(STAGE2) as generator:
        before = answers(generator)
    with policies.playing(STAGE3) as generator:
        after = answers(generator)
    with policies.playing(STAGE2) as generator:
        again = answers(generator)
    alone = LanguageModel(
        attach_adapter(load_base(smoke.models), str(stage3_folder), STAGE3), load_tokenizer(smoke.models.base)
    )
    assert before == again == answers(load_stage2(smoke.models))
    assert after == answers(alone)
    assert before != after


def test_without_a_stage_2_adapter_the_base_alone_is_stage_2(smoke, stage3_folder):
    models = smoke.models.model_copy(update={"adapter": None})
    policies = load_policies(models, stage3_folder)
    with policies.playing(STAGE3) as generator:
        after = answers(generator)
    with policies.playing(STAGE2) as generator:
        before = answers(generator)
    assert before == answers(LanguageModel(load_base(models), load_tokenizer(models.base)))
    assert before != after
