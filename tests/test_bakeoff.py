import json

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.measures.intervals import proportion
from cai_helpers.settings import load_settings
from cai_helpers.stages.bakeoff import Entry, compare_protocols, recommend
from cai_helpers.stages.generate import chosen_protocol

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


@pytest.mark.parametrize(
    ("entries", "best"),
    [
        ([("a", 10, 0, 1.0), ("b", 14, 0, 2.0)], "b"),
        ([("a", 13, 0, 1.0), ("b", 14, 0, 2.0)], "a"),  # within one pair of the best, and quicker
        ([("a", 16, 8, 1.0), ("b", 12, 0, 2.0)], "b"),  # lost pairs count against
        ([("a", 0, 0, 1.0), ("b", 0, 0, 0.5)], "b"),
    ],
)
def test_the_rule_takes_wins_less_losses_and_then_the_quickest(entries, best):
    assert recommend([entry(*values) for values in entries]).protocol == best


def test_of_two_planted_protocols_the_better_one_is_recommended_and_used(workspace, tmp_path):
    (tmp_path / "planted.yaml").write_text(PLANTED)
    settings = load_settings("smoke", [f"generate.protocols_file={tmp_path / 'planted.yaml'}", "threads=1"])
    assert chosen_protocol(settings, workspace) == "single/short"
    report = compare_protocols(settings, workspace, 16)
    good, bad = report.entries
    assert report.recommended == "single/good"
    assert good.net > 4
    assert bad.share("revised") == 0
    assert chosen_protocol(settings, workspace) == "single/good"
    assert compare_protocols(settings, workspace, 16) == report  # the stored one: even its seconds are the same
    workspace.begin("generate", {"generate.protocol": "single/short"})
    assert chosen_protocol(settings, workspace) == "single/short"  # a run that was begun is not torn in two
    explicit = load_settings("smoke", ["generate.protocol=two_step/full"])
    assert chosen_protocol(explicit, workspace) == "two_step/full"
    assert json.loads(workspace.bakeoff.read_text())["entries"][0]["prompts"] == 16
    table = dict(report.lines())
    assert table["recommended"].startswith("single/good  (recommended: the protocol with the most winning revisions")


def test_an_unknown_protocol_is_refused_before_anything_is_loaded(workspace):
    with pytest.raises(CaiError, match="There is no protocol 'single/long'"):
        compare_protocols(load_settings("smoke"), workspace, 2, ["single/long"])
