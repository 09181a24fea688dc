"""A checked archive onto the Hub: the adapter as a model, its pairs as a dataset, one commit each; private by default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from cai_helpers.artifacts.archive import Archive, open_archive
from cai_helpers.artifacts.checks import examine
from cai_helpers.artifacts.hub_repository import Plan, carry_out, make_plan
from cai_helpers.artifacts.parquet import PARQUET_OF
from cai_helpers.artifacts.record import ADAPTER
from cai_helpers.errors import CaiError
from cai_helpers.schema import StageReport

_WITH_THE_MODEL = ("settings.json", "constitution.yaml", "protocols.yaml")
_WITH_THE_DATASET = ("pairs/pairs.jsonl", "dpo_dataset/dropped.jsonl", *_WITH_THE_MODEL)


class PushReport(StageReport):
    path: str
    dry: bool
    rows: list[tuple[str, str]]
    addresses: list[str]  # of the commits; none of a repository in which nothing changed

    def title(self) -> str:
        return f"What a push of {self.path} would do; nothing was sent" if self.dry else f"Pushed: {self.path}"

    def lines(self) -> list[tuple[str, str]]:
        commits = [("commit", address) for address in self.addresses]
        return [*self.rows, *(commits if commits or self.dry else [("nothing to do", "all of it is there already")])]


def push_archive(
    path: Path,
    to: str | None,
    dataset: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    may_overwrite: Callable[[str], bool] = lambda question: False,
) -> PushReport:
    """Put the adapter of an archive into the model repository `to`, and its pairs into `dataset`, where named.

    The archive is verified first. A repository that is missing is made, private unless `public`. What this package
    wrote there before is replaced; before it overwrites anything else it asks `may_overwrite`. A second call changes
    nothing; one that was cut off goes on.

    Raises:
        CaiError: the archive is not sound, has no adapter, the repository is public and was not meant to be, the answer
            was no, or the Hub refuses.
    """
    if to is None and dataset is None:
        raise CaiError("No repository is named.", "Write --to user/repo, --dataset user/pairs, or both.")
    for name in (to, dataset):
        if name is not None and name.count("/") != 1:
            raise CaiError(f"{name} is no name on the Hub.", "Write owner/name, such as me/my-policy.")
    with open_archive(path) as archive:
        examine(archive)
        plans: list[Plan] = []
        if to is not None:
            plans.append(make_plan(to, "model", model_files(archive, to, dataset), public))
        if dataset is not None:
            plans.append(make_plan(dataset, "dataset", dataset_files(archive), public))
    rows = [line for plan in plans for line in plan.lines()]
    if dry_run:
        return PushReport(path=str(path), dry=True, rows=rows, addresses=[])
    for plan in plans:
        _require_leave(plan, may_overwrite)
    addresses = [carry_out(plan, public) for plan in plans if not plan.is_empty]
    return PushReport(path=str(path), dry=False, rows=rows, addresses=addresses)


def model_files(archive: Archive, repository: str, dataset: str | None) -> dict[str, bytes]:
    """Path in the repository → content: the adapter at the top, where PEFT looks for it, and the cards that name it."""
    if archive.record.adapter is None:
        raise CaiError(
            f"{archive.path} has no adapter: {archive.record.without_adapter}", "Push the pairs alone: --dataset."
        )
    files = {Path(name).name: archive.read(name) for name in archive.names if name.startswith(f"{ADAPTER}/")}
    files |= {
        name: archive.read(name) for name in archive.names if name in _WITH_THE_MODEL or name.startswith("reports/")
    }
    use = archive.read("USE.md").decode().replace(f'"{ADAPTER}"', f'"{repository}"')
    if dataset is not None:
        train, held_out = PARQUET_OF.values()
        local = f'"parquet", data_files={{"train": "{train}", "test": "{held_out}"}}'
        use = use.replace(local, f'"{dataset}"')
    card = archive.read("README.md").decode()
    return files | {"USE.md": use.encode(), "README.md": _naming(card, dataset).encode()}


def dataset_files(archive: Archive) -> dict[str, bytes]:
    """Path in the repository → content: Parquet for the viewer, its card, and the pairs it was made from."""
    wanted = {*_WITH_THE_DATASET, *PARQUET_OF.values()}
    files = {name: archive.read(name) for name in archive.names if name in wanted}
    if not any(name.endswith(".parquet") for name in files):
        raise CaiError(f"{archive.path} has no dataset.", "Run `cai curate`, then `cai export` again.")
    return files | {"README.md": archive.read("DATASET.md")}


def _naming(card: str, dataset: str | None) -> str:
    """The model card, with the dataset among those in its head."""
    from huggingface_hub import ModelCard, ModelCardData

    if dataset is None:
        return card
    parsed = ModelCard(card, ignore_metadata_errors=True)
    head = card.split("\n---\n", 1)[1]
    data = cast(ModelCardData, parsed.data)
    data.datasets = [*(data.get("datasets") or []), dataset]
    return f"---\n{data.to_yaml()}\n---\n{head}"


def _require_leave(plan: Plan, may_overwrite: Callable[[str], bool]) -> None:
    if not plan.foreign:
        return
    names = ", ".join(plan.foreign)
    if not may_overwrite(f"{plan.repository} holds {names}, which cai push did not write. Overwrite?"):
        raise CaiError(
            f"{plan.repository} holds {names}, which `cai push` did not write. Nothing was sent.",
            "Look at it on the Hub; then answer yes, or name another repository.",
        )
