"""manifest.json of the archive: what lies in it, what made it, and the verdict with the adapter it belongs to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cai_helpers.contents import file_hash, hash_of_hashes
from cai_helpers.evaluation.figures import Comparison, Judgement
from cai_helpers.manifest import Manifest, all_versions, hash_of_fingerprint
from cai_helpers.measures.intervals import Interval
from cai_helpers.models.hub import CONFIGS, local_folder, locate, pinned
from cai_helpers.schema import Record
from cai_helpers.settings import Settings

RECORD = "manifest.json"
FORMAT = 1
ADAPTER = "models/lora_adapters"
WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"


class PackedFile(Record):
    sha256: str
    size: int  # bytes


class ModelSource(Record):
    """A model by its name: the commit where it came from the Hub, the hash of its files where it was a folder."""

    name: str
    revision: str | None = None
    sha256: str | None = None


class PackedVerdict(Record):
    verdict: str
    reason: str
    win_rate: Interval
    prompts: int
    adapter: str  # file_hash of the adapter that was evaluated


class ArchiveRecord(Record):
    format: int = FORMAT
    versions: dict[str, str]  # of this package, and of the libraries
    settings: str  # sha256 of settings.json
    training: str | None  # hash of what the training depended on; it stands in the adapter's own metadata as well
    models: dict[str, ModelSource]  # role → model
    data: dict[str, str | None]  # the prompts' source, the protocol, and the like
    adapter: str | None  # file_hash of the adapter's folder
    without_adapter: str  # why there is none, or ""
    verdict: PackedVerdict | None
    files: dict[str, PackedFile]  # of every other file of the archive
    sha256: str = ""  # of all above, see `sealed`

    def sealed(self) -> ArchiveRecord:
        """With its own hash: the record is the one file whose hash stands nowhere else."""
        return self.model_copy(update={"sha256": self.own_hash()})

    def own_hash(self) -> str:
        values = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def make_record(
    settings: Settings,
    manifests: dict[str, Manifest],
    files: dict[str, PackedFile],
    models: dict[str, ModelSource],
    without_adapter: str,
) -> ArchiveRecord:
    """The record of an archive with these files, settings.json and the manifests as they lie in it."""
    adapter = adapter_hash({name: file.sha256 for name, file in files.items()})
    train = manifests.get("train")
    return ArchiveRecord(
        versions=all_versions(),
        settings=files["settings.json"].sha256,
        training=hash_of_fingerprint(train.fingerprint) if train is not None and adapter else None,
        models=models,
        data=data_of(settings, manifests),
        adapter=adapter,
        without_adapter=without_adapter,
        verdict=verdict_of(manifests.get("evaluate")),
        files=files,
    ).sealed()


def data_of(settings: Settings, manifests: dict[str, Manifest]) -> dict[str, str | None]:
    """Where the pairs come from, by the settings and what the stages left behind."""
    generated, scored = manifests.get("generate"), manifests.get("score")
    return {
        "prompts": settings.prompts.source,
        "split": settings.prompts.split,
        "evaluation prompts": settings.prompts.eval_source,
        "protocol": str(generated.report["protocol"]) if generated else None,
        "scorer": str(scored.report["scorer"]) if scored else None,
    }


def verdict_of(evaluation: Manifest | None) -> PackedVerdict | None:
    if evaluation is None or "judgement" not in evaluation.report:
        return None
    judgement = Judgement.model_validate(evaluation.report["judgement"])
    overall = Comparison.model_validate(evaluation.report["overall"])
    return PackedVerdict(
        verdict=judgement.verdict,
        reason=judgement.reason,
        win_rate=overall.win_rate,
        prompts=overall.prompts,
        adapter=str(evaluation.fingerprint.get("input adapter")),
    )


def adapter_hash(hashes: dict[str, str]) -> str | None:
    """`file_hash` of the adapter's folder, from the hashes of the archive's files; None: it has no adapter."""
    below = {name.removeprefix(f"{ADAPTER}/"): digest for name, digest in hashes.items() if name.startswith(ADAPTER)}
    return hash_of_hashes(below) if below else None


def sources_of(settings: Settings, shown: Settings) -> dict[str, ModelSource]:
    """Role → model, of all that the run used; under the names that `shown` has, which holds no path of this machine."""
    return {role: _source(name, _named(shown)[role]) for role, name in _named(settings).items()}


def _named(settings: Settings) -> dict[str, str]:
    models, judge = settings.models, settings.evaluate.scorer
    named = {"base": models.base, "stage 2": models.adapter, "judge": judge.model if judge else None}
    named |= {f"reward {place}": source.model for place, source in enumerate(models.rewards, start=1)}
    return {role: name for role, name in named.items() if name is not None}


def _source(name: str, shown: str) -> ModelSource:
    folder = Path(locate(name))
    if pinned(name) is None and folder.is_dir():
        return ModelSource(name=shown, sha256=file_hash(folder))
    for file in CONFIGS:
        if (cached := local_folder(name, file)) is not None:
            return ModelSource(name=shown, revision=cached.name)  # …/snapshots/COMMIT
    return ModelSource(name=shown)
