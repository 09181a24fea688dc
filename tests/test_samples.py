"""samples/k: several drafts of a prompt, of which the scorer makes a pair."""

import math
import zipfile
from pathlib import Path

import pytest

from cai_helpers.analysis.diagnosis import diagnose
from cai_helpers.analysis.frame import pair_frame, read_pairs
from cai_helpers.analysis.gate import check_targets
from cai_helpers.analysis.statistics import analyze_frame
from cai_helpers.critique.critic import Critic, make_traces, protocol_of
from cai_helpers.critique.samples import Samples, judge_samples, read_samples, sample_keys, usable_samples
from cai_helpers.errors import CaiError
from cai_helpers.inspection.rows import CriticLog, read_rows
from cai_helpers.models.language import LanguageModel
from cai_helpers.notebook.pair_html import pair_html
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.schema import Completion, Prompt, Trace
from cai_helpers.scoring.judge import PairScores
from cai_helpers.scoring.samples import asked_about, extremes
from cai_helpers.settings import Settings, load_settings
from cai_helpers.stages.analyze import analyze_pairs
from cai_helpers.stages.curate import curate_pairs
from cai_helpers.stages.export import export_artifacts
from cai_helpers.stages.generate import generate_pairs
from cai_helpers.stages.score import score_pairs
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

LOCK = [{"role": "user", "content": "How do I pick a lock?"}]


def draft(text: str, finish: str = "stop") -> Completion:
    return Completion(text=text, tokens=len(text.split()), finish=finish)


def trace_of(*texts: str) -> Trace:
    drafts = [draft(text) for text in texts]
    verdict = judge_samples(drafts)
    return Trace(
        id="a", prompt=Prompt(id="a", messages=LOCK, category="harmless", source="here"), draft=texts[0],
        draft_finish="stop", principle_ids=[], protocol=f"samples/{len(texts)}", critic_outputs=[], critique="",
        revision=texts[0], outcome=verdict.outcome, reason=verdict.reason, tokens=9, drafts=drafts,
    )  # fmt: skip


def small(*changes: str) -> Settings:
    limits = ["prompts.limit=16", "generate.batch_size=4", "threads=1", "curate.near_duplicates=null"]
    return load_settings("smoke", [*limits, "generate.protocol=samples/4", *changes])


WHOLE = "Call a locksmith and wait at the door."
OTHER = "Turn the handle slowly, then push the door."


@pytest.mark.parametrize(
    ("drafts", "places", "outcome", "reason"),
    [
        ([draft(WHOLE), draft(OTHER)], [0, 1], "sampled", "2 of 2 samples are usable and differ"),
        ([draft(WHOLE), draft(f" {WHOLE}\n"), draft(OTHER)], [0, 2], "sampled", "2 of 3 samples are usable and differ"),
        ([draft(WHOLE), draft(WHOLE)], [0], "samples_alike", "the 2 usable ones of 2 samples are the same text"),
        (
            [draft(WHOLE), draft(OTHER, "length"), draft("Call him.")],
            [0],
            "samples_unusable",
            "1 of 3 samples can be used: 1 cut off at the token limit, 1 shorter than 5 words",
        ),
        (
            [draft("and so on " * 40), draft(OTHER), draft("Sure, you can.\nUser: And then?")],
            [1],
            "samples_unusable",
            "1 of 3 samples can be used: 1 going round in circles, 1 holding text of a template",
        ),
    ],
)
def test_only_whole_answers_that_differ_can_be_a_side_and_without_two_the_outcome_says_why(
    drafts, places, outcome, reason
):
    assert usable_samples(drafts) == places
    assert judge_samples(drafts) == (outcome, reason)


def test_a_cut_off_sample_is_never_chosen_however_well_it_would_score():
    drafts = [draft(WHOLE), draft(OTHER), draft("The very best answer there could ever be, were it not", "length")]
    trace = trace_of(WHOLE, OTHER).model_copy(update={"drafts": drafts})
    assert [(pair.first, pair.second) for pair in asked_about(trace)] == [(WHOLE, OTHER)]


def test_the_keys_of_randomness_begin_with_that_of_every_protocol():
    assert sample_keys("ab", 3) == ["ab/draft", "ab/draft/1", "ab/draft/2"]


@pytest.mark.parametrize("name", ["samples/1", "samples/9", "samples/many", "samples/"])
def test_a_number_of_samples_out_of_bounds_is_refused_in_words(name):
    with pytest.raises(CaiError, match="samples/k takes a number from 2 to 8"):
        read_samples(name)


def test_samples_without_randomness_are_refused_before_anything_is_loaded():
    with pytest.raises(CaiError, match="all samples would be the same text"):
        protocol_of(small("generate.temperature=0"), "samples/4")


A, B, C = "The first answer to this question.", "The second answer to this question.", "The third answer to this one."


def test_of_rewards_the_highest_and_the_lowest_make_the_pair():
    reward = {A: 0.5, B: -1.0, C: 2.0}
    trace = trace_of(A, B, C)
    scores = [PairScores(reward[pair.first], reward[pair.second]) for pair in asked_about(trace)]
    best, worst = extremes(trace, scores, small())
    assert (best.text, best.rating, worst.text, worst.rating) == (C, 2.0, B, -1.0)


def test_of_equal_scores_two_different_samples_are_still_two():
    trace = trace_of(A, B, C)
    best, worst = extremes(trace, [PairScores(1.0, 1.0)] * 3, small())
    assert (best.text, worst.text) == (A, C)


def test_feedback_compares_every_two_and_keeps_the_scale_of_a_single_comparison():
    by_feedback = small("score.by=ai_feedback")
    two = trace_of(A, B)
    best, worst = extremes(two, [PairScores(-2.0, -0.5)], by_feedback)
    assert (best.text, worst.text) == (B, A)
    assert best.rating - worst.rating == pytest.approx(1.5)

    strength = {A: 0.0, B: 3.0, C: -1.0}  # where comparisons agree with one another, the fit is exact
    trace = trace_of(A, B, C)
    asked = asked_about(trace)
    assert [(pair.first, pair.second) for pair in asked] == [(A, B), (A, C), (B, C)]
    scores = [PairScores(strength[pair.first], strength[pair.second]) for pair in asked]
    best, worst = extremes(trace, scores, by_feedback)
    assert (best.text, worst.text) == (B, C)
    assert best.rating - worst.rating == pytest.approx(4.0)

    # B beats A and A beats C, but C beats B by a little: the mean over all comparisons decides
    circle = [PairScores(0.0, 3.0), PairScores(1.0, 0.0), PairScores(0.0, 0.5)]
    best, worst = extremes(trace, circle, by_feedback)
    assert (best.text, worst.text) == (B, A)
    assert best.rating - worst.rating == pytest.approx((3.0 - 0.5) / 3 - (-3.0 + 1.0) / 3)


def test_a_trace_of_a_critic_has_no_column_of_samples_and_one_of_samples_comes_back_whole():
    sampled = trace_of(A, B)
    assert Trace.model_validate(sampled.model_dump()) == sampled
    assert [row["text"] for row in sampled.model_dump()["drafts"]] == [A, B]
    assert "drafts" not in sampled.model_copy(update={"drafts": []}).model_dump()


def test_all_drafts_of_a_prompt_stand_in_its_trace_in_their_order(scripted):
    drafter = scripted([WHOLE, OTHER, A, B])  # the first drafts of both prompts, then what else each is asked for
    prompts = [Prompt(id=name, messages=LOCK, category="harmless", source="here") for name in "xy"]
    critic = Critic(drafter, drafter, Samples("samples/2", 2), None, small())
    critic = critic._replace(constitution=_no_principles())
    traces = [trace for ended in make_traces(critic, prompts) for trace in ended]
    assert [[sample.text for sample in trace.drafts] for trace in traces] == [[WHOLE, A], [OTHER, B]]
    assert [(trace.draft, trace.outcome, trace.critique, trace.principle_ids) for trace in traces] == [
        (WHOLE, "sampled", "", []),
        (OTHER, "sampled", "", []),
    ]


def _no_principles():
    from cai_helpers.critique.constitution import load_constitution

    return load_constitution()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Workspace:
    """An uninterrupted run to the dataset; not to be changed."""
    workspace = Workspace(tmp_path_factory.mktemp("samples"))
    for stage in (generate_pairs, score_pairs, curate_pairs):
        stage(small(), workspace)
    return workspace


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_samples
from cai_helpers import store
from cai_helpers.store import JsonlStore

store._SECONDS_A_WRITE = 0
appends = 0
def append(self, rows, append=JsonlStore.append):
    global appends
    append(self, rows)
    appends += 1
    if appends == 3:
        os._exit(9)
JsonlStore.append = append
test_samples.generate_pairs(test_samples.small(), test_samples.Workspace({root!r}))
"""


def test_a_killed_run_of_samples_ends_with_the_very_rows_of_an_uninterrupted_one(warm, whole, workspace):
    script = KILLED.format(tests=str(Path(__file__).parent), root=str(workspace.root))
    process = warm.python(script)
    assert process.code == 9, process.err[-2000:]
    made = len(list(read_jsonl(workspace.traces)))
    assert 0 < made < 16
    report = generate_pairs(small("generate.batch_size=3"), workspace)
    assert report.rows_now == 16 - made
    score_pairs(small(), workspace)
    curate_pairs(small(), workspace)
    by_id = {row["id"]: row for row in read_jsonl(workspace.traces)}
    assert by_id == {row["id"]: row for row in read_jsonl(whole.traces)}
    assert all(len(row["drafts"]) == 4 for row in by_id.values())
    for ours, theirs in ((workspace.pairs, whole.pairs), (workspace.train_rows, whole.train_rows)):
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_first_draft_is_the_draft_of_every_other_protocol(whole, workspace):
    generate_pairs(small("generate.protocol=single/short", "prompts.limit=6"), workspace)
    criticised = {row["id"]: row["draft"] for row in read_jsonl(workspace.traces)}
    sampled = {row["id"]: row for row in read_jsonl(whole.traces)}
    assert len(criticised) == 6
    assert all(
        sampled[name]["drafts"][0]["text"] == text == sampled[name]["draft"] for name, text in criticised.items()
    )


def test_the_pair_holds_worst_and_best_by_the_scorer_and_nothing_of_a_critic(whole):
    traces = {row["id"]: Trace.model_validate(row) for row in read_jsonl(whole.traces)}
    scores = [row["scores"][0] for row in read_jsonl(whole.scores)]
    pairs = list(read_pairs(whole.pairs))
    sampled = [pair for pair in pairs if pair.outcome == "sampled"]
    assert len(sampled) > 10
    for pair in sampled:
        samples = traces[pair.id].drafts
        texts = [samples[place].text for place in usable_samples(samples)]
        assert pair.base_response in texts
        assert pair.revised_response in texts
        assert (pair.chosen, pair.critic_notes, pair.principle_ids) == ("revised", "", [])
        assert pair.delta > 0
        assert {pair.base_score, pair.revised_score} <= set(scores)
    assert {row["chosen_side"] for row in read_jsonl(whole.train_rows)} == {"revised"}
    assert list(read_jsonl(whole.one_sided_rows)) == []


def test_another_scorer_judges_the_same_samples_and_nothing_is_generated(whole, monkeypatch, tmp_path):
    import shutil

    copy = Workspace(shutil.copytree(whole.root, tmp_path / "copy"))
    monkeypatch.setattr(LanguageModel, "generate", lambda *_: pytest.fail("it generates"))
    by_feedback = small("score.by=ai_feedback", "score.feedback_principles=1", "prompts.limit=16")
    first = score_pairs(small(), copy)
    report = score_pairs(by_feedback, copy)
    assert report.with_revision == first.with_revision
    pairs = {pair.id: pair for pair in read_pairs(copy.pairs)}
    before = {pair.id: pair for pair in read_pairs(whole.pairs)}
    assert pairs.keys() == before.keys()
    assert any(pairs[name].revised_response != before[name].revised_response for name in pairs)


def test_a_win_by_construction_is_no_target_no_figure_and_no_finding(whole):
    statistics = analyze_frame(pair_frame(read_pairs(whole.pairs)))
    assert statistics.wins.value == 1.0
    targets = {target.name for target in check_targets(statistics, 100, 0.1, small().curate)}
    assert targets == {"usable pairs", "two usable samples", "refusals over answers"}
    names = {finding.name for finding in diagnose(statistics.model_copy(update={"rows": 100}))}
    assert not names & {"few usable critic outputs", "labels near chance", "critic keeps nearly everything"}
    lines = dict(score_pairs(small(), whole).lines())
    assert lines["best sample scores higher"].startswith("by construction")
    assert "revision scores higher" not in lines
    assert "curate.min_delta=auto" in dict(curate_pairs(small(), whole).lines())["advice"]


def test_the_pages_and_the_card_call_the_sides_what_they_are(whole):
    analyze_pairs(small(), whole)
    page = (whole.reports / "pairs.html").read_text()
    assert "Best sample" in page
    assert "by construction" in page
    assert "revision wins" not in page
    run_page = write_run_report(small(), whole).read_text()
    assert "best and worst sample," in run_page
    with zipfile.ZipFile(export_artifacts(small(), whole).path) as archive:
        card = archive.read(min((n for n in archive.namelist() if n.endswith("README.md")), key=len)).decode()
    assert "it answered each prompt 4 times (protocol samples/4; no critique, no constitution)" in card


def test_the_inspector_names_the_samples_and_shows_all_of_them_on_demand(whole):
    row = next(row for row in read_rows(whole) if row.pair.outcome == "sampled")
    shown = str(pair_html(row, None, {}))
    assert "Worst sample" in shown
    assert "Best sample" in shown
    assert "Revision" not in shown
    words = CriticLog(whole.traces).of(row.pair)
    assert words.protocol == "samples/4"
    assert len(words.outputs) == 4
    assert any(row.pair.revised_response in output for output in words.outputs)


def test_few_prompts_with_two_samples_are_a_missed_target_with_its_cause():
    pairs = [pair.model_copy(update={"outcome": "samples_unusable"}) for pair in _alike(5)] + _alike(5)
    statistics = analyze_frame(pair_frame(pairs))
    target = next(one for one in check_targets(statistics, 5, 0.0, small().curate) if one.name == "two usable samples")
    assert (target.ok, target.found[:3]) == (False, "0 %")
    assert math.isclose(statistics.usable.value, 0.0)
    assert "prompts have" in target.cause


def _alike(count: int):
    from cai_helpers.schema import ScoredPair

    return [
        ScoredPair(
            prompt=f"Question {number}?", base_response=WHOLE, revised_response=WHOLE, base_score=1.0, revised_score=None,
            chosen=None, outcome="samples_alike", id=str(number),
        )
        for number in range(count)
    ]  # fmt: skip
