"""Several processes of one `accelerate launch`, on CPUs by gloo: what comes out is what one process makes."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch

from cai_helpers.errors import CaiError
from cai_helpers.machine.processes import Processes, base_is_cut_up, require_known_launch
from cai_helpers.settings import Settings, load_settings
from cai_helpers.shares import take_in
from cai_helpers.stages.train import train_policy
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.training.cut_up import parameters_held, taken_by_ddp
from cai_helpers.training.load import Load, load_of_each
from cai_helpers.training.memory_plan import empty_model
from cai_helpers.workspace import Workspace

FSDP = Path(__file__).parent.parent / "cai_helpers" / "assets" / "fsdp.yaml"
LAUNCHED = str(Path(__file__).parent / "launched.py")
CLI = ["-m", "cai_helpers.cli"]
# An epoch is counted in each process's own batches, tokens in each call.
OWN = {"seconds", "tokens_per_s", "epoch", "tokens"}


def launch(*arguments: str, processes: int = 2, code: int = 0, fsdp: bool = False, **environment: str) -> str:
    """What was said by a launch that ended with `code`."""
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    # --multi_gpu is what starts processes at all; accelerate's own --cpu starts one
    how = ["--config_file", str(FSDP)] if fsdp else ["--multi_gpu"]
    launcher = ["-m", "accelerate.commands.launch", *how, "--num_processes", str(processes), *options]
    # the launcher must not wait for a GPU or a network name that is not there
    cpu = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, env={**os.environ, **cpu}, capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def rows_of(path: Path, *without: str) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in without} for row in read_jsonl(path)]


def by_id(path: Path) -> dict[str, dict]:
    rows = list(read_jsonl(path))
    assert len(rows) == len({row["id"] for row in rows})
    return {row["id"]: row for row in rows}


def prepared(folder: Path, settings: Settings, rows: int = 26) -> Workspace:
    """26 rows in batches of 2, two a step: the last step of an epoch has one batch, none for a second process."""
    workspace = tiny_run.make_workspace(folder, train=rows, held_out=7)
    workspace.save_settings(settings)
    return workspace


def require_same_training(one: Workspace, two: Workspace, history: str = "history", only: tuple[str, ...] = ()) -> None:
    """only: these figures; none: all."""
    ours, theirs = (rows_of(getattr(workspace, history), *OWN) for workspace in (one, two))
    assert len(ours) == len(theirs) > 8
    for row, other in zip(ours, theirs, strict=True):
        names = [name for name in row if not only or name in only]
        assert names
        assert [row[name] for name in names] == pytest.approx([other[name] for name in names], abs=1e-5)
    tensors, others = tiny_run.adapter_tensors(one), tiny_run.adapter_tensors(two)
    assert max((tensors[name] - others[name]).abs().max().item() for name in tensors) < 1e-6


@pytest.mark.usefixtures("no_training_picture")
def test_dpo_in_two_processes_has_the_losses_and_the_weights_of_one(tiny, tmp_path):
    settings = tiny_run.make_settings(tiny)
    one, two = prepared(tmp_path / "one", settings), prepared(tmp_path / "two", settings)
    train_policy(settings, one)
    said = launch(LAUNCHED, f"train={two.root}")
    assert said.count("26 pairs, 7 held out") == 1  # the main process speaks for all
    require_same_training(one, two)
    assert (two.checkpoints / "checkpoint-14" / "rng_state_1.pth").exists()  # there were two
    assert two.manifest_of("train").exists()


@pytest.mark.long
@pytest.mark.usefixtures("no_training_picture")
def test_checkpoints_go_on_with_another_number_of_processes(tiny, tmp_path):
    settings = tiny_run.make_settings(tiny)
    names = ("whole", "two to one", "one to two")
    whole, fewer, more = (prepared(tmp_path / name, settings) for name in names)
    train_policy(settings, whole)
    launch(LAUNCHED, f"train-until-7={fewer.root}")
    with pytest.raises(CaiError):
        train_policy(settings, more, watch=_stop_at_7)
    assert train_policy(settings, fewer).resumed_from == 6
    launch(LAUNCHED, f"train={more.root}")
    for workspace in (fewer, more):
        require_same_training(whole, workspace)


def _stop_at_7(progress) -> None:
    if progress.step >= 7:
        raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.usefixtures("no_training_picture")
def test_supervised_training_and_dpo_after_it_are_those_of_one_process(tiny, tmp_path):
    without = {"adapter": False, "lora_dropout": 0}  # what is dropped is another in each process
    settings = tiny_run.make_settings(tiny, **without, method="sft+dpo", sft_epochs=2, sft_learning_rate=1e-3)
    one, two = prepared(tmp_path / "one", settings), prepared(tmp_path / "two", settings)
    train_policy(settings, one)
    launch(LAUNCHED, f"train={two.root}")
    require_same_training(one, two)
    require_same_training(one, two, "sft_history")


@pytest.mark.long
@pytest.mark.usefixtures("no_training_picture")
def test_batches_that_cannot_be_dealt_out_are_made_smaller(tiny, tmp_path):
    """One batch of 4 a step, each of two processes takes 2 of its rows; at the end of an epoch 2 and 1."""
    settings = tiny_run.make_settings(tiny, batch_size=4, accumulation=1)
    one, two = (prepared(tmp_path / name, settings, rows=27) for name in ("one", "two"))
    train_policy(settings, one)
    launch(LAUNCHED, f"train={two.root}")
    # a figure is the mean over batches, which in the last step have other sizes; the loss weighs them by their rows
    require_same_training(one, two, only=("loss", "eval_loss", "grad_norm", "step"))


@pytest.mark.long
def test_generating_in_two_processes_yields_the_rows_of_one(tmp_path):
    changes = ["prompts.limit=16", "generate.batch_size=4", "threads=1", "generate.protocol=single/short"]
    one, two = Workspace(tmp_path / "one"), Workspace(tmp_path / "two")
    from cai_helpers.stages.generate import generate_pairs

    generate_pairs(load_settings("smoke", changes), one)
    options = [part for change in changes for part in ("--set", change)]
    launch(*CLI, "generate", "--preset", "smoke", "--workspace", str(two.root), *options)
    assert by_id(two.traces) == by_id(one.traces)
    assert len(by_id(two.traces)) == 16
    assert not list(two.pairs_dir.glob("traces.*.jsonl"))
    assert two.manifest_of("generate").exists()


def assert_alike(one, other) -> None:
    """The same but for the last digits of numbers: a padded batch rounds a score otherwise."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, list):
        for mine, theirs in zip(one, other, strict=True):
            assert_alike(mine, theirs)
    else:
        assert other == (pytest.approx(one, abs=1e-4) if isinstance(one, float) else one)


@pytest.mark.long
def test_scores_and_the_evaluation_are_those_of_one_process(tmp_path):
    """The embedded models; two processes score and compare what one has generated and trained."""
    from cai_helpers.stages.curate import curate_pairs
    from cai_helpers.stages.evaluate import evaluate_models
    from cai_helpers.stages.generate import generate_pairs
    from cai_helpers.stages.score import score_pairs

    changes = ["prompts.limit=60", "evaluate.limit=20", "curate.min_pairs=5", "train.epochs=1", "threads=1"]
    settings = load_settings("smoke", changes)
    one, two = Workspace(tmp_path / "one"), Workspace(tmp_path / "two")
    one.save_settings(settings)
    generate_pairs(settings, one)
    shutil.copytree(one.root, two.root)
    score_pairs(settings, one)
    curate_pairs(settings, one)
    train_policy(settings, one)
    shutil.copytree(one.adapter, two.adapter)
    report = evaluate_models(settings, one)
    launch(LAUNCHED, f"score={two.root}", f"evaluate={two.root}")
    for path, other in ((one.pairs, two.pairs), (one.responses, two.responses)):
        for row, shared in zip(read_jsonl(path), read_jsonl(other), strict=True):
            assert_alike(row, shared)
    assert by_id(one.answers) == by_id(two.answers)
    assert by_id(one.scores).keys() == by_id(two.scores).keys()
    shared_report = two.manifest("evaluate").report
    assert shared_report["judgement"]["verdict"] == report.judgement.verdict
    assert not list(two.root.glob("*/*.[0-9].jsonl"))


@pytest.mark.long
def test_a_launch_is_told_once_what_is_wrong(tiny, tmp_path):
    workspace = prepared(tmp_path, tiny_run.make_settings(tiny, batch_size=3, accumulation=1))
    said = launch(*CLI, "train", "--workspace", str(workspace.root), code=1)
    assert said.count("3 × 1 = 3 rows cannot be divided among 2 processes") == 1
    said = launch(*CLI, "curate", "--workspace", str(workspace.root), code=1)
    assert said.count("`cai curate` is the work of one process") == 1


def test_a_launch_that_asks_for_what_training_does_not_do_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(CaiError, match="asks for DeepSpeed"):
        train_policy(tiny_run.make_settings(tiny), prepared(tmp_path, tiny_run.make_settings(tiny)))


@pytest.mark.parametrize(("setting", "value", "words"), [("VERSION", "1", "FSDP 1"), ("OFFLOAD_PARAMS", "true", "CPU")])
def test_kinds_of_fsdp_that_training_does_not_do_are_refused(monkeypatch, setting, value, words):
    for name, given in {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, given)
    monkeypatch.setenv("CAI_BASE_CUT_UP", "false")  # so that it is taken back
    require_known_launch()
    monkeypatch.setenv(f"FSDP_{setting}", value)
    with pytest.raises(CaiError, match=words):
        require_known_launch()


def test_accelerate_and_transformers_are_not_shown_that_a_launch_asks_for_fsdp(monkeypatch):
    """They would cut up the LoRA as well, and load weights in one process alone."""
    monkeypatch.setenv("CAI_BASE_CUT_UP", "false")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not base_is_cut_up()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert base_is_cut_up()
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert base_is_cut_up()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not base_is_cut_up()


def test_a_card_is_planned_to_hold_its_part_of_the_layers_and_three_whole_ones(tiny):
    """9,280 parameters in each of 2 layers; embeddings and the last norm stay whole."""
    base = empty_model(str(tiny / "base"))
    rest = sum(weights.numel() for weights in base.parameters()) - 2 * 9280
    assert parameters_held(base, 2) == rest + 9280 + 3 * 9280
    assert parameters_held(base, 4) == rest + 9280 // 2 + 3 * 9280


@pytest.mark.usefixtures("no_training_picture")
def test_dpo_with_the_base_cut_up_has_the_losses_and_the_weights_of_one_process(tiny, tmp_path):
    settings = tiny_run.make_settings(tiny)
    one, two = prepared(tmp_path / "one", settings), prepared(tmp_path / "two", settings)
    train_policy(settings, one)
    said = launch(LAUNCHED, f"train={two.root}", fsdp=True)
    require_same_training(one, two)
    assert said.count("37,120 of 74,240 bytes of its layers") == 1  # 2 layers of 9,280 parameters in fp32


@pytest.mark.long
@pytest.mark.usefixtures("no_training_picture")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_processes_that_share_a_base_compute_as_many_parts_of_a_batch_as_each_other(tiny, tmp_path, checkpointed):
    """Of two rows that stand together one may be large, so that a batch of one process is cut and the other's is not."""
    settings = tiny_run.make_settings(tiny, gradient_checkpointing=None if checkpointed else False)
    one, two = prepared(tmp_path / "one", settings), prepared(tmp_path / "two", settings)
    train_policy(settings, one)
    said = launch(LAUNCHED, f"train-in-parts={two.root}", fsdp=True)
    assert "counts for nothing" in said  # some part did
    require_same_training(one, two)


@pytest.mark.long
@pytest.mark.usefixtures("no_training_picture")
def test_checkpoints_of_a_base_that_is_cut_up_and_of_a_whole_one_go_on_as_each_other(tiny, tmp_path):
    settings = tiny_run.make_settings(tiny)
    whole, fewer, more = (prepared(tmp_path / name, settings) for name in ("whole", "cut to one", "one to cut"))
    train_policy(settings, whole)
    launch(LAUNCHED, f"train-until-7={fewer.root}", fsdp=True)
    with pytest.raises(CaiError):
        train_policy(settings, more, watch=_stop_at_7)
    assert train_policy(settings, fewer).resumed_from == 6
    launch(LAUNCHED, f"train={more.root}", fsdp=True)
    for workspace in (fewer, more):
        require_same_training(whole, workspace)
        assert tiny_run.adapter_tensors(workspace).keys() == tiny_run.adapter_tensors(whole).keys()


@pytest.mark.long
@pytest.mark.usefixtures("no_training_picture")
@pytest.mark.parametrize("method", ["merged Stage 2", "sft+dpo without Stage 2"])
def test_a_new_lora_on_a_base_that_is_cut_up_trains_as_in_one_process(tiny, tmp_path, method):
    merged = method == "merged Stage 2"
    more = {"fresh_adapter": True} if merged else {"method": "sft+dpo", "sft_epochs": 2, "sft_learning_rate": 1e-3}
    settings = tiny_run.make_settings(tiny, adapter=merged, lora_dropout=0, **more)
    one, two = prepared(tmp_path / "one", settings), prepared(tmp_path / "two", settings)
    train_policy(settings, one)
    launch(LAUNCHED, f"train={two.root}", fsdp=True)
    require_same_training(one, two)
    if not merged:
        require_same_training(one, two, "sft_history")


@pytest.mark.long
def test_the_benchmark_of_two_gpus_runs_on_a_cpu_and_finds_the_same_losses():
    script = Path(__file__).parent.parent / "benchmarks" / "two_gpus.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script), "--tiny"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [line.split("[")[1] for line in done.stdout.splitlines() if line.startswith(("  one [", "  two ["))]
    assert losses[::2] == losses[1::2]
    assert len(losses) == 4  # of DDP and of FSDP
    assert "| generation |" in done.stdout


def test_each_process_has_whole_batches_or_smaller_ones_and_else_a_launch_is_refused():
    def load(batch_size: int, accumulation: int, processes: int, method: str = "dpo") -> Load:
        train = Settings(train={"batch_size": batch_size, "accumulation": accumulation, "method": method}).train
        return load_of_each(train, processes)

    assert load(4, 2, 1) == (4, 2)
    assert load(4, 2, 2) == (4, 1)
    assert load(4, 2, 4) == (2, 1)
    assert load(4, 2, 8) == (1, 1)
    assert load(6, 3, 2) == (3, 3)
    with pytest.raises(CaiError, match=r"4 × 2 = 8 rows cannot be divided among 3 processes"):
        load(4, 2, 3)
    with pytest.raises(CaiError, match="loss_type=sft is of a whole batch"):
        load_of_each(Settings(train={"loss_type": ["sigmoid", "sft"], "batch_size": 8, "accumulation": 1}).train, 2)
    with pytest.raises(CaiError, match="kto trains in one process"):
        load(4, 2, 2, "kto")


def test_every_row_falls_to_one_process_and_large_rows_to_each():
    rows = ["a" * length for length in range(1, 8)]
    shares = [Processes(index, 3).share(rows, len) for index in range(3)]
    assert [[len(row) for row in share] for share in shares] == [[7, 4, 1], [6, 3], [5, 2]]
    assert Processes(0, 1).share(rows, len) == rows


def test_rows_that_killed_processes_left_in_their_shares_are_taken_in(tmp_path):
    """A share with a torn last row, and a row that is in the file already."""
    store = JsonlStore(tmp_path / "traces.jsonl")
    store.append([{"id": "a"}])
    write_jsonl(tmp_path / "traces.0.jsonl", [{"id": "a"}, {"id": "b"}])
    (tmp_path / "traces.1.jsonl").write_bytes(b'{"id": "c"}\n{"id": "d", "dra')
    take_in(store)
    assert [row["id"] for row in store.rows()] == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["traces.jsonl"]


def test_accelerate_hands_a_model_that_is_cut_up_to_ddp_while_it_trains_and_not_otherwise():
    """Its refusal exists on GPUs alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Linear(2, 2)
        cut = distribute_tensor(model.weight.detach(), init_device_mesh("cpu", (1,)))
        model.weight = torch.nn.Parameter(cut, requires_grad=False)
        accelerate = importlib.import_module("accelerate.accelerator")
        assert accelerate.model_has_dtensor(model)
        with taken_by_ddp():
            assert not accelerate.model_has_dtensor(model)
        assert accelerate.model_has_dtensor(model)
    finally:
        torch.distributed.destroy_process_group()
