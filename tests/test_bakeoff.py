import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from cai_helpers.critique.protocol_choice import Entry, choose_protocol, told_from_chance
from cai_helpers.critique.sampled_entry import Labels, SampledEntry
from cai_helpers.errors import CaiError
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.models.sessions import SlotSession
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.settings import Settings, load_settings
from cai_helpers.stages.bakeoff import BakeoffReport, compare_protocols
from cai_helpers.stages.calibrate import calibrate_scorer
from cai_helpers.stages.generate import chosen_protocol, generate_pairs
from cai_helpers.store import read_jsonl, write_json
from cai_helpers.workspace import Workspace

PLANTED = """
single:
  good: |-
    Judge the response below by the principles.

    [CONVERSATION]
    {conversation}

    [RESPONSE]
    {response}

    [PRINCIPLES]
    {principles}

    Write one sentence of critique. Then write the improved response itself, or KEEP_ORIGINAL if the response is
    already good. Answer in this form:
    CRITIQUE: ...
    REVISION: ...
  bad: "{conversation}"
"""


def entry(name: str, wins: int, losses: int, seconds: float) -> Entry:
    return Entry(
        protocol=name,
        prompts=24,
        outcomes={"revised": wins + losses, "kept": 24 - wins - losses},
        identical=0,
        wins=wins,
        losses=losses,
        win_rate=proportion(wins, wins + losses),
        mean_delta=1.0,
        tokens_a_pair=50,
        seconds_a_pair=seconds,
    )


@pytest.fixture
def planted(tmp_path) -> Settings:
    return planted_settings(tmp_path, PLANTED)


def planted_settings(folder: Path, protocols: str) -> Settings:
    (folder / "planted.yaml").write_text(protocols)
    changes = [f"generate.protocols_file={folder / 'planted.yaml'}", "generate.batch_size=8", "threads=1"]
    return load_settings("smoke", changes)


@pytest.fixture
def generated_keys(monkeypatch) -> list[str]:
    return note_keys(monkeypatch)


def note_keys(patch: pytest.MonkeyPatch) -> list[str]:
    """What the language model is asked for, "<prompt id>/draft" or "…/critique"."""
    keys: list[str] = []
    add = SlotSession.add

    def noted(self, requests):
        requests = list(requests)
        keys.extend(request.key for request in requests if request.key != "trial")  # the greeting before the run
        add(self, requests)

    patch.setattr(SlotSession, "add", noted)
    return keys


class Whole(NamedTuple):
    settings: Settings
    workspace: Workspace
    report: BakeoffReport
    keys: list[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    """An undisturbed bake-off of 16 prompts; its workspace is to be copied, not changed."""
    folder = tmp_path_factory.mktemp("whole")
    settings, workspace = planted_settings(folder, PLANTED), Workspace(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        keys = note_keys(patch)
        return Whole(settings, workspace, compare_protocols(settings, workspace, 16), keys)


@pytest.mark.parametrize(
    ("entries", "best"),
    [
        ([("a", 10, 0, 1.0), ("b", 14, 0, 2.0)], "b"),
        ([("a", 13, 0, 1.0), ("b", 14, 0, 2.0)], "a"),  # within one pair of the best, and quicker
        ([("a", 16, 8, 1.0), ("b", 12, 0, 2.0)], "b"),  # lost pairs count against
        ([("a", 17, 7, 1.0)], "a"),
        ([("a", 16, 8, 1.0)], None),  # a tossed coin does that more often than once in forty
        ([("a", 3, 0, 1.0)], None),
        ([("a", 4, 0, 1.0), ("b", 0, 0, 0.5)], "a"),
        ([("a", 0, 0, 1.0), ("b", 0, 0, 0.5)], None),
        ([("a", 0, 0, 1.0), ("b", 2, 3, 0.5)], None),  # tied with nothing is not better than losing
    ],
)
def test_the_rule_takes_what_wins_beyond_chance_then_wins_less_losses_and_then_the_quickest(entries, best):
    assert choose_protocol([entry(*values) for values in entries]).protocol == best


def test_why_none_is_recommended_is_said_with_what_to_try_in_order_of_cost():
    nothing = choose_protocol([entry("a", 0, 0, 1.0)])
    assert nothing.why == "no protocol made a revision that scores otherwise than its draft."
    losing = choose_protocol([entry("a", 0, 0, 1.0), entry("b", 2, 3, 1.0)])
    assert losing.why == "no protocol has more winning revisions than losing ones on 24 prompts."
    assert (
        "generate.constitution), an endpoint as critic (generate.critic=api), a larger models.base, or" in losing.remedy
    )
    chance = choose_protocol([entry("a", 6, 4, 1.0)])
    assert chance.why == "the best, a, won 6 of 10 decided pairs, which a tossed coin may do too."
    assert chance.remedy.startswith("More prompts may tell (cai bakeoff --n 48). In order of cost, try several answers")


@pytest.mark.parametrize(("decided", "share"), [(0, None), (3, None), (4, 1.0), (10, 0.9), (29, 20 / 29), (100, 0.6)])
def test_which_win_rate_is_told_from_chance_depends_on_the_decided_pairs(decided, share):
    assert told_from_chance(decided) == share


def test_of_two_planted_protocols_the_better_one_is_recommended_and_used(whole, tmp_path):
    planted, report = whole.settings, whole.report
    assert chosen_protocol(planted, Workspace(tmp_path / "empty")) == "single/short"
    workspace = Workspace(shutil.copytree(whole.workspace.root, tmp_path / "copy"))
    good, bad = report.entries
    assert report.recommended == "single/good"
    assert good.net > 4
    assert bad.share("revised") == 0
    assert sum(key.endswith("/draft") for key in whole.keys) == 16  # once, for both
    assert chosen_protocol(planted, workspace) == "single/good"
    assert compare_protocols(planted, workspace, 16) == report  # the stored one: even its seconds are the same
    workspace.begin("generate", {"generate.protocol": "single/short"})
    assert chosen_protocol(planted, workspace) == "single/short"  # a run that was begun is not torn in two
    explicit = load_settings("smoke", ["generate.protocol=two_step/full"])
    assert chosen_protocol(explicit, workspace) == "two_step/full"
    assert json.loads(workspace.bakeoff.read_text())["entries"][0]["prompts"] == 16
    table = dict(report.lines())
    assert table["recommended"].startswith("single/good  (recommended: of the protocols whose revisions win beyond")
    decided = good.wins + good.losses
    assert table["told from chance"].startswith(
        f"{decided} of 16 prompts gave a decided pair at best (single/good): from"
    )


def test_without_a_winner_nothing_is_recommended_and_generate_stops_until_a_protocol_is_named(
    workspace, tmp_path, capsys
):
    settings = planted_settings(tmp_path, 'single:\n  bad: "{conversation}"\n  worse: "{response}"\n')
    report = compare_protocols(settings, workspace, 8)
    assert report.recommended is None
    assert dict(report.lines())["recommended"].startswith("none: no protocol made a revision that scores otherwise")
    with pytest.raises(CaiError, match="The bake-off recommends no protocol: no protocol made a revision") as raised:
        generate_pairs(settings, workspace)
    assert "In order of cost, try several answers that the scorer judges (samples/4" in str(raised.value)
    assert not workspace.traces.exists()
    assert "The bake-off recommends no protocol" in write_run_report(settings, workspace).read_text()
    named = settings.model_copy(update={"generate": settings.generate.model_copy(update={"protocol": "single/bad"})})
    assert chosen_protocol(named, workspace) == "single/bad"
    workspace.begin("generate", {"generate.protocol": "single/short"})
    assert chosen_protocol(settings, workspace) == "single/short"
    assert "WARNING: goes on with single/short, as begun, but the bake-off says" in capsys.readouterr().out


FAILING = 'single:\n  bad: "{conversation}"\n'


def test_where_every_critic_fails_samples_are_recommended_only_once_the_scorer_is_calibrated(
    workspace, tmp_path, capsys
):
    settings = planted_settings(tmp_path, FAILING)
    report = compare_protocols(settings, workspace, 16)
    assert [entry.protocol for entry in report.all_entries()] == ["single/bad", "samples/4"]
    assert report.rows()[1]["revised wins"] == "by construction"
    assert report.recommended is None
    why = dict(report.lines())["recommended"]
    assert "Nor can samples/4 be recommended: best less worst +" in why
    assert "whether labels are right there, `cai calibrate` must tell first" in why
    with pytest.raises(CaiError, match="The bake-off recommends no protocol"):
        generate_pairs(settings, workspace)

    calibrate_scorer(settings, workspace)
    again = compare_protocols(settings, workspace, 16)  # the stored one, judged by the calibration that came after it
    assert again.samples[0].deltas == report.samples[0].deltas
    assert again.recommended == "samples/4"
    assert "16 of 16 (100%) reach the calibration's min_delta 0.00; labels right in" in dict(again.lines())["samples/4"]
    assert chosen_protocol(settings, workspace) == "samples/4"
    assert "Set curate.min_delta=auto with it" in capsys.readouterr().out


def test_the_samples_of_a_bakeoff_are_those_that_generate_makes(whole, tmp_path):
    rows = {row["id"]: row for row in read_jsonl(whole.workspace.bakeoff.parent / "samples-4.jsonl")}
    changes = {
        "prompts": whole.settings.prompts.model_copy(update={"limit": 4}),
        "generate": whole.settings.generate.model_copy(update={"protocol": "samples/4"}),
    }
    generated = Workspace(tmp_path / "generated")
    generate_pairs(whole.settings.model_copy(update=changes), generated)
    traces = list(read_jsonl(generated.traces))
    assert len(traces) == 4
    assert all({**trace, "seconds": rows[trace["id"]]["seconds"]} == rows[trace["id"]] for trace in traces)


def sampled(right: Interval | None, min_delta: float | None = 0.5, above: int = 10) -> SampledEntry:
    labels = Labels(min_delta=min_delta, above=above, right=right)
    return SampledEntry(
        protocol="samples/4",
        prompts=24,
        outcomes={"sampled": 24},
        deltas=[1.0] * 24,
        tokens_a_pair=9,
        seconds_a_pair=0.1,
        labels=labels,
    )


@pytest.mark.parametrize(
    ("entries", "samples", "best"),
    [
        (
            [("a", 14, 0, 1.0)],
            sampled(proportion(99, 100)),
            "a",
        ),  # a critic that wins goes before samples, however sure
        ([("a", 0, 9, 1.0)], sampled(proportion(70, 100)), "samples/4"),
        ([("a", 6, 4, 1.0)], sampled(proportion(70, 100)), "samples/4"),
        ([("a", 0, 9, 1.0)], sampled(proportion(55, 100)), None),  # a coin may be right as often
        ([("a", 0, 9, 1.0)], sampled(None, min_delta=None, above=0), None),
        ([("a", 0, 9, 1.0)], sampled(None, above=0), None),
        ([("a", 0, 9, 1.0)], sampled(proportion(99, 100)).model_copy(update={"labels": None}), None),
    ],
)
def test_samples_never_win_by_wins_but_only_by_labels_that_gold_pairs_trust(entries, samples, best):
    choice = choose_protocol([entry(*values) for values in entries], [samples])
    assert choice.protocol == best
    if best is None:
        assert "Nor can samples/4 be recommended" in choice.line()
        assert "In order of cost, try several answers that the scorer judges (samples/4" in choice.remedy


def test_without_randomness_samples_are_no_part_of_a_bakeoff(workspace, tmp_path):
    settings = planted_settings(tmp_path, FAILING)
    greedy = settings.model_copy(update={"generate": settings.generate.model_copy(update={"temperature": 0.0})})
    assert compare_protocols(greedy, workspace, 2).samples == []
    with pytest.raises(CaiError, match="all samples would be the same text"):
        compare_protocols(greedy, workspace, 2, ["samples/4"])


def test_a_stored_result_that_recommends_what_never_won_is_judged_by_the_same_rule(workspace, smoke):
    stored = [entry("single/short", 0, 0, 0.5), entry("two_step/full", 1, 4, 1.0)]
    write_json(
        workspace.bakeoff,
        {
            "scorer": "s",
            "trust": "",
            "planned": 100,
            "entries": [one.model_dump() for one in stored],
            "recommended": "single/short",
        },
    )
    with pytest.raises(CaiError, match="no protocol has more winning revisions than losing ones on 24 prompts"):
        chosen_protocol(smoke, workspace)


def test_a_scorer_that_cannot_be_loaded_is_noticed_before_the_first_draft(workspace, planted, generated_keys):
    reward = planted.models.reward.model_copy(update={"model": "no/such-model"})
    missing = planted.model_copy(update={"models": planted.models.model_copy(update={"reward": reward})})
    with pytest.raises(CaiError, match="no/such-model"):
        compare_protocols(missing, workspace, 4)
    assert generated_keys == []


def test_its_rows_are_those_that_generate_makes(workspace, planted, tmp_path):
    compare_protocols(planted, workspace, 8, ["single/good"])
    changes = {
        "prompts": planted.prompts.model_copy(update={"limit": 8}),
        "generate": planted.generate.model_copy(update={"protocol": "single/good", "batch_size": 3}),
    }
    generated = Workspace(tmp_path / "generated")
    generate_pairs(planted.model_copy(update=changes), generated)
    rows = {row["id"]: row for row in read_jsonl(workspace.bakeoff.parent / "single-good.jsonl")}
    traces = {row["id"]: row for row in read_jsonl(generated.traces)}
    shared = rows.keys() & traces.keys()
    assert len(shared) == 8
    assert all({**traces[name], "seconds": rows[name]["seconds"]} == rows[name] for name in shared)


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_bakeoff
from cai_helpers import store
from cai_helpers.store import JsonlStore

store._SECONDS_A_WRITE = 0
appends = 0
def append(self, rows, append=JsonlStore.append):
    global appends
    append(self, rows)
    appends += self.path.name == "single-good.jsonl"
    if appends == 3:
        os._exit(9)
JsonlStore.append = append
settings = test_bakeoff.planted_settings(Path({folder!r}), test_bakeoff.PLANTED)
test_bakeoff.compare_protocols(settings, test_bakeoff.Workspace({root!r}), 16)
"""


def test_a_killed_bakeoff_goes_on_without_repeating_a_row_and_more_prompts_keep_those_that_are_there(
    warm, whole, workspace, planted, tmp_path, generated_keys
):
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), root=str(workspace.root))
    process = warm.python(script)
    assert process.code == 9, process.err[-2000:]
    made = len(list(read_jsonl(workspace.bakeoff.parent / "single-good.jsonl")))
    assert 0 < made < 16
    resumed = compare_protocols(planted, workspace, 16)
    # what is missing of one protocol, all of the other; then three more drafts for samples/4
    assert [key.split("/", 1)[1] for key in generated_keys] == ["critique"] * (32 - made) + [
        "draft/1",
        "draft/2",
        "draft/3",
    ] * 16

    resumed_rows, whole_rows = (
        [one.model_copy(update={"seconds_a_pair": 0}) for one in report.entries] for report in (resumed, whole.report)
    )
    assert resumed_rows == whole_rows

    generated_keys.clear()
    assert compare_protocols(planted, workspace, 20).entries[0].prompts == 20
    assert sum(key.endswith("/draft") for key in generated_keys) == 4


def test_rows_made_with_something_else_are_not_mixed_in(workspace, planted, generated_keys):
    compare_protocols(planted, workspace, 4, ["single/good"])
    generated_keys.clear()
    colder = planted.model_copy(update={"generate": planted.generate.model_copy(update={"temperature": 0.1})})
    compare_protocols(colder, workspace, 4, ["single/good"])
    assert sum(key.endswith("/draft") for key in generated_keys) == 4
    assert len(list((workspace.root / "archive").glob("*-bakeoff-*/bakeoff/drafts.jsonl"))) == 1


def test_an_unknown_protocol_is_refused_before_anything_is_loaded(workspace):
    with pytest.raises(CaiError, match="There is no protocol 'single/long'"):
        compare_protocols(load_settings("smoke"), workspace, 2, ["single/long"])
