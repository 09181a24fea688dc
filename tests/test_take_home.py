"""A zip in another person's hands: verified to the last figure, taken into a workspace, and refused where it is hostile."""

from __future__ import annotations

import io
import json
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save
from small_run import small_settings
from typer.testing import CliRunner

from cai_helpers.artifacts.archive import Hostile
from cai_helpers.artifacts.record import ArchiveRecord, PackedFile
from cai_helpers.cli import app
from cai_helpers.contents import hashes_below
from cai_helpers.errors import CaiError
from cai_helpers.manifest import difference
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.settings import load_settings
from cai_helpers.stages.evaluate import evaluate_models
from cai_helpers.stages.export import export_artifacts
from cai_helpers.stages.take_in import import_archive
from cai_helpers.stages.train import train_policy
from cai_helpers.stages.verify import verify_archive
from cai_helpers.workspace import Workspace

pytestmark = pytest.mark.slow
TOP = "stage3_constitutional/"
WEIGHTS = "models/lora_adapters/adapter_model.safetensors"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def packed(small_run) -> Path:
    return small_run.export_dir / "stage3_constitutional.zip"


def read(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name.removeprefix(TOP): archive.read(name) for name in archive.namelist()}


def write(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(TOP + name, content)
    return path


def rehashed(files: Files) -> None:
    """As somebody would who knows that there are hashes: each is put right again, the record's own as well."""
    from hashlib import sha256

    record = ArchiveRecord.model_validate_json(files["manifest.json"])
    hashes = {
        name: PackedFile(sha256=sha256(content).hexdigest(), size=len(content))
        for name, content in files.items()
        if name != "manifest.json"
    }
    record = record.model_copy(update={"files": hashes}).sealed()
    files["manifest.json"] = record.model_dump_json().encode()


def replace(name: str, old: str, new: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        text = files[name].decode()
        assert old in text
        files[name] = text.replace(old, new, 1).encode()

    return change


def of_json(name: str, *path: str | int, value: object) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        whole = inner = json.loads(files[name])
        for key in path[:-1]:
            inner = inner[key]
        assert inner[path[-1]] != value
        inner[path[-1]] = value
        files[name] = json.dumps(whole).encode()

    return change


def drop(name: str) -> Callable[[Files], None]:
    return lambda files: files.pop(name)


def add(name: str, content: bytes) -> Callable[[Files], None]:
    return lambda files: files.update({name: content})


def flip(name: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        content = bytearray(files[name])
        content[len(content) // 2] ^= 1
        files[name] = bytes(content)

    return change


def weights(make: Callable[[dict], dict], stamp: str | None = None) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        length = struct.unpack("<Q", files[WEIGHTS][:8])[0]
        metadata = json.loads(files[WEIGHTS][8 : 8 + length])["__metadata__"]
        if stamp is not None:
            metadata["cai_settings_sha256"] = stamp
        files[WEIGHTS] = save(make(load(files[WEIGHTS])), metadata=metadata)

    return change


def not_finite(tensors: dict) -> dict:
    first = min(tensors)
    broken = tensors[first].copy()
    broken.flat[0] = np.inf
    return tensors | {first: broken}


def narrower(tensors: dict) -> dict:
    first = min(name for name in tensors if "lora_A" in name)
    return tensors | {first: np.ascontiguousarray(tensors[first][:, :-1])}


def a_win_more(files: Files) -> None:
    rows = [json.loads(line) for line in files["evaluation/responses.jsonl"].split(b"\n") if line]
    worst = min(
        (row for row in rows if row["prompt_set"] == "held-out prompts"), key=lambda row: row["deltas"]["stage3/stage2"]
    )
    worst["deltas"]["stage3/stage2"] = 9.0
    files["evaluation/responses.jsonl"] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def another_row(files: Files) -> None:
    from cai_helpers.artifacts.parquet import preference_parquet, table_rows

    rows = table_rows(files["dpo_dataset/train.parquet"])
    rows[0]["chosen"][0]["content"] = "Something else."
    files["dpo_dataset/train.parquet"] = preference_parquet(rows)


# Changes that leave the hashes as they were, and those of somebody who has put all of them right again.
PLAIN = {
    "a bit of the weights": (flip(WEIGHTS), "adapter_model.safetensors is not what was packed"),
    "a bit of a picture": (flip("reports/funnel.png"), r"funnel\.png is not what was packed"),
    "a letter of a pair": (replace("pairs/pairs.jsonl", "the", "tha"), r"pairs\.jsonl is not what was packed"),
    "a pair less": (lambda files: files.update({"pairs/pairs.jsonl": b""}), r"pairs\.jsonl has 0 bytes"),
    "a file less": (drop("DATASET.md"), r"DATASET\.md is missing"),
    "a file more": (add("reports/more.html", b"<p>"), r"reports/more\.html is not in manifest\.json"),
    "a version": (of_json("manifest.json", "versions", "torch", value="9"), r"manifest\.json was changed after"),
    "the verdict": (
        of_json("manifest.json", "verdict", "verdict", value="superb"),
        r"manifest\.json was changed after",
    ),
}
REHASHED = {
    "a figure of the model card": (replace("README.md", "| steps | ", "| steps | 1"), r"README\.md does not say what"),
    "a figure in the card's head": (
        replace("README.md", "value: 0.", "value: 1."),
        r"results in the head of README\.md",
    ),
    "a sentence of the card": (
        replace("README.md", "reward model's, not", "reward model's, and"),
        r"README\.md has .*s, and people's",
    ),
    "a line more in the card": (replace("README.md", "## Limits", "| safe | 100 % |\n\n## Limits"), r"README\.md has"),
    "a figure of the dataset card": (replace("DATASET.md", "| kept | ", "| kept | 1"), r"DATASET\.md does not say"),
    "code of USE.md": (replace("USE.md", "import torch", "import os, torch"), r"USE\.md has 'import os, torch'"),
    "a figure of the metrics": (of_json("metrics.json", "train", "steps", value=7), r"metrics\.json has other figures"),
    "a figure of a report": (
        of_json("manifests/curate.json", "report", "kept", value=7),
        r"stats\.json has other figures",
    ),
    "the win rate": (of_json("manifests/evaluate.json", "report", "overall", "wins", value=24), "other figures|claims"),
    "a judge's score": (a_win_more, r"responses\.jsonl is not what the stage evaluate left"),
    "a setting": (of_json("settings.json", "train", "beta", value=0.7), "hash of other settings"),
    "an infinite number": (weights(not_finite), "hash of another adapter"),
    "the prompts' name": (of_json("manifest.json", "data", "prompts", value="x/y"), "other data than the stages"),
    "a row of the Parquet": (another_row, r"train\.parquet has other rows than"),
}


@pytest.mark.parametrize(("change", "says"), PLAIN.values(), ids=PLAIN)
def test_a_planted_change_is_found(packed, tmp_path, change, says):
    files = read(packed)
    change(files)
    with pytest.raises(CaiError, match=says):
        verify_archive(write(tmp_path / "changed.zip", files))


@pytest.mark.parametrize(("change", "says"), REHASHED.values(), ids=REHASHED)
def test_a_planted_change_is_found_though_every_hash_was_put_right(packed, tmp_path, change, says):
    files = read(packed)
    change(files)
    rehashed(files)
    with pytest.raises(CaiError, match=says):
        verify_archive(write(tmp_path / "changed.zip", files))


ADAPTERS = {
    "an infinite number": (weights(not_finite), "not finite"),
    "a matrix of another shape": (weights(narrower), "does not fit the base model"),
    "a stamp of other settings": (weights(dict, stamp="0" * 64), "trained with other settings"),
}


@pytest.mark.parametrize(("change", "says"), ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_that_goes_by_the_right_hash_everywhere_is_found_all_the_same(packed, tmp_path, change, says):
    files = read(packed)
    before = ArchiveRecord.model_validate_json(files["manifest.json"]).adapter
    change(files)
    rehashed(files)
    from cai_helpers.artifacts.record import adapter_hash

    record = ArchiveRecord.model_validate_json(files["manifest.json"])
    after = adapter_hash({name: file.sha256 for name, file in record.files.items()})
    for name in [*(name for name in files if name.startswith("manifests/")), "manifest.json"]:
        files[name] = files[name].replace(before.encode(), after.encode())
    rehashed(files)
    with pytest.raises(CaiError, match=says):
        verify_archive(write(tmp_path / "changed.zip", files))


def test_the_command_ends_with_0_on_a_sound_zip_and_with_1_and_the_first_difference_on_another(packed, tmp_path):
    sound = CliRunner().invoke(app, ["verify", str(packed)])
    assert sound.exit_code == 0, sound.output
    assert "ok: models/lora_adapters, rank 8, 56 matrices that fit embedded:chat" in sound.output
    assert "counted again" in sound.output
    files = read(packed)
    flip("settings.json")(files)
    broken = CliRunner().invoke(app, ["verify", str(write(tmp_path / "changed.zip", files))])
    assert broken.exit_code == 1
    assert "settings.json is not what was packed" in broken.output


def test_the_weights_name_the_settings_that_they_were_trained_with(small_run, packed):
    record = ArchiveRecord.model_validate_json(read(packed)["manifest.json"])
    with safe_open(small_run.adapter / "adapter_model.safetensors", "np") as tensors:
        assert tensors.metadata()["cai_settings_sha256"] == record.training
    assert record.verdict.adapter == record.adapter
    assert record.models["base"].sha256 is not None
    assert record.versions.keys() >= {"cai_helpers", "torch", "transformers", "peft"}


def test_the_dataset_opens_with_datasets_as_conversations(packed, tmp_path, monkeypatch):
    from datasets import load_dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "stage3_constitutional"
    rows = load_dataset(
        "parquet", data_files=str(folder / "dpo_dataset" / "train.parquet"), cache_dir=str(tmp_path / "c")
    )
    expected = [json.loads(line) for line in (folder / "dpo_dataset" / "train.jsonl").read_text().splitlines()]
    assert rows["train"][0]["chosen"] == expected[0]["chosen"]
    assert len(rows["train"]) == len(expected)
    assert list(rows["train"].features["prompt"].feature) == ["role", "content"]


def test_a_run_that_was_taken_in_goes_on_at_train_evaluate_and_export(small_run, packed, tmp_path, capsys):
    settings = small_settings()
    done = Workspace(tmp_path / "done")
    report = import_archive(packed, done)
    assert report.complete == ["analyze", "calibrate", "curate", "evaluate", "generate", "score", "train"]
    assert hashes_below(done.adapter) == hashes_below(small_run.adapter)
    taken = load_settings(str(done.settings_file))
    train_policy(taken, done)
    evaluate_models(taken, done)
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert Path(export_artifacts(taken, done).path).read_bytes() == packed.read_bytes()

    train_policy(
        settings.model_copy(update={"train": settings.train.model_copy(update={"beta": 0.3})}), done, fresh=True
    )
    again = evaluate_models(settings, done)  # the answers of Stage 2 came with the zip
    assert 0 < again.generated_now < 2 * 24 + 400
    write_run_report(settings, done)
    assert verify_archive(Path(export_artifacts(settings, done).path)).found


def test_the_pairs_alone_are_curated_and_trained_anew(packed, tmp_path):
    from cai_helpers.stages.curate import curate_pairs

    space = Workspace(tmp_path / "pairs")
    result = CliRunner().invoke(app, ["import", str(packed), "--workspace", str(space.root), "--as", "pairs"])
    assert result.exit_code == 0, result.output
    assert space.pairs.exists()
    assert not space.adapter.exists()
    assert not space.dataset_dir.exists()
    assert curate_pairs(load_settings(str(space.settings_file)), space).kept > 10


def test_the_adapter_becomes_the_stage_2_of_a_run_that_begins(small_run, packed, tmp_path):
    from cai_helpers.readiness.needs import needed

    space = Workspace(tmp_path / "next")
    import_archive(packed, space, "stage2")
    settings = load_settings(str(space.settings_file))
    assert settings.models.adapter == str(space.root / "models" / "stage2")
    assert hashes_below(Path(settings.models.adapter)) == hashes_below(small_run.adapter)
    assert [check.line() for check in needed(settings, space, "train") if not check.ok] == []


def test_only_an_empty_folder_takes_a_run(packed, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(CaiError, match="is not empty"):
        import_archive(packed, Workspace(tmp_path))


def test_a_damaged_zip_leaves_nothing_behind(packed, tmp_path):
    files = read(packed)
    flip("pairs/traces.jsonl")(files)
    with pytest.raises(CaiError, match=r"traces\.jsonl is not what was packed"):
        import_archive(write(tmp_path / "changed.zip", files), Workspace(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["changed.zip"]


def member(name: str, mode: int = stat.S_IFREG | 0o644, **changes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.create_system = mode << 16, 3
    for field, value in changes.items():
        setattr(info, field, value)
    return info


HOSTILE = {
    "out of the folder": ([member(f"{TOP}../../evil.json")], "leads out"),
    "absolute": ([member("/etc/evil.json")], "absolute path"),
    "a drive": ([member("C:/evil.json")], "absolute path"),
    "a backslash": ([member(TOP + "pairs\\..\\evil.json")], "no name that every system can write"),
    "a link": ([member(f"{TOP}pairs/pairs.jsonl", stat.S_IFLNK | 0o777)], "link or a device"),
    "a device": ([member(f"{TOP}pairs/pairs.jsonl", stat.S_IFCHR | 0o644)], "link or a device"),
    "a fifo": ([member(f"{TOP}pairs/pairs.jsonl", stat.S_IFIFO | 0o644)], "link or a device"),
    "a name twice": ([member(f"{TOP}pairs/a.jsonl"), member(f"{TOP}pairs/a.jsonl")], "twice"),
    "a clash of case": ([member(f"{TOP}pairs/a.jsonl"), member(f"{TOP}pairs/A.jsonl")], "the same file"),
    "a clash of forms": ([member(f"{TOP}pairs/\u00e9.jsonl"), member(f"{TOP}pairs/e\u0301.jsonl")], "the same file"),
    "a file that is a folder": ([member(f"{TOP}pairs"), member(f"{TOP}pairs/a.jsonl")], "a file and a folder"),
    "a pickle": ([member(f"{TOP}checkpoints/checkpoint-5/optimizer.pt")], "nothing that a run leaves behind"),
    "a checkpoint": ([member(f"{TOP}checkpoints/checkpoint-5/trainer_state.json")], "nothing that a run leaves"),
    "code": ([member(f"{TOP}models/lora_adapters/modeling.py")], "nothing that a run leaves behind"),
    "another top": ([member("home/settings.json")], "does not lie in"),
    "a device of Windows": ([member(f"{TOP}pairs/con.jsonl")], "no name that every system can write"),
    "too many": ([member(f"{TOP}pairs/{number}.jsonl") for number in range(2001)], "2001 files"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("members", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused_before_anything_is_written(tmp_path, members, says):
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for info in members:
            archive.writestr(info, b"{}")
    with pytest.raises(Hostile, match=says):
        import_archive(path, Workspace(tmp_path / "run"))
    assert [item.name for item in tmp_path.iterdir()] == ["hostile.zip"]


def test_a_bomb_is_refused_by_its_ratio(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(TOP + "metrics.json", bytes(20 * 1024**2))
    with pytest.raises(Hostile, match="unpacks to 20971520 bytes of"):
        import_archive(path, Workspace(tmp_path / "run"))


def test_a_bomb_of_overlapping_files_is_refused(tmp_path):
    """Each entry of the directory points to the same bytes (Fifield 2019)."""
    content, buffer = b"x" * 4096, io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member(TOP + "pairs/a.jsonl"), content)
        entry = archive.getinfo(TOP + "pairs/a.jsonl")
        for letter in "bcdefgh":
            copy = member(f"{TOP}pairs/{letter}.jsonl", CRC=entry.CRC, header_offset=entry.header_offset)
            copy.compress_size = copy.file_size = entry.file_size
            archive.filelist.append(copy)
        archive._didModify = True
    (tmp_path / "bomb.zip").write_bytes(buffer.getvalue())
    with pytest.raises(Hostile, match="overlap"):
        import_archive(tmp_path / "bomb.zip", Workspace(tmp_path / "run"))


def test_an_imported_run_sends_no_checkpoints_to_where_the_other_person_sent_his(small_run, tmp_path):
    copy = Workspace(shutil.copytree(small_run.root, tmp_path / "copy"))
    settings = small_settings("train.copy_to=hub:somebody/else")
    import_archive(Path(export_artifacts(settings, copy).path), Workspace(tmp_path / "run"))
    assert load_settings(str(tmp_path / "run" / "settings.json")).train.copy_to is None


def test_a_folder_in_another_place_is_the_same_and_another_content_is_not():
    def changed(before: str, now: str) -> bool:
        return bool(difference({"models.base": before}, {"models.base": now}))

    assert not changed("/home/a/gemma (0123456789ab)", "gemma-2b (0123456789ab)")
    assert not changed("./questions.jsonl", "/data/questions.jsonl")
    assert changed("gemma (0123456789ab)", "gemma (ba9876543210)")
    assert changed("gemma (0123456789ab), pair input", "gemma (0123456789ab), chat input")
    assert changed("owner/one", "owner/two")
    assert changed("./questions.jsonl", "/data/others.jsonl")


@pytest.mark.slow
def test_the_code_that_notebook_06_shows_runs_where_it_is_shown(small_run, monkeypatch, tmp_path):
    """Its paths are those of this machine: in the zip they are relative, and a notebook stands elsewhere."""
    from small_run import small_settings

    from cai_helpers.notebook import take_home

    shown = []
    monkeypatch.setattr(take_home, "display", lambda page: shown.append(page.data))
    monkeypatch.chdir(tmp_path)
    take_home.show_use(small_run.zip, small_settings(), small_run)
    chat = shown[0].split("```python")[1].split("```")[0]
    assert str(small_run.adapter) in chat
    exec(chat, {})
