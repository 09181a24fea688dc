"""The plan counts what the models do: its figures are held against models that are really built and run."""

import json
from collections import Counter, deque
from pathlib import Path

import plan_minutes
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig
from typer.testing import CliRunner

from cai_helpers.cli import app
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, Machine, this_machine
from cai_helpers.models.engine import SlotEngine
from cai_helpers.models.row import Row
from cai_helpers.models.sampling import Sampling
from cai_helpers.models.shapes import KNOWN, config_of
from cai_helpers.models.slots import Slots
from cai_helpers.planning import generation
from cai_helpers.planning.card import CARDS, Place, card_of, measure_card
from cai_helpers.planning.generation import Length, generation_memory, generation_seconds, slots_of
from cai_helpers.planning.plan import memory_of, plan_on, plan_run, require_fits
from cai_helpers.planning.scoring import scoring_seconds
from cai_helpers.planning.shape import count, shape_of
from cai_helpers.planning.training import Pair, training_seconds
from cai_helpers.planning.workload import spread, workload_of
from cai_helpers.readiness import memory as readiness_memory
from cai_helpers.settings import load_settings
from cai_helpers.store import write_jsonl
from cai_helpers.training.memory_plan import Room
from cai_helpers.workspace import Workspace

GEMMA = "google/gemma-2b-it"
SMALL = GemmaConfig(
    vocab_size=500, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=1, head_dim=16,
)  # fmt: skip


def test_a_model_behind_a_wall_is_known_by_its_published_shape(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shape = shape_of(GEMMA)
    assert shape.known
    assert shape.parameters == 2_506_172_416  # as its model card has it: 2.51B
    assert (shape.layers, shape.head, shape.cached) == (18, 2048 * 256_000, 2 * 18 * 256)


def test_a_model_that_nobody_knows_and_nothing_reaches_is_an_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CaiError, match="nobody/nothing"):
        config_of("nobody/nothing")


def test_the_embedded_model_is_counted_from_its_own_config():
    shape = shape_of("embedded:chat")
    assert not shape.known
    assert 500_000 < shape.parameters < 700_000


def test_the_products_counted_are_those_that_torch_counts():
    """Of a prompt that is read: twice the linear weights a token, and the head once for the last."""
    model = AutoModelForCausalLM.from_config(SMALL).eval()
    shape, tokens = count(model), 48
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
    counted = 2 * shape.linear * tokens + 2 * shape.head
    attention = 4 * shape.layers * shape.attention * tokens * tokens  # not halved for the mask: torch counts the whole
    rotary = tokens * SMALL.head_dim  # the angles are a product of matrices in some versions
    assert counter.get_total_flops() - counted in (0, rotary, attention, attention + rotary)


def test_the_memory_of_slots_is_what_the_engine_allocates():
    model = AutoModelForCausalLM.from_config(SMALL).eval()
    shape = count(model)
    place = Place(name="here", memory=GIB, dtype="fp32")
    engine = SlotEngine(model, [], 6, 100)
    caches = sum(layer.keys.nbytes + layer.values.nbytes for layer in engine._cache.layers)
    scores = 6 * 500 * (4 + 4 * 4)
    assert generation_memory(shape, place, 6, 100).slots == caches + scores
    assert generation_memory(shape, place, 6, 100).weights == sum(part.nbytes for part in model.parameters())


@pytest.mark.parametrize("following", [0, 2])
def test_the_schedule_played_through_takes_the_steps_that_the_engine_takes(monkeypatch, following):
    """Steps and how far attention reaches in each, counted in a real engine on the CPU: texts alone, and each with two
    that wait for the one before. Of the card only that is counted, and no time for anything else."""
    model = AutoModelForCausalLM.from_config(SMALL).eval()
    chains = [
        [Length(prompt + 60 * turn, new + turn) for turn in range(1 + following)]
        for prompt, new in zip(range(5, 125, 3), [3, 17, 9, 30, 12] * 8, strict=True)
    ]
    chains.sort(key=lambda chain: -chain[0].prompt)

    def row(number: int, turn: int) -> Row:
        length = chains[number][turn]
        sampling = Sampling(max_new_tokens=length.new, temperature=0.0)
        return Row(number, [3] * length.prompt, number, sampling)

    reached, scores = [], SlotEngine._scores
    monkeypatch.setattr(SlotEngine, "_scores", lambda self: reached.append(self._cache.place.reach) or scores(self))
    slots, to_come, done = Slots(model, [], lambda capacity, held: 8, capacity=300), deque(range(40)), Counter()
    while to_come or slots.unfinished:
        while to_come and slots.unfinished < 12:
            slots.waiting.append(row(to_come.popleft(), 0))
        for ended, tokens in slots.step():
            assert len(tokens) == ended.sampling.max_new_tokens
            done[ended.number] += 1
            if done[ended.number] <= following:
                slots.waiting.append(row(ended.number, done[ended.number]))
    assert set(done.values()) == {1 + following}
    card = card_of("t4").model_copy(update={"host_forward": 0.0})
    monkeypatch.setattr(generation, "_read_seconds", lambda *_: 0.0)
    for counted, of_a_step in ((len(reached), lambda *_: 1.0), (sum(reached), lambda *given: given[-1])):
        monkeypatch.setattr(generation, "_step_seconds", of_a_step)
        assert generation_seconds(count(model), card, chains, 8, 300) == pytest.approx(counted, rel=0.15)


def test_twice_the_work_takes_twice_the_time():
    shape, card = shape_of(GEMMA), card_of("t4")
    reward = shape_of("OpenAssistant/reward-model-deberta-v3-large-v2", classifier=True)
    pairs = [Pair(100, 150, 150)] * 80
    assert scoring_seconds(reward, card, [200] * 640, 16) == pytest.approx(
        2 * scoring_seconds(reward, card, [200] * 320, 16)
    )
    once, twice = (training_seconds(shape, card, rows, 8, Room(2000, 20000), 3) for rows in (pairs, pairs * 2))
    assert twice == pytest.approx(2 * once)
    rows = [[Length(100, 150)]] * 512
    once, twice = (generation_seconds(shape, card, some, 128, 512) for some in (rows, rows * 2))
    assert twice == pytest.approx(2 * once, rel=0.05)


def test_a_card_that_computes_twice_as_fast_halves_what_is_arithmetic():
    shape, card = shape_of(GEMMA), card_of("t4")
    faster = card.model_copy(update={"flops": 2 * card.flops, "bandwidth": 2 * card.bandwidth, "thin": 2 * card.thin})
    rows = [[Length(300, 200)]] * 512
    slow, fast = (generation_seconds(shape, one, rows, 128, 512) for one in (card, faster))
    assert 0.5 < fast / slow < 0.6


@pytest.mark.parametrize("name", CARDS)
def test_a_card_by_its_data_sheet_reaches_less_than_its_peak(name):
    card = card_of(name)
    assert not card.measured
    assert card.thin <= card.bandwidth
    assert card.name in card.line()


def test_a_t4_is_the_one_that_colab_lends():
    card = card_of("t4")
    assert (card.dtype, card.memory) == ("fp16", int(14.5 * GIB))
    assert card.flops < 65e12
    assert card.bandwidth < 320e9


def test_an_unknown_card_is_refused_with_those_that_are_known():
    with pytest.raises(CaiError) as error:
        card_of("voodoo2")
    assert "t4, l4, a100" in error.value.todo


@pytest.mark.slow
def test_this_machine_is_measured():
    card = measure_card(this_machine(), "fp32")
    assert card.measured
    # how they compare is not asserted: another program on the machine turns that round
    assert min(card.flops, card.bandwidth, card.thin, card.host_forward, card.host_training, card.in_graph) > 0


def test_lengths_have_the_mean_that_was_asked_for_and_stay_below_the_limit():
    lengths = spread(150, 256, 1000)
    assert max(lengths) <= 256
    assert sum(lengths) / 1000 == pytest.approx(150, rel=0.02)
    assert sorted(lengths) == sorted(spread(150, 256, 1000, 1))
    assert lengths != spread(150, 256, 1000, 1)


def test_the_prompts_of_the_workspace_are_counted_where_they_are(tmp_path):
    workspace = Workspace(tmp_path)
    write_jsonl(
        workspace.prompts, [{"id": str(n), "messages": [{"role": "user", "content": "x" * 400}]} for n in range(7)]
    )
    work = workload_of(load_settings("t4"), workspace)
    assert work.prompts == 7
    assert "7 prompts of 100 tokens on average (those of the workspace" in work.assumed[0]


def test_without_a_limit_nothing_says_how_many_prompts_there_are(tmp_path):
    with pytest.raises(CaiError) as error:
        workload_of(load_settings("t4", ["prompts.limit=null"]), Workspace(tmp_path))
    assert "prompts.limit" in error.value.todo


@pytest.mark.parametrize(
    ("protocol", "calls"), [("single/short", 1), ("two_step/short", 2), ("samples/4", 3), ("auto", 2)]
)
def test_a_protocol_brings_its_calls(tmp_path, protocol, calls):
    work = workload_of(load_settings("t4", [f"generate.protocol={protocol}", "prompts.limit=50"]), Workspace(tmp_path))
    assert sum(map(len, work.chains)) == 50 * (1 + calls)


def test_a_model_that_is_too_large_is_refused_with_the_setting_to_change(tmp_path):
    settings = load_settings("t4", ["models.base=mistralai/Mistral-7B-Instruct-v0.3"])
    plan = plan_run(settings, Workspace(tmp_path), "t4")
    assert "does not fit" in plan.verdict()
    with pytest.raises(CaiError) as error:
        require_fits(plan)
    assert "training" in error.value.what
    assert "models.base" in error.value.todo


def test_readiness_refuses_what_cannot_fit_before_anything_is_generated(monkeypatch, tmp_path):
    card = Machine("cuda", "T4", (7, 5), int(14.5 * GIB), 1)
    monkeypatch.setattr(readiness_memory, "this_machine", lambda: card)
    monkeypatch.setattr(readiness_memory, "usable_memory", lambda machine: machine.memory)
    fits = readiness_memory.memory(load_settings("t4"), Workspace(tmp_path))
    assert [check.ok for check in fits] == [True, True, True]
    large = load_settings("t4", ["models.base=mistralai/Mistral-7B-Instruct-v0.3"])
    checks = readiness_memory.memory(large, Workspace(tmp_path))
    assert any(not check.ok and "models.base" in check.todo for check in checks)


def test_the_three_phases_of_gemma_fit_a_t4(tmp_path):
    settings = load_settings("t4")
    card = card_of("t4")
    reward = shape_of(settings.models.reward.model, classifier=True)
    memory = memory_of(settings, card, shape_of(GEMMA), [reward])
    assert [phase.name for phase in memory] == ["generation", "scoring", "training"]
    assert all(phase.total < card.memory and not phase.todo for phase in memory)
    assert slots_of(shape_of(GEMMA), card, 1024) == 128


def test_twice_the_prompts_are_planned_with_about_twice_the_minutes(tmp_path):
    card = card_of("t4")
    few, many = (plan_on(card, load_settings("t4", [f"prompts.limit={n}"]), Workspace(tmp_path)) for n in (1000, 2000))
    for stage in ("generate", "score", "train"):
        assert 1.7 < many.minutes[stage] / few.minutes[stage] < 2.05


def test_cai_plan_prints_memory_and_minutes_and_ends_with_1_where_it_does_not_fit(tmp_path):
    run = CliRunner()
    arguments = ["plan", "--preset", "t4", "--card", "t4", "--workspace", str(tmp_path)]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0
    for part in ("memory, training", "minutes, generate", "modelled", "whose config.json is out of reach"):
        assert part in result.output
    assert run.invoke(app, [*arguments, "--model", "mistralai/Mistral-7B-Instruct-v0.3"]).exit_code == 1


def test_a_model_folder_of_ones_own_is_planned_from_its_config_alone(tmp_path):
    folder = tmp_path / "own"
    LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    ).save_pretrained(folder)
    assert [path.name for path in Path(folder).iterdir()] == ["config.json"]
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 64
    plan = plan_run(load_settings("t4", [f"models.base={folder}"]), Workspace(tmp_path / "run"), "t4")
    assert plan.total > 0
    assert str(folder) in plan.model


def test_all_known_shapes_are_built():
    for name in KNOWN:
        assert shape_of(name, classifier="reward" in name).parameters > 1e8


def test_readme_and_notebooks_name_the_minutes_that_are_modelled(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = Path(__file__).resolve().parent.parent
    readme = (root / "README.md").read_text(encoding="utf-8")
    for notebook, minutes in plan_minutes.minutes().items():
        [row] = [line for line in readme.splitlines() if line.startswith(f"| [{notebook}](")]
        assert row.endswith(f"| {minutes} |"), f"{notebook}: tools/plan_minutes.py says {minutes}"
        takes = (root / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8").partition("**Takes** ")[2]
        if minutes > 1:
            assert takes.startswith(f"about {minutes} minutes")
            assert "modelled" in takes.partition('"')[0]


def test_the_preset_t4_plans_2500_prompts_within_an_hour():
    assert load_settings("t4").prompts.limit == 2500
    assert plan_minutes.minutes()["run_all"] <= 60
