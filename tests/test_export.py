"""The zip: what goes in comes out again, nothing else goes in, and the same workspace gives the same bytes."""

import html
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
    assert [name for name in found if not name.startswith("models/base/")] == [
        "DATASET.md",
        "README.md",
        "USE.md",
        "constitution.yaml",
        "dpo_dataset/train.jsonl",
        "dpo_dataset/train.parquet",
        "manifest.json",
        "manifests/curate.json",
        "manifests/evaluate.json",
        "manifests/train.json",
        "metrics.json",
        "models/lora_adapters/adapter_config.json",
        "models/lora_adapters/adapter_model.safetensors",
        "pairs/pairs.jsonl",
        "protocols.yaml",
        "reports/pages/pairs.html",
        "reports/training.png",
        "settings.json",
    ]
    assert found["pairs/pairs.jsonl"] == finished.pairs.read_bytes()
    assert len(load(found["models/lora_adapters/adapter_model.safetensors"])) == 4
    assert json.loads(found["settings.json"]) == smoke.model_dump(mode="json")
    assert (report.files, report.adapter, report.tensors) == (len(found), True, 4)
    assert sum(report.sizes.values()) == sum(map(len, found.values()))
    assert ("models/lora_adapters", "0.00 MB") in report.contents()
    assert finished.manifest("export").outputs.keys() == {"export/stage3_constitutional.zip"}


def test_a_file_that_was_being_written_when_a_stage_died_stays_out(smoke, finished):
    (finished.reports / "report.html.tmp").write_text("half a page")
    export_artifacts(smoke, finished)
    with zipfile.ZipFile(finished.export_dir / "stage3_constitutional.zip") as archive:
        assert not [name for name in archive.namelist() if name.endswith(".tmp")]


def test_the_card_says_what_was_measured_and_how_to_load_it(smoke, finished):
    card = members(export_artifacts(smoke, finished))["README.md"].decode()
    for line in (
        "library_name: peft",
        "license: apache-2.0",
        "| Stage 2, the policy that training started from and its reference | `embedded:stage2` |",
        "| dropped: unparsed | 8 (not the form asked \\| for) |",
        "| margin | +0.000 → +0.361 |",
        "| win rate | 61 % (52–69 %) |",
    ):
        assert line in card.split("\n")


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
    code = Path("USE.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace('"./base"', repr(str(base))), names)
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
    assert "models/lora_adapters/adapter_config.json" not in found
    sentence = "There is no adapter in this archive: training did not finish, see the report"
    assert sentence in found["README.md"].decode()
    assert sentence in found["USE.md"].decode()


def test_an_adapter_that_was_exchanged_is_said_to_be_exchanged_and_not_to_be_missing(smoke, finished):
    (finished.adapter / "adapter_model.safetensors").write_bytes(save({"other": np.ones(2, dtype=np.float32)}))
    report = export_artifacts(smoke, finished)
    assert "it was exchanged or changed afterwards" in dict(report.lines())["adapter"]
    assert "did not finish" not in members(report)["README.md"].decode()
    shutil.rmtree(finished.adapter)
    assert "is gone, although training had finished" in dict(export_artifacts(smoke, finished).lines())["adapter"]


def test_no_path_of_this_machine_is_in_any_text_of_the_zip(smoke, finished, tmp_path):
    base = tmp_path / "anna's <models>" / "gemma"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    own = {"base": str(base), "adapter": str(Path.home() / "stage2")}
    settings = smoke.model_copy(update={"models": smoke.models.model_copy(update=own)})
    write_json(finished.adapter / "adapter_config.json", {"base_model_name_or_path": str(base)})
    (finished.reports / "pages" / "pairs.html").write_text(html.escape(f"{base} and {finished.root.absolute()}/pairs"))
    seal_training(finished)
    evaluated = Shown(name="Evaluation", shown=[("win rate", "61 % (52–69 %)")])
    finished.seal("evaluate", {"input adapter": file_hash(finished.adapter)}, [], evaluated)
    found = members(export_artifacts(settings, finished))
    for name, content in found.items():
        text = html.unescape(content.decode("utf-8", "ignore"))
        assert str(tmp_path) not in text, name
        assert str(Path.home()) not in text.replace(str(Path.home()) + ":", ""), name
    assert json.loads(found["models/lora_adapters/adapter_config.json"])["base_model_name_or_path"] == "./gemma"
    assert json.loads(found["settings.json"])["models"]["base"] == "./gemma"
    assert "61 % (52–69 %)" in found["README.md"].decode()  # it is still the evaluation of this adapter


def test_the_merged_model_answers_as_base_and_adapter_do(smoke, workspace):
    import torch
    from transformers import AutoModelForCausalLM

    policy = attach_adapter(load_base(smoke.models), "embedded:stage2", POLICY).eval()
    save_policy(policy, workspace.adapter, "embedded:chat")
    write_jsonl(workspace.pairs, [{"prompt": "How?"}])
    seal_training(workspace)
    settings = smoke.model_copy(update={"export": smoke.export.model_copy(update={"merged": True})})
    folder = Path(export_artifacts(settings, workspace).merged)
    assert folder == workspace.export_dir / "merged_model"
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor([[2, 17, 40, 99]])
    with torch.no_grad():
        assert (merged(tokens).logits - policy(tokens).logits).abs().max() < 0.1  # it is saved in fp16, as its base is
    assert (folder / "tokenizer.json").exists()


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
    assert not (finished.export_dir / "stage3_constitutional.zip").exists()


@pytest.mark.parametrize("variable", ["HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "my_database_password"])
def test_what_the_environment_calls_a_secret_is_never_exported(variable, smoke, finished, monkeypatch):
    monkeypatch.setenv(variable, "my-own-odd-secret")
    (finished.logs / "history.jsonl").parent.mkdir(exist_ok=True)
    (finished.logs / "history.jsonl").write_text('{"note": "my-own-odd-secret"}\n')
    with pytest.raises(CaiError, match=rf"logs/history.jsonl holds what your environment variable {variable} holds"):
        export_artifacts(smoke, finished)
    assert not (finished.export_dir / "stage3_constitutional.zip").exists()


def test_who_signs_in_at_an_address_of_the_settings_stays_here(finished):
    """In the settings, and in whatever repeats them."""
    address = "https://somebody:geheim@example.org/prompts.jsonl"
    asked = load_settings("smoke", [f"prompts.source={address}"])
    (finished.pairs_dir / "prompt_summary.json").write_text(json.dumps({"source": address}))
    contents = members(export_artifacts(asked, finished))
    assert [name for name, content in contents.items() if b"geheim" in content or b"somebody" in content] == []
    assert json.loads(contents["settings.json"])["prompts"]["source"] == "https://***@example.org/prompts.jsonl"


def test_names_in_the_settings_stay_text_in_the_cards(finished):
    hostile = "<img src=x onerror=alert(1)>|[x](javascript:alert(1))`"
    named = load_settings("smoke", [f"models.reward={json.dumps(hostile)}", f"prompts.source={json.dumps(hostile)}"])
    contents = members(export_artifacts(named, finished))
    for card in ("README.md", "DATASET.md"):
        body = contents[card].decode().split("---", 2)[2]
        assert "&lt;img src=x" in body
        assert "<img" not in body
        assert "[x](java" not in body.replace("\\[", "")


def test_an_access_token_among_the_settings_is_not_exported_either(finished):
    pasted = load_settings("smoke", [f"prompts.source=hf_{'a' * 34}"])
    with pytest.raises(CaiError, match="settings.json holds an access token"):
        export_artifacts(pasted, finished)
    assert not (finished.export_dir / "stage3_constitutional.zip").exists()


def test_a_file_that_changes_while_it_is_packed_is_noticed(smoke, finished, monkeypatch):
    write = export.write_archive

    def disturbed(target, packed):
        finished.pairs.write_text("{}\n")
        write(target, packed)

    monkeypatch.setattr(export, "write_archive", disturbed)
    with pytest.raises(CaiError, match=r"The zip is not what was put in: pairs/pairs\.jsonl has"):
        export_artifacts(smoke, finished)


def test_a_damaged_member_is_noticed(smoke, finished, monkeypatch):
    write = export.write_archive

    def damaged(target, packed):
        write(target, packed)
        content = bytearray(target.read_bytes())
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            info = archive.getinfo("stage3_constitutional/pairs/pairs.jsonl")
        content[info.header_offset + 30 + len(info.filename) + 5] ^= 255
        target.write_bytes(content)

    monkeypatch.setattr(export, "write_archive", damaged)
    with pytest.raises(CaiError, match=r"pairs/pairs\.jsonl"):
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
