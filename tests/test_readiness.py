"""A planted fault of each kind stops the command in seconds, says what to do, and nothing is generated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import make_workspace
from typer.testing import CliRunner

from cai_helpers.cli import app
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, Machine
from cai_helpers.models.hub import locate
from cai_helpers.prompts.split import write_prompts
from cai_helpers.readiness import adapter_fit, needs
from cai_helpers.readiness.check import Check, require
from cai_helpers.settings import load_settings
from cai_helpers.stages.evaluate import evaluate_models
from cai_helpers.store import write_json, write_jsonl

CPU = Machine("cpu", "CPU, 2 cores", None, 8 * GIB, 0)


class Fault(NamedTuple):
    plant: Callable[[Path], list[str]]  # given an empty folder, the options of a command that has the fault
    cause: str
    remedy: str


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(locate(name), folder / name.removeprefix("embedded:")))


def with_tensors(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def not_finite(tensors: dict[str, torch.Tensor]) -> None:
    min(tensors.items())[1].view(-1)[0] = float("nan")


def turned_round(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"].neg_()


def prompts_without_conversations(folder: Path) -> list[str]:
    write_jsonl(folder / "numbers.jsonl", [{"number": number} for number in range(30)])
    return ["--prompts", str(folder / "numbers.jsonl")]


def broken_constitution(folder: Path) -> list[str]:
    (folder / "mine.yaml").write_text("categories: {}\nprinciples: [")
    return ["--set", f"generate.constitution={folder / 'mine.yaml'}"]


def unknown_protocol(folder: Path) -> list[str]:
    return ["--set", "generate.protocol=single/shortest"]


def adapter_of_another_base(folder: Path) -> list[str]:
    stage2 = copied("embedded:stage2", folder)

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor[:, :-8].clone() if "lora_A" in name else tensor

    return ["--adapter", str(with_tensors(stage2, "adapter_model.safetensors", narrow))]


def adapter_of_a_deeper_base(folder: Path) -> list[str]:
    stage2 = copied("embedded:stage2", folder)

    def deepen(tensors: dict[str, torch.Tensor]) -> None:
        name = min(name for name in tensors if "layers.0" in name)
        tensors[name.replace("layers.0", "layers.77")] = tensors.pop(name)

    return ["--adapter", str(with_tensors(stage2, "adapter_model.safetensors", deepen))]


def broken_adapter(folder: Path) -> list[str]:
    stage2 = copied("embedded:stage2", folder)
    return ["--adapter", str(with_tensors(stage2, "adapter_model.safetensors", not_finite))]


def torn_adapter(folder: Path) -> list[str]:
    stage2 = copied("embedded:stage2", folder)
    weights = stage2 / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return ["--adapter", str(stage2)]


def adapter_of_another_rank(folder: Path) -> list[str]:
    stage2 = copied("embedded:stage2", folder)
    config = json.loads((stage2 / "adapter_config.json").read_text())
    write_json(stage2 / "adapter_config.json", config | {"r": 4})
    return ["--adapter", str(stage2)]


def reward_without_head(folder: Path) -> list[str]:
    return ["--set", f"models.reward={copied('embedded:chat', folder)}"]


def reward_turned_round(folder: Path) -> list[str]:
    reward = with_tensors(copied("embedded:reward", folder), "model.safetensors", turned_round)
    return ["--set", f"models.reward={reward}"]


def broken_base(folder: Path) -> list[str]:
    base = with_tensors(copied("embedded:chat", folder), "model.safetensors", not_finite)
    return ["--model", str(base), "--adapter", "none"]


def with_template(change: Callable[[str], str]) -> Callable[[Path], list[str]]:
    def plant(folder: Path) -> list[str]:
        base = copied("embedded:chat", folder)
        template = base / "chat_template.jinja"
        template.write_text(change(template.read_text()))
        return ["--model", str(base)]

    return plant


def compulsory_thinking(template: str) -> str:
    return template + "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"


def open_answers(template: str) -> str:
    assert "<end_of_turn>" in template
    return template.replace("<end_of_turn>", "")


def no_endpoint(folder: Path) -> list[str]:
    changes = ["generate.critic=api", "endpoint.base_url=http://127.0.0.1:9/v1", "endpoint.model=judge"]
    return [option for change in changes for option in ("--set", change)]


FAULTS = {
    "prompts file missing": Fault(
        lambda folder: ["--prompts", str(folder / "none.jsonl")], "prompts: There is no file", "Check the path"
    ),
    "no conversations": Fault(prompts_without_conversations, "holds no conversation", "--set prompts.column=NAME"),
    "gold missing": Fault(
        lambda folder: ["--set", f"calibrate.gold={folder / 'gold.jsonl'}"], "gold pairs: There is no file", "Check the path"
    ),
    "constitution broken": Fault(broken_constitution, "mine.yaml, line 2: not valid YAML", "Correct that line"),
    "protocol unknown": Fault(unknown_protocol, "no protocol 'single/shortest'", "Set generate.protocol"),
    "base missing": Fault(lambda folder: ["--model", str(folder / "none")], "base model: There is no folder", "a Hub id"),
    "adapter missing": Fault(
        lambda folder: ["--adapter", str(folder / "none")], "adapter: There is no folder", "a Hub id"
    ),
    "adapter of another base": Fault(adapter_of_another_base, "does not fit the base model", "Set models.base"),
    "adapter of a deeper base": Fault(adapter_of_a_deeper_base, "has no layer model.layers.77", "Set models.base"),
    "adapter not finite": Fault(broken_adapter, "holds a number that is not finite", "Copy its folder again"),
    "adapter torn": Fault(torn_adapter, "cannot be read", "Copy its folder again"),
    "adapter of another rank": Fault(adapter_of_another_rank, "has rank 8, and the file says 4", "must belong together"),
    "reward missing": Fault(
        lambda folder: ["--set", f"models.reward={folder / 'none'}"], "reward model: There is no folder", "a Hub id"
    ),
    "reward without a head": Fault(reward_without_head, "score.weight is missing", "a sequence classifier with a trained"),
    "reward turned round": Fault(reward_turned_round, "to word salad", "check models.reward"),
    "base not finite": Fault(broken_base, "its weights are broken", "Load the model or the adapter again"),
    "compulsory thinking": Fault(
        with_template(compulsory_thinking), "training would see another prompt", "without compulsory thinking"
    ),
    "open answers": Fault(with_template(open_answers), "does not close an answer", "whose template closes each turn"),
    "no endpoint": Fault(no_endpoint, "127.0.0.1:9/v1 failed", "that the server runs"),
}  # fmt: skip


def invoked(workspace, *options: str, command: str = "generate", preset: str = "smoke"):
    return CliRunner().invoke(app, [command, "--preset", preset, "--workspace", str(workspace.root), *options])


def error_of(result) -> str:
    assert result.exit_code == 1, result.output
    what, todo, *_ = result.output.partition("Error: ")[2].splitlines()
    return f"{what}\n{todo}"


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_stops_before_anything_is_generated(fault, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # else no endpoint is asked at all
    error = error_of(invoked(workspace, *fault.plant(tmp_path)))
    assert fault.cause in error
    assert fault.remedy in error
    assert not workspace.traces.exists()


def test_a_full_disk_is_said_before_anything_is_written(workspace, monkeypatch):
    monkeypatch.setattr("cai_helpers.readiness.host.free_disk", lambda path: GIB // 10)
    error = error_of(invoked(workspace))
    assert "disk: 0.1 GiB free" in error
    assert "give another --workspace" in error
    assert not workspace.prompts.exists()


@pytest.mark.parametrize("command", ["generate", "bakeoff", "run"])
def test_a_preset_for_a_gpu_is_refused_without_one(command, workspace, tiny, monkeypatch):
    monkeypatch.setattr("cai_helpers.readiness.host.this_machine", lambda: CPU)
    options = ["--model", str(tiny / "base"), "--prompts", "embedded:prompts/train.jsonl", "--set", "calibrate.gold=null",
               "--set", "models.reward=embedded:reward"]  # fmt: skip
    error = error_of(invoked(workspace, *options, command=command, preset="t4"))
    assert "the preset t4 is sized for one" in error
    assert all(remedy in error for remedy in ("Runtime → Change runtime type", "--preset smoke", "--cpu"))
    assert not workspace.pairs_dir.exists()


def test_who_says_cpu_runs_a_preset_for_a_gpu_without_one(workspace, tiny, monkeypatch):
    monkeypatch.setattr("cai_helpers.readiness.host.this_machine", lambda: CPU)
    changes = [
        f"models.base={tiny / 'base'}",
        "models.reward=embedded:reward",
        "prompts.source=embedded:prompts/train.jsonl",
    ]
    lines = needs.needed(load_settings("t4", [*changes, "cpu=true"]), workspace, "generate")
    assert [check.line() for check in lines if not check.ok] == []
    [without] = [check for check in needs.needed(load_settings("t4", changes), workspace, "generate") if not check.ok]
    assert without.name == "GPU"


def test_the_option_cpu_is_the_setting_cpu(workspace, tiny, monkeypatch):
    monkeypatch.setattr("cai_helpers.readiness.host.this_machine", lambda: CPU)
    options = ["--model", str(tiny / "base")]
    assert "TODO  GPU: none" in invoked(workspace, *options, command="doctor", preset="t4").output
    assert "ok    GPU: none" in invoked(workspace, *options, "--cpu", command="doctor", preset="t4").output


def test_all_faults_are_in_one_list_with_what_is_fine(workspace, tmp_path):
    result = invoked(workspace, *broken_adapter(tmp_path), "--set", f"calibrate.gold={tmp_path / 'gold.jsonl'}")
    assert "ok    constitution: " in result.output
    assert result.output.count("TODO  ") == 2
    error = error_of(result)
    assert "gold pairs: There is no file" in error
    assert "holds a number that is not finite" in error


def test_an_adapter_that_names_another_base_of_the_same_shape_is_a_warning(smoke, workspace, tmp_path):
    stage2 = copied("embedded:stage2", tmp_path)
    config = json.loads((stage2 / "adapter_config.json").read_text())
    write_json(stage2 / "adapter_config.json", config | {"base_model_name_or_path": "me/elsewhere"})
    settings = smoke.model_copy(update={"models": smoke.models.model_copy(update={"adapter": str(stage2)})})
    [adapter] = [check for check in needs.needed(settings, workspace, "train") if check.name == "adapter"]
    assert adapter.ok
    assert "WARNING: it names me/elsewhere as its base, and models.base is embedded:chat" in adapter.found


def test_an_adapter_that_names_another_model_of_the_hub_is_refused(tmp_path):
    stage2 = copied("embedded:stage2", tmp_path)
    config = json.loads((stage2 / "adapter_config.json").read_text())

    def named(base: str, ours: str = "google/gemma-2b-it") -> str:
        write_json(stage2 / "adapter_config.json", config | {"base_model_name_or_path": base})
        return adapter_fit._other_name(json.loads((stage2 / "adapter_config.json").read_text()), ours, "mine")

    with pytest.raises(CaiError, match="mine was trained on google/gemma-2b, and the base model is google/gemma-2b-it"):
        named("google/gemma-2b")
    with pytest.raises(CaiError, match="mine was trained on google/gemma-2b, and the base model is"):
        named("google/gemma-2b", ours="google/gemma-2b-it@v1")
    assert named("google/gemma-2b-it") == named("google/gemma-2b-it", ours="google/gemma-2b-it@refs/pr/1") == ""
    assert "WARNING: it names unsloth/gemma-2b-it-bnb-4bit" in named("unsloth/gemma-2b-it-bnb-4bit")
    assert "WARNING: it names /content/gemma" in named("/content/gemma")


def test_a_folder_without_an_adapter_config_is_no_adapter(smoke, workspace, tmp_path):
    settings = smoke.model_copy(update={"models": smoke.models.model_copy(update={"adapter": str(tmp_path)})})
    [adapter] = [check for check in needs.needed(settings, workspace, "train") if check.name == "adapter"]
    assert (adapter.ok, adapter.found) == (False, f"The folder {tmp_path} has no adapter_config.json.")


def test_a_folder_of_drive_is_never_asked_of_the_hub(smoke, workspace, monkeypatch):
    monkeypatch.setattr("huggingface_hub.auth_check", lambda name: pytest.fail(f"the Hub was asked for {name}"))
    settings = smoke.model_copy(update={"models": smoke.models.model_copy(update={"adapter": "MyDrive/stage2"})})
    [adapter] = [check for check in needs.needed(settings, workspace, "train") if check.name == "adapter"]
    assert (adapter.ok, adapter.found) == (False, "There is no folder MyDrive/stage2.")


def test_an_adapter_of_the_hub_is_fetched_and_held_against_the_base_before_anything_long(
    smoke, workspace, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.auth_check", lambda name: None)
    settings = smoke.model_copy(update={"models": smoke.models.model_copy(update={"adapter": "me/stage2"})})

    def adapter_line() -> str:
        return next(check.found for check in needs.needed(settings, workspace, "train") if check.name == "adapter")

    here = copied("embedded:stage2", tmp_path)
    fetched: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: fetched.append(name))
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file, revision=None: str(here / file) if name in fetched else None,
    )
    assert adapter_line().startswith("me/stage2, rank 8, 56 matrices that fit embedded:chat, all finite")


def test_ctrl_c_while_it_is_tried_is_one_sentence(workspace, monkeypatch):
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cai_helpers.readiness.policy.load_chat_format", interrupted)
    monkeypatch.setattr("cai_helpers.readiness.policy._KNOWN", {})
    result = invoked(workspace)
    assert result.exit_code == 130
    assert "Stopped by hand while it was tried whether all is ready; nothing was started." in result.output


def test_a_model_that_says_nothing_is_refused(scripted):
    with pytest.raises(CaiError, match="answers a greeting with nothing"):
        needs.require_answer(scripted([""]))
    needs.require_answer(scripted(["Hello."]))


def test_the_scorer_is_loaded_for_its_trial_once_in_a_process(smoke, workspace, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("cai_helpers.scoring.judge.load_scorer", loaded.append)
    settings = load_settings("smoke", [f"models.reward={copied('embedded:reward', tmp_path)}"])
    for stage in ("bakeoff", "generate", "evaluate"):
        needs.require_scorer(settings, workspace, stage)
    assert loaded == [settings]


def test_a_later_need_is_a_warning_where_the_stage_is_of_use_by_itself(smoke, workspace, tmp_path, capsys):
    reward = smoke.models.reward.model_copy(update={"model": str(tmp_path / "none")})
    settings = smoke.model_copy(update={"models": smoke.models.model_copy(update={"reward": reward})})
    needs.require_ready(settings, workspace, "train")
    assert "WARNING: for what comes later: TODO  reward model: There is no folder" in capsys.readouterr().out
    with pytest.raises(CaiError, match="reward model: There is no folder"):
        needs.require_ready(settings, workspace, "evaluate")


def test_a_finished_run_can_be_opened_on_any_machine(smoke, workspace, monkeypatch):
    monkeypatch.setattr("cai_helpers.readiness.host.free_disk", lambda path: 0)
    with pytest.raises(CaiError, match="disk: "):
        needs.require_ready_for_run(smoke, workspace)
    for stage in ("generate", "score", "train", "evaluate"):
        write_json(workspace.manifest_of(stage), {})
    needs.require_ready_for_run(smoke, workspace)


def test_fewer_prompts_than_training_needs_is_said_before(workspace):
    checks = needs.needed(load_settings("smoke", ["prompts.limit=10"]), workspace, "generate")
    assert (
        "WARNING: prompts.limit = 10 gives fewer pairs than training needs (curate.min_pairs = 60)" in checks[0].found
    )


def test_what_is_missing_and_what_to_do_is_one_error():
    checks = [
        Check("a", True, "fine"),
        Check("b", False, "it is gone", "Bring it."),
        Check("c", False, "Off.", "Turn it on"),
    ]
    with pytest.raises(CaiError) as caught:
        require(checks)
    assert caught.value.what == "Not ready, so nothing was started. b: it is gone. c: Off."
    assert caught.value.todo == "Bring it. Turn it on."


def test_training_refuses_a_broken_adapter_and_goes_on_with_a_mended_one(tmp_path):
    workspace = make_workspace(tmp_path / "run")
    [_, broken] = broken_adapter(tmp_path)
    options = ["--adapter", broken, "--set", "curate.min_pairs=10"]
    assert "holds a number that is not finite" in error_of(invoked(workspace, *options, command="train"))
    assert not workspace.checkpoints.exists()
    assert workspace.begun("train") is None  # a mended adapter is not "other settings"


def test_the_evaluation_tries_its_scorer_before_it_generates(workspace, tmp_path):
    settings = load_settings("smoke", [reward_turned_round(tmp_path)[1]])
    write_prompts(settings, workspace)
    shutil.copytree(locate("embedded:stage2"), workspace.adapter)
    with pytest.raises(CaiError, match="to word salad"):
        evaluate_models(settings, workspace)
    assert not workspace.answers.exists()
