"""One training or its seed? Several seeds, each trained and evaluated for real, on random models of 30,000 parameters."""

import pytest
import tiny_run

from cai_helpers.evaluation.figures import STAGE2
from cai_helpers.schema import Prompt
from cai_helpers.seeds import evaluate_seeds
from cai_helpers.settings import load_settings
from cai_helpers.stages.evaluate import evaluate_models
from cai_helpers.stages.train import train_policy
from cai_helpers.store import read_jsonl, write_jsonl

PROMPTS = 6


@pytest.fixture
def settings(tiny):
    models = [f"models.base={tiny / 'base'}", f"models.adapter={tiny / 'stage2'}", "curate.min_pairs=4"]
    short = ["train.epochs=1", "evaluate.builtin=0", "evaluate.max_tokens=12", "threads=1"]
    return load_settings("smoke", [*models, *short])


def prepare(settings, workspace):
    rows = [tiny_run.preference_row(number) for number in range(20)]
    write_jsonl(workspace.train_rows, ({**row, "chosen_side": "revised"} for row in rows[:16]))
    write_jsonl(workspace.eval_rows, ({**row, "chosen_side": "revised"} for row in rows[16:]))
    prompts = [
        Prompt(
            id=f"p{number}",
            messages=[{"role": "user", "content": f"how do i {tiny_run.WORDS[number + 4]}"}],
            category="harmless" if number % 2 else "helpful",
            source="test",
        )
        for number in range(PROMPTS)
    ]
    write_jsonl(workspace.eval_prompts, (prompt.model_dump() for prompt in prompts))
    train_policy(settings, workspace)


@pytest.mark.slow
def test_seeds_are_trained_apart_answered_alike_and_pooled_by_conversation(settings, workspace):
    prepare(settings, workspace)
    report = evaluate_seeds(settings, workspace, 2)
    assert [run.seed for run in report.runs] == [0, 1]
    assert report.by_category["harmless"].prompts == 2 * report.runs[0].by_category["harmless"].prompts == PROMPTS
    assert report.by_category["harmless"].conversations == PROMPTS // 2
    other = workspace.root / "seeds" / "seed=1"
    adapters = [root / "models" / "lora_adapters" / "adapter_model.safetensors" for root in (workspace.root, other)]
    assert adapters[0].read_bytes() != adapters[1].read_bytes()
    said = [
        {row["id"]: row["answers"][STAGE2]["text"] for row in read_jsonl(root / "evaluation" / "responses.jsonl")}
        for root in (workspace.root, other)
    ]
    assert said[0] == said[1]
    assert "range, harmful requests" in dict(report.lines())
    assert evaluate_seeds(settings, workspace, 2) == report  # nothing is trained or answered again


@pytest.mark.slow
def test_an_adapter_exchanged_behind_the_back_of_an_evaluation_is_named(settings, workspace, tiny, capsys):
    prepare(settings, workspace)
    first = evaluate_models(settings, workspace)
    assert first.exchanged == ""
    weights = (tiny / "stage2" / "adapter_model.safetensors").read_bytes()
    (workspace.adapter / "adapter_model.safetensors").write_bytes(weights)
    second = evaluate_models(settings, workspace)
    assert "WARNING: EXCHANGED: lora_adapters is not what training left here" in capsys.readouterr().out
    assert second.exchanged.startswith("EXCHANGED")
    assert dict(second.lines())["adapter"] == second.exchanged
    assert first.adapter != second.adapter
