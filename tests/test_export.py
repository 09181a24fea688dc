"""The zip: what goes in comes out again, nothing else goes in, and the same workspace gives the same bytes."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError
from cai_helpers.models.hub import locate
from cai_helpers.models.language import attach_adapter, load_base
from cai_helpers.schema import StageReport
from cai_helpers.settings import load_settings
from cai_helpers.stages import export
from cai_helpers.stages.export import export_artifacts
from cai_helpers.store import write_json, write_jsonl
from cai_helpers.training.policy.lora import POLICY, save_policy


class Shown(StageReport):
    name: str
    shown: list[tuple[str, str]]

    def title(self):
        return self.name

    def lines(self):
        return self.shown


@pytest.fixture
def finished(workspace):
    """A workspace in which every stage has run, as far as the export can see."""
    write_jsonl(workspace.pairs, [{"prompt": "How?", "base_response": "So\u2028so."}])
    write_jsonl(workspace.train_rows, [{"id": "a"}])
    write_json(workspace.metrics, {"train": {"steps": 78}})
    checkpoint = workspace.checkpoints / "checkpoint-50"
    for folder in (workspace.adapter, workspace.reports / "pages", checkpoint, workspace.logs):
        folder.mkdir(parents=True)
    tensors = {f"layer.{index}.lora_A": np.full((2, 3), index, dtype=np.float32) for index in range(4)}
    (workspace.adapter / "adapter_model.safetensors").write_bytes(save(tensors))
    write_json(workspace.adapter / "adapter_config.json", {"base_model_name_or_path": "google/gemma-2b-it"})
    (workspace.reports / "training.png").write_bytes(b"picture")
    (workspace.reports / "pages" / "pairs.html").write_text("<p>")
    (checkpoint / "optimizer.pt").write_bytes(b"moments")
    (workspace.logs / "run.log").write_text("hf_ok")
    workspace.seal(
        "curate", {}, [], Shown(name="Data", shown=[("dropped: unparsed", "8  (not the form\nasked | for)")])
    )
    seal_training(workspace)
    evaluated = Shown(name="Evaluation", shown=[("win rate", "61 % (52–69 %)")])
    workspace.seal("evaluate", {"input adapter": file_hash(workspace.adapter)}, [], evaluated)
    return workspace


def seal_training(workspace):
    workspace.seal("train", {}, [workspace.adapter], Shown(name="Training", shown=[("margin", "+0.000 → +0.361")]))


def members(report):
    with zipfile.ZipFile(report.path) as archive:
        return {name.removeprefix("stage3_constitutional/"): archive.read(name) for name in archive.namelist()}


def test_the_zip_holds_what_belongs_in_it_and_nothing_else(smoke, finished):
    report = export_artifacts(smoke, finished)
    found = members(report)
    assert list(found) == [
        "README.md",
        "dpo_dataset/train.jsonl",
        "metrics.json",
        "models/lora_adapters/adapter_config.json",
        "models/lora_adapters/adapter_model.safetensors",
        "pairs/pairs.jsonl",
        "reports/pages/pairs.html",
        "reports/training.png",
        "settings.json",
        "versions.json",
    ]
    assert found["pairs/pairs.jsonl"] == finished.pairs.read_bytes()
    assert len(load(found["models/lora_adapters/adapter_model.safetensors"])) == 4
    assert json.loads(found["settings.json"]) == smoke.model_dump(mode="json")
    assert (report.files, report.adapter, report.tensors) == (10, True, 4)
    assert finished.manifest("export").outputs.keys() == {"export/stage3_constitutional.zip"}


def test_a_file_that_was_being_written_when_a_stage_died_stays_out(smoke, finished):
    (finished.reports / "report.html.tmp").write_text("half a page")
    export_artifacts(smoke, finished)
    with zipfile.ZipFile(finished.export_dir / "stage3_constitutional.zip") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".tmp")]


def test_the_card_says_what_was_measured_and_how_to_load_it(smoke, finished):
    card = members(export_artifacts(smoke, finished))["README.md"].decode()
    for line in (
        'base_model: "embedded:chat"',
        "| Stage 2, the policy that training started from and its reference | `embedded:stage2` |",
        'name = locate("embedded:chat")',
        "| dropped: unparsed | 8 (not the form asked \\| for) |",
        "| margin | +0.000 → +0.361 |",
        "| win rate | 61 % (52–69 %) |",
    ):
        assert line in card.split("\n")


def test_the_loading_code_of_the_card_runs_and_the_adapter_answers(smoke, workspace, tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(locate("embedded:chat"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(workspace.adapter)
    write_jsonl(workspace.pairs, [{"prompt": "How?"}])
    seal_training(workspace)
    with zipfile.ZipFile(export_artifacts(smoke, workspace).path) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path / "stage3_constitutional")
    code = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert names["model"].peft_config["default"].r == 2
    assert names["tokenizer"].chat_template


@pytest.mark.slow
def test_who_loads_the_zip_by_its_card_gets_answers_that_end(smoke, workspace, tmp_path, monkeypatch):
    """The base lists <eos> alone, as Gemma 1 does, and its template closes turns with <end_of_turn>."""
    base = Path(shutil.copytree(locate("embedded:chat"), tmp_path / "base"))
    for file in (base / "config.json", base / "generation_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 1}))
    settings = smoke.model_copy(update={"models": smoke.models.model_copy(update={"base": str(base)})})
    policy = attach_adapter(load_base(settings.models), "embedded:stage2", POLICY)
    save_policy(policy, workspace.adapter, str(base))
    write_jsonl(workspace.pairs, [{"prompt": "How?"}])
    seal_training(workspace)
    report = export_artifacts(settings, workspace)
    assert json.loads(members(report)["models/lora_adapters/generation_config.json"])["eos_token_id"] == [1, 5]
    with zipfile.ZipFile(report.path) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path / "stage3_constitutional")
    names = {}
    exec(Path("README.md").read_text().split("```python\n")[1].split("```")[0], names)
    model, tokenizer = names["model"], names["tokenizer"]
    chat = [{"role": "user", "content": "How do I bake bread?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=100)[0, prompt["input_ids"].shape[1] :].tolist()
    assert answer[-1] == 5
    assert 5 not in answer[:-1]


def test_the_same_workspace_gives_the_same_bytes(smoke, finished):
    first = Path(export_artifacts(smoke, finished).path).read_bytes()
    (finished.reports / "training.png").touch()
    assert Path(export_artifacts(smoke, finished).path).read_bytes() == first


def test_without_training_the_rest_is_exported_and_the_missing_adapter_is_said(smoke, workspace):
    write_jsonl(workspace.pairs, [{"prompt": "How?"}])
    report = export_artifacts(smoke, workspace)
    assert (report.adapter, report.tensors) == (False, 0)
    assert ("adapter", "MISSING: training did not finish, see the report") in report.lines()
    found = members(report)
    assert list(found) == ["README.md", "pairs/pairs.jsonl", "settings.json", "versions.json"]
    assert "There is no adapter in this archive: training did not finish." in found["README.md"].decode()


def test_an_adapter_that_no_finished_training_left_is_left_out(smoke, finished):
    (finished.adapter / "adapter_config.json").write_text("{}")
    assert export_artifacts(smoke, finished).adapter is False
    finished.archive("train", [])
    assert export_artifacts(smoke, finished).adapter is False


def test_an_evaluation_of_another_adapter_is_not_shown_as_that_of_this_one(smoke, finished):
    (finished.adapter / "adapter_config.json").write_text("{}")
    seal_training(finished)
    card = members(export_artifacts(smoke, finished))["README.md"].decode()
    assert "Not evaluated: the evaluation in `metrics.json` is of another adapter than this one." in card
    assert "61 %" not in card


def test_before_there_are_pairs_the_missing_stage_is_named(smoke, workspace):
    with pytest.raises(CaiError, match="made by the score stage"):
        export_artifacts(smoke, workspace)


def test_an_access_token_is_never_exported(smoke, finished, monkeypatch):
    (finished.reports / "note.html").write_text("x" * (1024**2 - 10) + " hf_" + "a" * 34)  # across two chunks
    with pytest.raises(CaiError, match="reports/note.html holds an access token"):
        export_artifacts(smoke, finished)
    (finished.reports / "note.html").write_text("my-own-odd-token")
    monkeypatch.setenv("HF_TOKEN", "my-own-odd-token")
    with pytest.raises(CaiError, match="reports/note.html holds an access token"):
        export_artifacts(smoke, finished)
    assert not (finished.export_dir / "stage3_constitutional.zip").exists()


def test_an_access_token_among_the_settings_is_not_exported_either(finished):
    pasted = load_settings("smoke", [f"prompts.source=hf_{'a' * 34}"])
    with pytest.raises(CaiError, match="settings.json holds an access token"):
        export_artifacts(pasted, finished)
    assert not (finished.export_dir / "stage3_constitutional.zip").exists()


def test_a_file_that_changes_while_it_is_packed_is_noticed(smoke, finished, monkeypatch):
    write = export._write

    def disturbed(target, files, written):
        finished.pairs.write_text("{}\n")
        write(target, files, written)

    monkeypatch.setattr(export, "_write", disturbed)
    with pytest.raises(CaiError, match="pairs/pairs.jsonl in the zip is not what was put in"):
        export_artifacts(smoke, finished)


def test_a_damaged_member_is_noticed(smoke, finished, monkeypatch):
    write = export._write

    def damaged(target, files, written):
        write(target, files, written)
        content = bytearray(target.read_bytes())
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            info = archive.getinfo("stage3_constitutional/pairs/pairs.jsonl")
        content[info.header_offset + 30 + len(info.filename) + 5] ^= 255
        target.write_bytes(content)

    monkeypatch.setattr(export, "_write", damaged)
    with pytest.raises((CaiError, zipfile.BadZipFile)):
        export_artifacts(smoke, finished)


def test_an_adapter_with_values_that_are_not_finite_is_refused(smoke, finished):
    broken = save({"layer.lora_A": np.array([1.0, np.nan], dtype=np.float32)})
    (finished.adapter / "adapter_model.safetensors").write_bytes(broken)
    seal_training(finished)
    with pytest.raises(CaiError, match=r"not finite, in layer\.lora_A"):
        export_artifacts(smoke, finished)


def test_the_card_names_the_method_that_trained(smoke, finished):
    plain = members(export_artifacts(smoke, finished))["README.md"].decode()
    assert "DPO (Rafailov et al. 2023; loss sigmoid) with beta 0.1, learning rate 0.0003, 10% warm-up" in plain
    train = {"method": "sft+dpo", "fresh_adapter": True, "loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}
    both = smoke.model_copy(update={"train": smoke.train.model_copy(update=train)})
    card = members(export_artifacts(both, finished))["README.md"].decode()
    assert "Supervised fine-tuning on the winning revisions (Bai et al. 2022, section 3)" in card
    assert ", then DPO (Rafailov et al. 2023; loss sigmoid + 0.5·sft) with beta 0.1" in card
    assert "A new LoRA was trained on the merged Stage 2; the adapter here is both, their ranks stacked." in card
    only = smoke.model_copy(update={"train": smoke.train.model_copy(update={"method": "sft"})})
    assert "DPO (" not in members(export_artifacts(only, finished))["README.md"].decode()
