"""Round after round: the same held-out prompts, one table, and an end by itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cai_helpers.cli import app
from cai_helpers.errors import CaiError, RoundsEnded
from cai_helpers.evaluation.figures import MAIN, STAGE2, STAGE3, Answer, Response
from cai_helpers.evaluation.rounds import RoundsReport, first_round, later_round, why_stop
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.pages.rounds_picture import save_rounds_plot
from cai_helpers.prompts.split import load_prompts
from cai_helpers.settings import load_settings
from cai_helpers.store import read_json, read_jsonl, write_json, write_jsonl
from cai_helpers.workspace import Workspace


def said(text: str, score: float, logp: float | None = -3.0) -> Answer:
    refusal = "full" if "cannot" in text else "none"
    return Answer(text=text, finish="stop", refusal=refusal, score=score, degenerate=is_degenerate(text), logp=logp)


def answers(count: int, text: str, score: float = 1.0, logp: float | None = -3.0) -> list[Response]:
    return [
        Response(
            id=f"{n:016x}",
            category="helpful" if n % 2 else "harmless",
            prompt=f"question {n}",
            answers={STAGE2: said(f"plain answer number {n} here", 0.0), STAGE3: said(text.format(n=n), score, logp)},
            deltas={MAIN: score},
        )
        for n in range(count)
    ]


SOUND = answers(20, "a better answer with number {n}")


def test_a_round_is_compared_with_the_round_before_and_with_the_first_stage_2():
    first = SOUND
    second = [
        row.model_copy(
            update={
                "answers": {STAGE2: row.answers[STAGE3], STAGE3: said(f"other {row.id}", 0.5)},
                "deltas": {MAIN: -0.5},
            }
        )
        for row in SOUND
    ]
    found = later_round(2, "worse", second, first)
    assert found.over_before.value == 0.0
    assert found.over_first.value == 1.0
    assert later_round(2, "worse", second, None).over_first is None
    assert first_round(first).words == 5
    assert first_round(first).distinct == 1.0


def test_the_rounds_go_on_while_they_are_better_and_nothing_collapses():
    assert why_stop([first_round(SOUND), later_round(1, "better", SOUND, SOUND)]) is None


@pytest.mark.parametrize(
    ("verdict", "text", "likelihood", "reason"),
    [
        ("not shown", "a better answer with number {n}", -3.0, "verdict of round 1 is 'not shown'"),
        ("better", "I cannot help with that at all.", -3.0, "answers grow alike: 5% are different"),
        ("better", "so so so so so so so so so so so so so so so so so so {n}", -3.0, "answers go round in circles"),
        ("better", "a better answer with number {n}", -4.5, "another language: -1.50 nats a token"),
        ("better", "a better answer with number {n}", -1.5, "another language: [+]1.50 nats a token"),
    ],
)
def test_a_round_that_is_not_better_or_collapses_is_the_last(verdict, text, likelihood, reason):
    rounds = [first_round(SOUND), later_round(1, verdict, answers(20, text, logp=likelihood), SOUND)]
    import re

    assert re.search(reason, why_stop(rounds))
    assert RoundsReport(rounds=rounds, stop=why_stop(rounds)).lines()[-2][1].startswith("stop: ")


def test_the_picture_is_drawn_also_where_figures_are_missing(tmp_path):
    rounds = [first_round(SOUND), later_round(1, "better", answers(20, "an answer {n}", logp=None), None)]
    assert save_rounds_plot(rounds, tmp_path / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_held_out_prompts_that_were_written_by_a_run_keep_their_ids_though_they_are_folded(tmp_path):
    folded = {
        "id": "0123456789abcdef",
        "messages": [{"role": "user", "content": "Be kind.\n\nHow?"}],
        "category": "helpful",
        "source": "x",
    }
    write_jsonl(tmp_path / "held_out.jsonl", [folded])
    write_jsonl(tmp_path / "own.jsonl", [{"prompt": "What?"}, {"prompt": "Who?"}])
    settings = load_settings(
        "smoke", [f"prompts.source={tmp_path}/own.jsonl", f"prompts.eval_source={tmp_path}/held_out.jsonl"]
    )
    split = load_prompts(settings.prompts, 0, lambda messages: 5)
    assert [prompt.id for prompt in split.eval] == ["0123456789abcdef"]


@pytest.mark.slow
def test_the_next_round_takes_the_adapter_and_the_held_out_prompts_of_the_one_before(small_run, tmp_path):
    before = Workspace(shutil.copytree(small_run.root, tmp_path / "one"))
    pretend(before, "better")
    space = Workspace(tmp_path / "two")
    result = CliRunner().invoke(app, ["run", "--from", str(before.root), "--workspace", str(space.root)])
    assert result.exit_code in (0, 3), result.output
    settings = load_settings(str(space.settings_file))
    assert settings.models.adapter == str(before.adapter)
    assert settings.prompts.limit == 48  # the settings of the round before
    held_out = {row["id"] for row in read_jsonl(space.eval_prompts)}
    assert held_out == {row["id"] for row in read_jsonl(before.eval_prompts)}
    assert held_out.isdisjoint(row["id"] for row in read_jsonl(space.prompts))
    rounds = read_json(space.rounds, "")["rounds"]
    assert [found["number"] for found in rounds] == [0, 1, 2]
    assert rounds[2]["over_first"] is not None
    assert all(-20 < found["log_probability"] < 0 for found in rounds)
    assert space.picture("rounds").exists()
    assert "wins over Stage 2" in result.output
    assert (result.exit_code == 3) == ("stop: " in result.output)

    again = CliRunner().invoke(app, ["run", "--from", str(before.root), "--workspace", str(space.root)])
    assert again.exit_code == result.exit_code
    assert [found["number"] for found in read_json(space.rounds, "")["rounds"]] == [0, 1, 2]


@pytest.mark.slow
def test_after_a_round_that_is_not_better_no_other_begins_unless_it_is_meant(small_run, tmp_path):
    from cai_helpers.rounds import begin_round

    before = Workspace(shutil.copytree(small_run.root, tmp_path / "one"))
    pretend(before, "worse")
    space = Workspace(tmp_path / "two")
    with pytest.raises(RoundsEnded, match="Round 2 does not begin. Stop: the verdict of round 1 is 'worse'") as ending:
        begin_round(load_settings(str(before.settings_file)), space, before)
    assert ending.value.exit_code == 3
    assert not space.rounds_before.exists()
    anyway = begin_round(load_settings(str(before.settings_file)), space, before, anyway=True)
    assert anyway.models.adapter == str(before.adapter)
    assert space.rounds_before.exists()
    with pytest.raises(CaiError, match="is not a finished run"):
        begin_round(load_settings("smoke"), space, Workspace(tmp_path / "nowhere"))


def pretend(workspace: Workspace, verdict: str) -> None:
    """A run of seconds need not be better; what follows is tested with either verdict."""
    path: Path = workspace.manifest_of("evaluate")
    manifest = read_json(path, "")
    manifest["report"]["judgement"]["verdict"] = verdict
    write_json(path, manifest)
