"""One zip to take home: adapter, data, figures, a model card. Opened again and compared before it is called done."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from importlib import resources
from pathlib import Path
from string import Template
from typing import IO, Any

from cai_helpers import __version__
from cai_helpers.contents import file_hash
from cai_helpers.critique.samples import FAMILY, is_samples
from cai_helpers.errors import CaiError
from cai_helpers.ground import make_folder
from cai_helpers.manifest import library_versions
from cai_helpers.models.hub import EMBEDDED
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.training.policy.losses import readable
from cai_helpers.workspace import Workspace, holds_workspace, require_hash

NAME = "stage3_constitutional"
_WEIGHTS = "models/lora_adapters/adapter_model.safetensors"
_CHUNK = 1024**2
_STOPS = """# the tokens at which an answer ends: PEFT reads those of the base, which may be too few
model.generation_config = GenerationConfig.from_pretrained("models/lora_adapters")
"""
_LONGEST_TOKEN = 256  # bytes; chunks overlap by as many when tokens are looked for
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")  # a Hugging Face access token


class ExportReport(StageReport):
    path: str
    bytes: int
    files: int
    adapter: bool  # False: nothing was trained, so there is none to export
    tensors: int  # of the adapter, read back out of the zip

    def title(self) -> str:
        return "Export"

    def lines(self) -> list[tuple[str, str]]:
        adapter = f"{self.tensors} tensors" if self.adapter else "MISSING: training did not finish, see the report"
        return [
            ("zip", self.path),
            ("size", f"{self.bytes / 1e6:.1f} MB, {self.files} files, each read back and compared"),
            ("adapter", adapter),
        ]


@holds_workspace
def export_artifacts(settings: Settings, workspace: Workspace) -> ExportReport:
    """Write export/stage3_constitutional.zip. The same workspace always gives the same bytes.

    Without a finished training it holds what there is, and the card and the report say that the adapter is missing.
    Checkpoints, optimizer state, logs and access tokens never go in.

    Raises:
        CaiError: there are no scored pairs yet, a file holds an access token, or the zip is not what was put in.
    """
    workspace.require(workspace.pairs, made_by="score")
    trained = _is_trained(workspace)
    files = _files(workspace, trained)
    written = _written_now(settings, workspace, trained)
    hashes = {name: require_hash(path) for name, path in files.items()}
    hashes |= {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    for name, path in files.items():
        with path.open("rb") as file:
            _refuse_tokens(name, file)
    for name, content in written.items():
        _refuse_tokens(name, io.BytesIO(content))

    target = workspace.export_dir / f"{NAME}.zip"
    draft = target.with_suffix(".zip.tmp")
    make_folder(draft.parent)
    _write(draft, files, written)
    tensors = _check(draft, hashes)
    draft.replace(target)
    report = ExportReport(
        path=str(target), bytes=target.stat().st_size, files=len(hashes), adapter=trained, tensors=tensors
    )
    workspace.seal("export", {"input files": hashes}, [target], report)
    return report


def _is_trained(workspace: Workspace) -> bool:
    """Whether the adapter on disk is the one that a finished training left."""
    manifest = workspace.manifest("train")
    return manifest is not None and file_hash(workspace.adapter) in manifest.outputs.values()


def _files(workspace: Workspace, trained: bool) -> dict[str, Path]:
    """Name in the zip → file. A list of what goes in, so that nothing new gets in by itself."""
    wanted = [workspace.pairs, workspace.metrics, *_below(workspace.dataset_dir), *_below(workspace.reports)]
    if trained:
        wanted += _below(workspace.adapter)
    existing = [path for path in wanted if path.is_file() and path.suffix != ".tmp"]
    return {path.relative_to(workspace.root).as_posix(): path for path in existing}


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def _written_now(settings: Settings, workspace: Workspace, trained: bool) -> dict[str, bytes]:
    def as_json(value: Any) -> bytes:
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    return {
        "README.md": model_card(settings, workspace, trained).encode(),
        "settings.json": as_json(settings.model_dump(mode="json")),
        "versions.json": as_json({"cai_helpers": __version__, **library_versions()}),
    }


def model_card(settings: Settings, workspace: Workspace, trained: bool) -> str:
    """README.md of the zip, from the settings and what the stages' manifests say."""
    template = (resources.files("cai_helpers") / "assets" / "model_card.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        base=settings.models.base,
        base_yaml=json.dumps(settings.models.base),
        stage2=f"`{settings.models.adapter}`" if settings.models.adapter else "none: the base model itself",
        reward=settings.models.reward.model,
        version=__version__,
        status="LoRA adapter" if trained else "data without an adapter",
        loading=_loading(settings, workspace)
        if trained
        else "There is no adapter in this archive: training did not finish.",
        origin=_origin(workspace),
        data=_shown(workspace, "curate", "The pairs were scored but not curated."),
        training=f"{_method(settings, is_samples(_protocol(workspace)))}\n\n{_shown(workspace, 'train', '')}"
        if trained
        else "Nothing was trained.",
        evaluation=_evaluation(workspace),
    )


def _origin(workspace: Workspace) -> str:
    """Where the two sides of a pair come from."""
    protocol = _protocol(workspace)
    if is_samples(protocol):
        return (
            f"it answered each prompt {protocol.removeprefix(FAMILY)} times (protocol {protocol}; no critique, no "
            "constitution), a scorer judged all answers, and the best one became `chosen`, the worst one `rejected`."
        )
    return (
        "it drafted an answer to each prompt, criticised it by a constitution, revised it, a reward model scored both, "
        "and the better one became `chosen`."
    )


def _protocol(workspace: Workspace) -> str:
    """How the pairs were made; empty where they come from elsewhere."""
    generated = workspace.manifest("generate")
    return "" if generated is None else str(generated.report["protocol"])


def _loading(settings: Settings, workspace: Workspace) -> str:
    name = settings.models.base
    stops = (workspace.adapter / "generation_config.json").is_file()  # not beside an adapter that PEFT alone wrote
    embedded = name.startswith(EMBEDDED)  # a folder inside this package
    return f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{", GenerationConfig" if stops else ""}
{"from cai_helpers.models.hub import locate" if embedded else ""}
name = {f'locate("{name}")' if embedded else f'"{name}"'}
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), "models/lora_adapters")
{_STOPS if stops else ""}tokenizer = AutoTokenizer.from_pretrained(name)
```

The adapter goes on the base model itself: where there was a Stage 2, it continues and holds it, so do not load both."""


def _method(settings: Settings, sampled: bool) -> str:
    train = settings.train
    learned = "the best samples" if sampled else "the winning revisions (Bai et al. 2022, section 3)"
    phases = []
    if "sft" in train.method:
        phases.append(
            f"Supervised fine-tuning on {learned} with learning rate "
            f"{train.sft_learning_rate:g}, {train.sft_epochs:g} epochs"
        )
    if "dpo" in train.method:
        phases.append(
            f"DPO (Rafailov et al. 2023; loss {readable(train.loss_type, train.loss_weights)}) with beta "
            f"{train.beta:g}, learning rate {train.learning_rate:g}"
        )
    if train.method == "kto":
        phases.append(
            f"KTO (Ethayarajh et al. 2024) on both sides of the pairs and on one-sided answers, with beta {train.beta:g}, "
            f"learning rate {train.learning_rate:g}"
        )
    text = f"{', then '.join(phases)}, {train.warmup:.0%} warm-up, effective batch {train.effective_batch}; the checkpoint "
    text += "with the lowest held-out loss was kept."
    if train.fresh_adapter and settings.models.adapter:
        text += " A new LoRA was trained on the merged Stage 2; the adapter here is both, their ranks stacked."
    return text


def _evaluation(workspace: Workspace) -> str:
    manifest = workspace.manifest("evaluate")
    if manifest is not None and manifest.fingerprint.get("input adapter") != file_hash(workspace.adapter):
        return "Not evaluated: the evaluation in `metrics.json` is of another adapter than this one."
    return _shown(workspace, "evaluate", "Not evaluated.")


def _shown(workspace: Workspace, stage: str, otherwise: str) -> str:
    """The stage's report, as it was shown, as a table."""
    manifest = workspace.manifest(stage)
    return otherwise if manifest is None else _table(manifest.lines)


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [(name, " ".join(figure.replace("|", "\\|").split())) for name, figure in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in cells)])


def _refuse_tokens(name: str, content: IO[bytes]) -> None:
    """Model output may repeat anything, and a settings file may have been pasted into."""
    own = os.environ.get("HF_TOKEN", "").encode()
    tail = b""
    while chunk := content.read(_CHUNK):
        text = tail + chunk
        if _TOKEN.search(text) or (own and own in text):
            raise CaiError(f"{name} holds an access token; nothing was exported.", "Remove and revoke the token.")
        tail = text[-_LONGEST_TOKEN:]


def _write(target: Path, files: dict[str, Path], written: dict[str, bytes]) -> None:
    """Members in the order of their names, with one fixed date: the bytes depend on nothing but the content."""
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted({*files, *written}):
            member = zipfile.ZipInfo(f"{NAME}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3  # Unix, whatever this is
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=name in files and files[name].stat().st_size >= 2**31) as sink:
                if name in written:
                    sink.write(written[name])
                else:
                    with files[name].open("rb") as source:
                        while chunk := source.read(_CHUNK):
                            sink.write(chunk)


def _check(target: Path, hashes: dict[str, str]) -> int:
    """Open the zip again, compare every member with what went in, load the adapter; how many tensors it has."""
    with zipfile.ZipFile(target) as archive:
        if (broken := archive.testzip()) is not None:
            raise _damaged(broken)
        packed = {}
        for name in archive.namelist():
            with archive.open(name) as member:
                packed[name.removeprefix(f"{NAME}/")] = _sha256(member)
        if differing := sorted(name for name in {*hashes, *packed} if hashes.get(name) != packed.get(name)):
            raise _damaged(differing[0])
        return _count_tensors(archive.read(f"{NAME}/{_WEIGHTS}")) if _WEIGHTS in hashes else 0


def _sha256(member: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := member.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _damaged(name: str) -> CaiError:
    return CaiError(
        f"{name} in the zip is not what was put in.",
        "A stage may be writing into the workspace, or the disk is full or failing. Run `cai export` again.",
    )


def _count_tensors(content: bytes) -> int:
    import numpy as np
    from safetensors.numpy import load

    tensors = load(content)
    if broken := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise CaiError(f"The adapter holds values that are not finite, in {broken[0]}.", "Run `cai train --fresh`.")
    return len(tensors)
