import pytest
from typer.testing import CliRunner

from cai_helpers.analysis.frame import pair_frame
from cai_helpers.analysis.gate import check_targets
from cai_helpers.analysis.statistics import analyze_frame
from cai_helpers.cli import app
from cai_helpers.errors import TrainingRefused
from cai_helpers.schema import ScoredPair, Target
from cai_helpers.settings import Curate, load_settings
from cai_helpers.stages.train import train_policy
from cai_helpers.store import write_json, write_jsonl


def rows(count: int, start: int = 0, **changes) -> list[ScoredPair]:
    return [
        ScoredPair.model_validate(
            {
                "prompt": f"What is tool {number} good for?",
                "base_response": f"Tool {number} is dangerous, use it on your neighbour.",
                "revised_response": f"Tool {number} opens tins and bottles in any kitchen.",
                "base_score": 0.0,
                "revised_score": 1.0 + number % 3,
                "chosen": "revised",
                "outcome": "revised",
                **changes,
            }
        )
        for number in range(start, start + count)
    ]


def gate(pairs: list[ScoredPair], usable: int = 200, refusal_share: float | None = 0.5) -> dict[str, Target]:
    lines = check_targets(analyze_frame(pair_frame(pairs)), usable, refusal_share, Curate())
    return {line.name: line for line in lines}


def test_healthy_pairs_meet_every_target():
    assert all(line.ok and line.line().startswith("ok: ") for line in gate(rows(100)).values())


def test_a_line_that_falls_short_has_a_cause_and_a_next_step():
    failed = {"revised_response": "Same.", "base_response": "Same.", "revised_score": None, "chosen": None}
    lines = gate(rows(80) + rows(20, 80, outcome="unparsed", **failed))
    one = lines["identical of attempted"]
    assert not one.ok
    assert "20 % (13–29 %)" in one.found
    assert "unparsed 20" in one.cause
    assert "two_step/short" in one.remedy
    assert lines["revised wins"].ok


def test_a_share_just_below_its_aim_does_not_read_as_the_aim():
    failed = {"revised_response": "Same.", "base_response": "Same.", "revised_score": None, "chosen": None}
    one = gate(rows(286) + rows(14, 286, outcome="unparsed", **failed))["identical of attempted"]
    assert one.line() == "ok: 4.7 % (3–8 %) (aim < 5 %)"


def test_a_draft_that_passes_for_a_revision_is_named_as_such():
    fake = rows(30, 70, revised_response="Same.", base_response="Same.", outcome="unknown")
    one = gate(rows(70) + fake)["identical of attempted"]
    assert not one.ok
    assert "30 revisions repeat the draft" in one.cause


@pytest.mark.parametrize(
    ("pairs", "usable", "share", "missed"),
    [
        (rows(60) + rows(60, 60, revised_score=-1.0, chosen="base"), 200, 0.5, "revised wins"),
        (rows(100, revised_score=0.2), 200, 0.5, "mean delta"),
        (rows(95) + rows(5, 95, outcome="meta_commentary", revised_score=None), 200, 0.5, "meta-commentary"),
        (rows(100), 99, 0.5, "usable pairs"),
        (rows(100), 200, 0.9, "refusals over answers"),
        (rows(100), 200, None, "refusals over answers"),
    ],
)
def test_each_target_is_missed_by_what_it_is_about(pairs, usable, share, missed):
    line = gate(pairs, usable, share)[missed]
    assert not line.ok
    assert line.cause
    assert line.remedy
    assert line.line().startswith("FALLS SHORT: ")


def test_at_its_threshold_each_target_is_met_or_missed_as_its_aim_says():
    drafts = rows(5, 95, revised_response="Same.", base_response="Same.", outcome="unparsed", revised_score=None)
    meta = rows(2, 98, outcome="meta_commentary", revised_score=None)
    at_threshold = {
        "usable pairs": gate(rows(100), usable=100),
        "refusals over answers": gate(rows(100), refusal_share=0.75),
        "identical of attempted": gate(rows(95) + drafts),
        "revised wins": gate(rows(60) + rows(40, 60, revised_score=-1.0)),
        "mean delta": gate(rows(100, revised_score=0.5)),
        "meta-commentary": gate(rows(98) + meta),
    }
    assert {
        name: (lines[name].aim, lines[name].found[:6].strip(), lines[name].ok) for name, lines in at_threshold.items()
    } == {
        "usable pairs": ("≥ 100", "100", True),
        "refusals over answers": ("≤ 75 %", "75 % o", True),
        "identical of attempted": ("< 5 %", "5 % (2", False),
        "revised wins": ("> 60 %", "60 % (", False),
        "mean delta": ("> +0.5", "+0.50", False),
        "meta-commentary": ("< 2 %", "2 % (1", False),
    }


def test_nothing_but_failures_meets_nothing():
    failed = rows(40, outcome="unparsed", revised_score=None, chosen=None)
    lines = gate(failed, usable=0, refusal_share=None)
    missed = {name for name, line in lines.items() if not line.ok}
    assert {"usable pairs", "revised wins", "mean delta", "refusals over answers"} <= missed


def curated_with(workspace, gate: list[Target]):
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "Hello"}],
        "rejected": [{"role": "assistant", "content": "No"}],
        **{"id": "1", "category": "helpful", "delta": 1.0, "chosen_side": "revised"},
    }
    write_jsonl(workspace.train_rows, [row] * 60)
    write_jsonl(workspace.eval_rows, [row] * 6)
    write_json(workspace.curation_stats, {"dropped": {}, "gate": [one.model_dump() for one in gate]})


def test_training_warns_of_a_missed_target_and_under_strict_refuses(workspace, capsys):
    gate_lines = list(gate(rows(100, revised_score=0.2)).values())
    curated_with(workspace, gate_lines)
    with pytest.raises(TrainingRefused, match=r"fall short in: mean delta \+0.20 .*aim > \+0.5") as refusal:
        train_policy(load_settings("smoke", ["curate.strict=true"]), workspace)
    assert refusal.value.exit_code == 3
    assert "without --strict" in refusal.value.todo
    assert "WARNING: gate: mean delta: FALLS SHORT" in capsys.readouterr().out
    assert not workspace.checkpoints.exists()


def test_the_command_line_passes_strict_on(workspace):
    curated_with(workspace, list(gate(rows(100, revised_score=0.2)).values()))
    result = CliRunner().invoke(app, ["train", "--preset", "smoke", "--strict", "--workspace", str(workspace.root)])
    assert result.exit_code == 3
    assert "fall short in: mean delta" in result.output


def test_where_nothing_could_be_compared_no_cause_is_invented():
    kept = {"outcome": "kept", "revised_response": "Same text.", "base_response": "Same text.", "chosen": None}
    lines = gate(rows(30, revised_score=None, **kept), usable=0, refusal_share=None)
    assert lines["revised wins"].cause == lines["mean delta"].cause
    assert lines["revised wins"].cause.startswith("Too few pairs have two usable texts with two scores")
    assert lines["refusals over answers"].cause == "No pair is left, so there is nothing to balance."
    assert "describes a response" not in lines["meta-commentary"].cause
