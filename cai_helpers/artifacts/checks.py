"""Does an archive say of itself what is in it? Figures are counted again, and each thing is held against another."""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from cai_helpers import __version__
from cai_helpers.artifacts.account import Account, as_rows, read_account
from cai_helpers.artifacts.archive import Archive
from cai_helpers.artifacts.cards import dataset_card, eval_results, model_card
from cai_helpers.artifacts.parquet import PARQUET_OF, as_in_table, table_rows
from cai_helpers.artifacts.record import ADAPTER, WEIGHTS, adapter_hash, data_of, verdict_of
from cai_helpers.artifacts.tensors import count_finite_tensors, metadata_of
from cai_helpers.artifacts.use_page import use_page
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.comparison import compare
from cai_helpers.evaluation.figures import HELD_OUT, Comparison, Response
from cai_helpers.manifest import SETTINGS_HASH, hash_of_fingerprint
from cai_helpers.models.hub import EMBEDDED, local_folder
from cai_helpers.readiness.adapter_fit import adapter_fit
from cai_helpers.store import rows_of

Check = Callable[[Archive, Account], str]  # what was found; raises Difference
_KEPT_WHOLE = re.compile(r"</?span[^>]*>")  # around values, in which no line of the page may end
_PIECES = re.compile(r"[;.] (?![^()]*\))|\.$")  # the page lists a reason piece by piece
_STATISTICS = "dpo_dataset/stats.json"
_OF_THE_MODEL_CARD = ("curate", "train", "evaluate")
_OF_THE_DATASET_CARD = ("generate", "score", "calibrate", "curate", "analyze")


class Difference(CaiError):
    """The archive contradicts itself."""

    def __init__(self, what: str) -> None:
        super().__init__(
            what,
            "Do not rely on it: take it once more from where you got it, or ask whoever made it to run `cai export`.",
        )


def examine(archive: Archive) -> list[tuple[str, str]]:
    """(what was looked at, what was found), in order.

    Raises:
        CaiError: the first difference.
    """
    if (difference := archive.first_difference()) is not None:
        raise Difference(f"{difference}.")
    record = archive.record
    account = read_account(archive.names, archive.read, record.adapter, record.without_adapter)
    checks: dict[str, Check] = {
        "record": _record,
        "stages": _stages,
        "adapter": _adapter,
        "base": _base,
        "evaluation": _evaluation,
        "cards": _cards,
        "dataset": _dataset,
    }
    found = [("files", f"{len(record.files)}, each with the size and the hash that were packed")]
    return found + [(name, check(archive, account)) for name, check in checks.items()]


def _record(archive: Archive, account: Account) -> str:
    record = archive.record
    hashes = {name: file.sha256 for name, file in record.files.items()}
    _require(record.settings == hashes.get("settings.json"), "manifest.json names the hash of other settings")
    _require(record.adapter == adapter_hash(hashes), "manifest.json names the hash of another adapter")
    _require(
        record.verdict == verdict_of(account.manifests.get("evaluate")), "the verdict is not that of the evaluation"
    )
    _require(
        record.data == data_of(account.settings, account.manifests), "manifest.json names other data than the stages"
    )
    if (base := record.models.get("base")) is not None:
        _require(base.name == account.settings.models.base, f"manifest.json names {base.name} as the base")
    return f"made by cai_helpers {record.versions['cai_helpers']}, settings {record.settings[:12]}"


def _stages(archive: Archive, account: Account) -> str:
    """What the stages sealed is what lies there, and metrics.json says the same as their manifests."""
    hashes = {name: file.sha256 for name, file in archive.record.files.items()}
    hashes |= {ADAPTER: archive.record.adapter} if archive.record.adapter else {}
    metrics = json.loads(archive.read("metrics.json")) if "metrics.json" in archive.names else {}
    if _STATISTICS in archive.names and "curate" in account.manifests:
        counted = json.loads(archive.read(_STATISTICS))
        _require(
            counted == account.manifests["curate"].report, f"{_STATISTICS} has other figures than the report of curate"
        )
    for stage, manifest in account.manifests.items():
        for name, digest in manifest.outputs.items():
            if name in hashes:
                _require(hashes[name] == digest, f"{name} is not what the stage {stage} left")
        if stage in metrics:
            _require(
                metrics[stage] == manifest.report,
                f"metrics.json has other figures of the stage {stage} than its report",
            )
    return f"{', '.join(account.manifests) or 'none'}: what they left is what is here"


def _adapter(archive: Archive, account: Account) -> str:
    if WEIGHTS not in archive.names:
        return f"none: {account.without_adapter}"
    weights = archive.read(WEIGHTS)
    count = count_finite_tensors(weights)
    expected, stamp = archive.record.training, metadata_of(weights).get(SETTINGS_HASH)
    train = account.manifests.get("train")
    if expected is not None and train is not None:
        _require(
            expected == hash_of_fingerprint(train.fingerprint), "manifest.json names another training than its manifest"
        )
    if stamp is not None:
        _require(
            stamp == expected, "the adapter was trained with other settings than these: its metadata has another hash"
        )
    return f"{count} tensors, all finite" + (f", trained with {stamp[:12]}" if stamp else "")


def _base(archive: Archive, account: Account) -> str:
    base = account.settings.models.base
    if account.adapter is None:
        return "not tried: there is no adapter"
    if not base.startswith(EMBEDDED) and local_folder(base, "config.json") is None:
        return f"not tried: {base} is not on this machine"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / ADAPTER
        folder.mkdir(parents=True)
        for name in archive.names:
            if name.startswith(f"{ADAPTER}/"):
                (Path(scratch) / name).write_bytes(archive.read(name))
        return adapter_fit(base, ADAPTER, folder)


def _evaluation(archive: Archive, account: Account) -> str:
    """The comparison, counted again from the answers."""
    manifest, name = account.manifests.get("evaluate"), "evaluation/responses.jsonl"
    if manifest is None or "overall" not in manifest.report:
        return "none"
    _require(name in archive.names, f"the evaluation has no {name}")
    responses = [Response.model_validate(row) for row in rows_of(archive.read(name))]
    responses = [response for response in responses if response.prompt_set == HELD_OUT]
    _require(bool(responses), f"{name} has no answer to a held-out prompt")
    claimed, counted = Comparison.model_validate(manifest.report["overall"]), compare(responses)
    _require(
        (claimed.prompts, claimed.wins, claimed.ties, claimed.losses, claimed.win_rate, claimed.refusals)
        == (counted.prompts, counted.wins, counted.ties, counted.losses, counted.win_rate, counted.refusals),
        "the evaluation claims other figures than its answers give",
    )
    verdict = archive.record.verdict
    assert verdict is not None
    if account.evaluated is None:
        return "of another adapter than this one, as the card says"
    if "reports/report.html" in archive.names:
        page = archive.read("reports/report.html").decode("utf-8", "replace")
        page = html.unescape(_KEPT_WHOLE.sub("", page))
        pieces = [piece.strip() for piece in _PIECES.split(verdict.reason)]
        same = verdict.verdict.capitalize() in page and all(piece in page for piece in pieces)
        _require(same, "reports/report.html gives another verdict, or another reason for it")
    return f"{verdict.verdict}: {counted.wins} won, {counted.ties} tied, {counted.losses} lost, counted again"


def _cards(archive: Archive, account: Account) -> str:
    """Each table of a card is that of a report; the results in the head are those of the evaluation."""
    from huggingface_hub import ModelCard

    texts = {name: archive.read(name).decode("utf-8", "replace") for name in ("README.md", "DATASET.md", "USE.md")}
    tables = account.tables()
    for name, stages in (("README.md", _OF_THE_MODEL_CARD), ("DATASET.md", _OF_THE_DATASET_CARD)):
        lines = set(texts[name].split("\n"))
        for stage in stages:
            if stage == "train" and account.adapter is None:
                continue
            for row in as_rows(tables.get(stage, [])):
                _require(row in lines, f"{name} does not say what the report of {stage} says: {row}")
    try:
        claimed = ModelCard(texts["README.md"], ignore_metadata_errors=True).data.get("eval_results") or []
    except ValueError as error:
        raise Difference(f"the head of README.md cannot be read: {error}") from error
    _require(
        list(map(vars, claimed)) == list(map(vars, eval_results(account))),
        "the results in the head of README.md differ",
    )
    if archive.record.versions.get("cai_helpers") != __version__:
        return "their figures are those of the reports"
    made = {"README.md": model_card(account), "DATASET.md": dataset_card(account), "USE.md": use_page(account)}
    for name, text in made.items():
        _require_same_body(name, texts[name], text)
    return "their figures are those of the reports, and they say what this version says"


def _require_same_body(name: str, found: str, made: str) -> None:
    """The head may differ by what this machine knows of the base's licence."""
    lines = zip_longest(_body(found), _body(made), fillvalue="")
    first = next(((now, then) for now, then in lines if now != then), None)
    if first is not None:
        raise Difference(f"{name} has {first[0]!r} where the reports give {first[1]!r}.")


def _body(text: str) -> list[str]:
    without_head = text[4:].partition("\n---\n")[2] if text.startswith("---\n") else text
    return without_head.split("\n")


def _dataset(archive: Archive, account: Account) -> str:
    counts = []
    for rows, table in PARQUET_OF.items():
        if rows not in archive.names:
            continue
        _require(table in archive.names, f"{table} is missing")
        expected = list(map(as_in_table, rows_of(archive.read(rows))))
        _require(table_rows(archive.read(table)) == expected, f"{table} has other rows than {rows}")
        counts.append(f"{len(expected)} rows in {table}")
    return ", ".join(counts) or "not curated"


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Difference(f"{otherwise}.")
