"""The last notebook: the verdict as a card, the report inside, what lies in the zip, and where it can go."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from IPython.display import HTML, Markdown, display

from cai_helpers.artifacts.packing import BASE, NAME
from cai_helpers.artifacts.record import ADAPTER, verdict_of
from cai_helpers.errors import CaiError
from cai_helpers.models.hub import locate
from cai_helpers.notebook import colab, widgets
from cai_helpers.notebook.markup import Html
from cai_helpers.notebook.words import in_notebook_words
from cai_helpers.pages.template import whole_values
from cai_helpers.settings import Settings
from cai_helpers.stages.export import ExportReport
from cai_helpers.stages.push import PushReport, push_archive
from cai_helpers.workspace import Workspace

_COLOUR = {"better": "#009E73", "worse": "#D55E00", "over-refusing": "#D55E00"}
_UNSURE = "#E69F00"


def show_verdict(workspace: Workspace) -> None:
    """The verdict of the evaluation as a card, or what is missing for one."""
    found = verdict_of(workspace.manifest("evaluate"))
    if found is None:
        headline, reason, colour = "No verdict yet", "Run notebook 05_evaluate first.", _UNSURE
    else:
        headline, reason = found.verdict.capitalize(), f"Stage 3 against Stage 2: {found.reason}."
        colour = _COLOUR.get(found.verdict, _UNSURE)
    card = Html(
        '<div style="border-left:8px solid {};padding:10px 16px;margin:8px 0;background:rgba(127,127,127,.1)">'
        '<div style="font-size:1.5em;font-weight:bold">{}</div><div>{}</div></div>'
    )
    display(HTML(in_notebook_words(card.format(colour, headline, whole_values(reason)))))


def show_contents(report: ExportReport) -> None:
    """What lies in the zip, the largest first, and how large the download is."""
    title = f"{Path(report.path).name}: {report.bytes / 1e6:.1f} MB to download, {report.files} files"
    widgets.show_table(title, [{"in the zip": name, "unpacked": size} for name, size in report.contents()])


def show_text(archive: Path, name: str) -> None:
    """A Markdown page of the zip."""
    with zipfile.ZipFile(archive) as zipped:
        display(Markdown(zipped.read(f"{NAME}/{name}").decode()))


def show_use(archive: Path, settings: Settings, workspace: Workspace) -> None:
    """USE.md of the zip with the paths of this machine, so that its code runs in the next cell as it stands."""
    with zipfile.ZipFile(archive) as zipped:
        text = zipped.read(f"{NAME}/USE.md").decode()
    here = {ADAPTER: workspace.adapter.absolute(), BASE: locate(settings.models.base)}
    for name, path in here.items():
        text = text.replace(json.dumps(name), json.dumps(str(path)))
    display(
        Markdown(
            text.replace("Run the code in the folder in which this file lies.", "The paths are those of this machine.")
        )
    )


def copy_to_drive(archive: Path, folder: str = "constitutional_ai") -> Path | None:
    """Copy the zip to a folder of Drive and compare it there; elsewhere than in Colab say where it lies."""
    if not colab.in_colab():
        print(f"No Drive here. The zip is {archive}")
        return None
    return copy_checked(archive, colab.mount_drive() / folder)


def copy_checked(archive: Path, folder: Path) -> Path:
    """The copy, whose bytes are those of the archive.

    Raises:
        CaiError: they are not; a drive may be full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, draft = folder / archive.name, folder / f"{archive.name}.tmp"
    shutil.copyfile(archive, draft)
    if draft.read_bytes() != archive.read_bytes():
        draft.unlink()
        raise CaiError(
            f"The copy in {folder} is not what was copied.", "See whether the drive is full; then run it again."
        )
    draft.replace(target)
    print(f"Copied and compared: {target}")
    return target


def push(archive: Path, to: str, dataset: str, public: bool, send: bool, overwrite: bool = False) -> PushReport | None:
    """Push as the form says; without `send` only list what would go. Empty names are no repositories."""
    if not to and not dataset:
        print("No repository is named: nothing goes to the Hub.")
        return None
    report = push_archive(
        archive, to or None, dataset or None, public, dry_run=not send, may_overwrite=lambda question: overwrite
    )
    widgets.show(report)
    return report
