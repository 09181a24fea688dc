"""One zip to take home: adapter, data, figures, cards. Opened again and compared before it is called done."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cai_helpers.artifacts.account import read_account
from cai_helpers.artifacts.archive import open_archive
from cai_helpers.artifacts.cards import dataset_card, model_card
from cai_helpers.artifacts.merged_model import write_merged
from cai_helpers.artifacts.packing import (
    Packed,
    as_json,
    gather,
    opened,
    packed_file,
    refuse_secrets,
    write_archive,
)
from cai_helpers.artifacts.parquet import PARQUET_OF, preference_parquet
from cai_helpers.artifacts.record import (
    ADAPTER,
    RECORD,
    WEIGHTS,
    ArchiveRecord,
    adapter_hash,
    make_record,
    sources_of,
)
from cai_helpers.artifacts.tensors import count_finite_tensors
from cai_helpers.artifacts.use_page import use_page
from cai_helpers.contents import file_hash
from cai_helpers.errors import CaiError
from cai_helpers.ground import make_folder
from cai_helpers.schema import StageReport
from cai_helpers.settings import Settings
from cai_helpers.store import rows_of
from cai_helpers.workspace import Workspace, holds_workspace


class ExportReport(StageReport):
    path: str
    bytes: int
    files: int
    adapter: bool  # False: there is none that training left
    without_adapter: str = ""  # why
    tensors: int  # of the adapter, read back out of the zip
    sizes: dict[str, int] = Field(default_factory=dict)  # bytes unpacked, by folder or file of the top
    merged: str = ""  # the folder of the merged model, where export.merged asked for it

    def title(self) -> str:
        return "Export"

    def lines(self) -> list[tuple[str, str]]:
        adapter = f"{self.tensors} tensors" if self.adapter else f"MISSING: {self.without_adapter}"
        merged = [("merged model", f"{self.merged}; USE.md has the commands that make a GGUF of it")]
        return [
            ("zip", self.path),
            ("size", f"{self.bytes / 1e6:.1f} MB, {self.files} files, each read back and compared"),
            ("adapter", adapter),
            *(merged if self.merged else []),
        ]

    def contents(self) -> list[tuple[str, str]]:
        """What lies in it, the largest first, with its size before it is packed."""
        ordered = sorted(self.sizes.items(), key=lambda item: -item[1])
        return [(name, f"{size / 1e6:.2f} MB") for name, size in ordered]


@holds_workspace
def export_artifacts(settings: Settings, workspace: Workspace) -> ExportReport:
    """Write export/stage3_constitutional.zip. The same workspace always gives the same bytes.

    Without a finished training it holds what there is, and the card and the report say why the adapter is missing.
    Checkpoints, optimizer state, logs, access tokens and paths of this machine never go in. With export.merged the
    policy is written as one model as well, beside the zip.

    Raises:
        CaiError: there are no scored pairs yet, a file holds an access token, the zip is not what was put in, or the
            adapter cannot be merged.
    """
    workspace.require(workspace.pairs, made_by="score")
    missing = _why_no_adapter(workspace)
    packed = gather(settings, workspace, with_adapter=not missing)
    packed |= _written(settings, packed, missing)
    refuse_secrets(packed)

    target = workspace.zip
    draft = target.with_suffix(".zip.tmp")
    make_folder(draft.parent)
    write_archive(draft, packed)
    record, tensors = _check(draft)
    draft.replace(target)
    report = ExportReport(
        path=str(target),
        bytes=target.stat().st_size,
        files=len(packed),
        adapter=not missing,
        without_adapter=missing,
        tensors=tensors,
        sizes=_sizes(packed),
        merged=str(write_merged(settings, workspace)) if settings.export.merged and not missing else "",
    )
    fingerprint = {"input files": {name: file.sha256 for name, file in record.files.items()}}
    workspace.seal("export", fingerprint, [target], report)
    return report


def _why_no_adapter(workspace: Workspace) -> str:
    """Why there is no adapter that a finished training left; "": there is one."""
    manifest = workspace.manifest("train")
    if manifest is None:
        return "training did not finish, see the report"
    digest = file_hash(workspace.adapter)
    if digest is None:
        return f"{ADAPTER} is gone, although training had finished; run `cai train` again"
    if digest not in manifest.outputs.values():
        return (
            f"the one in {ADAPTER} is not the one that training left: it was exchanged or changed afterwards. Put it back, or "
            "run `cai train --fresh`"
        )
    return ""


def _written(settings: Settings, packed: Packed, missing: str) -> Packed:
    """The dataset as Parquet, the cards, and last the record of all."""
    files: Packed = {}
    for name, target in PARQUET_OF.items():
        if name in packed:
            files[target] = preference_parquet(rows_of(_read(packed, name)))
    hashes = {name: packed_file(source) for name, source in (packed | files).items()}
    adapter = adapter_hash({name: file.sha256 for name, file in hashes.items()})
    account = read_account(packed, lambda name: _read(packed, name), adapter, missing)
    cards = {"README.md": model_card(account), "DATASET.md": dataset_card(account), "USE.md": use_page(account)}
    files |= {name: text.encode("utf-8", "replace") for name, text in cards.items()}
    hashes |= {name: packed_file(files[name]) for name in cards}
    models = sources_of(settings, account.settings)
    record = make_record(account.settings, account.manifests, hashes, models, missing)
    return files | {RECORD: as_json(record.model_dump(mode="json"))}


def _read(packed: Packed, name: str) -> bytes:
    with opened(packed[name]) as file:
        return file.read()


def _sizes(packed: Packed) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, source in packed.items():
        top = ADAPTER if name.startswith(ADAPTER) else name.partition("/")[0] + "/" * ("/" in name)
        sizes[top] = sizes.get(top, 0) + (source.stat().st_size if isinstance(source, Path) else len(source))
    return sizes


def _check(draft: Path) -> tuple[ArchiveRecord, int]:
    """Open the zip as a stranger would, compare every member with its record; that, and how many tensors there are."""
    with open_archive(draft) as archive:
        if (difference := archive.first_difference()) is not None:
            raise CaiError(
                f"The zip is not what was put in: {difference}.",
                "A stage may be writing into the workspace, or the disk is full or failing. Run `cai export` again.",
            )
        return archive.record, count_finite_tensors(archive.read(WEIGHTS)) if WEIGHTS in archive.names else 0
