"""A run and its name: begun by the form, found again as it is, changed only in what was changed, started over on demand.

settings.json says what a run is made with. The form never rewrites it: form.json beside it says how the form stood last,
and what differs now is what the person changed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cai_helpers import ground, lock
from cai_helpers.errors import CaiError
from cai_helpers.keeping.keeper import Keeper
from cai_helpers.keeping.keeper import keep as keep_at
from cai_helpers.keeping.listing import MARK
from cai_helpers.models.hub import identity
from cai_helpers.notebook import bars, places, signing, telling
from cai_helpers.notebook.form import Form, changed_fields, form_of, overrides, settings_of, unused_line
from cai_helpers.readiness.standing import here
from cai_helpers.settings import Settings, change_settings, load_settings
from cai_helpers.stages import train
from cai_helpers.store import read_json, write_json
from cai_helpers.workspace import Workspace

_NO_WORK = {"preflight"}  # manifests of what made nothing that other settings could be mixed with
_STAYS = {"archive", lock.FILE, MARK}
_KEEPERS: dict[
    Path, Keeper
] = {}  # by the run's folder: what copies it to where it is kept, over the life of the kernel


class Session(NamedTuple):
    settings: Settings
    workspace: Workspace


def open_run(
    name: str, preset: str = "t4", form: dict[str, Any] | None = None, keep: str = "drive", fresh: bool = False
) -> Session:
    """Settings and workspace of the run of that name: begun by the form, or found as it is. What was done is printed.

    form: see form.FIELDS; what is empty is the preset's. On a run that is there already only what was changed in the form
    since the last time is changed. keep: see places.kept_at. fresh: move the run's work to its archive/ and begin anew.
    CAI_PRESET, where set, wins over the form's preset: that is how the notebooks are tested.

    Raises:
        CaiError: another preset, or a setting that work which is done depends on; a value out of range; a model that
            this account may not read.
    """
    telling.install()
    bars.take_over()
    asked = form_of(os.environ.get("CAI_PRESET", preset), form or {})
    workspace, kept = _workspace_of(name, keep)
    if fresh:
        start_over(workspace, with_settings=True)
    session = _found(name, workspace, asked) if workspace.settings_file.exists() else _begun(name, workspace, asked)
    write_json(workspace.form, asked.model_dump(mode="json"))
    _say(unused_line(asked), kept, f"You are here: {here(workspace)}.")
    signing.sign_in_where_needed(session.settings)
    return session


def resume(name: str, keep: str = "drive") -> Session:
    """Settings and workspace of a run that an earlier notebook began, brought back from where it is kept.

    Raises:
        CaiError: there is none of that name.
    """
    telling.install()
    bars.take_over()
    workspace, kept = _workspace_of(name, keep)
    if not workspace.settings_file.exists():
        others = f" On this machine there are: {', '.join(places.run_names())}." if places.run_names() else ""
        raise CaiError(
            f"There is no run {name} yet (looked in {workspace.root}{f' and {keep}' if keep != 'none' else ''}).{others}",
            "Open notebook 00_setup first (or run_all instead of them all), with the same run_name and keep as here.",
        )
    ground.open_root(workspace.root)  # from here on it is not made again if its disk is lost
    settings = load_settings(str(workspace.settings_file))
    _say(f"Run {name}: {_summary(settings)}, in {workspace.root}.", kept, f"You are here: {here(workspace)}.")
    signing.sign_in_where_needed(settings)
    return Session(settings, workspace)


def change(workspace: Workspace, *changes: str, fresh: bool = False) -> Settings:
    """Change settings of the run, as in change(workspace, "train.method=sft+dpo"), keep them there and return them.

    fresh: what was made with the old ones is moved to archive/ first.

    Raises:
        CaiError: there is no run in this place, no such setting, a value out of range, or work that is done depends on it.
    """
    if not workspace.settings_file.exists():
        raise CaiError(f"There is no run in {workspace.root} yet.", "Run the Settings cell above first.")
    before = load_settings(str(workspace.settings_file))
    settings = change_settings(before, list(changes))
    if conflict := _conflict(workspace, before, settings):
        if not fresh:
            call = ", ".join(f'"{text}"' for text in changes)
            raise _refusal(workspace, conflict, f"settings = colab.change(workspace, {call}, fresh=True)")
        start_over(workspace, conflict.stage)
    workspace.save_settings(settings)
    return settings


def start_over(workspace: Workspace, stage: str = "", with_settings: bool = False) -> None:
    """Move what the run made to its archive/; nothing is deleted.

    stage: "train": only the training and what follows it runs anew, on the same pairs. with_settings: the settings too, so
    that the form begins a new run.
    """
    if not workspace.root.exists():
        return
    with workspace.held():
        if stage == "train":
            train.start_over(load_settings(str(workspace.settings_file)), workspace)
            return
        stays = _STAYS | (set() if with_settings else {workspace.settings_file.name, workspace.form.name, "logs"})
        moved = [path for path in workspace.root.iterdir() if path.name not in stays]
        if not moved:
            return
        target = workspace.archive_of("run")
        ground.make_folder(target)
        for path in moved:
            path.replace(target / path.name)
    print(f"Started over: what was made so far is in {target}.")


def _workspace_of(name: str, keep: str) -> tuple[Workspace, str]:
    """The run's workspace, with what its place holds brought back, and a line about the place."""
    workspace = Workspace(places.folder_of(name))
    ground.forget(workspace.root)  # what is there now is where the run begins
    if (before := _KEEPERS.pop(workspace.root, None)) is not None:
        before.close()
    place = places.kept_at(keep, name)
    if not place:
        lost = ' (it goes with the runtime: choose keep = "drive" to keep it)' if places.in_colab() else ""
        return workspace, f"Kept on this machine alone{lost}."
    if place.startswith("hub:"):
        signing.sign_in(f"the run is to be kept at {place}")
    keeper = _KEEPERS[workspace.root] = keep_at(workspace, place)
    return workspace, f"Kept at {place}; {keeper.line()}."


def _begun(name: str, workspace: Workspace, asked: Form) -> Session:
    settings = settings_of(asked)
    workspace.save_settings(settings)
    _say(f"Run {name}: new, {_summary(settings)}, in {workspace.root}.")
    return Session(settings, workspace)


def _found(name: str, workspace: Workspace, asked: Form) -> Session:
    before = load_settings(str(workspace.settings_file))
    ground.open_root(workspace.root)
    last = _last_form(workspace)
    found = f"Run {name}: found in {workspace.root}"
    if asked.preset != before.preset:
        return _with_another_preset(name, workspace, asked, before)
    if last is None:
        _say(f"{found}, {_summary(before)}. It was not begun by a form: its settings stay, and the form is noted.")
        return Session(before, workspace)
    names = changed_fields(last, asked)
    settings = change_settings(before, overrides(asked, names))
    differences = _differences(before, settings)
    if not differences:
        _say(f"{found}, {_summary(before)}. Its settings stay as they are: the form asks for nothing else.")
        return Session(before, workspace)
    if conflict := _conflict(workspace, before, settings):
        raise _refusal(workspace, conflict, "colab.start_over(workspace)")
    workspace.save_settings(settings)
    told = "; ".join(f"{one} was {old!r}, now {new!r}" for one, (old, new) in differences.items())
    _say(f"{found}, {_summary(settings)}. Changed, as the form was: {told}. All else stays.")
    return Session(settings, workspace)


def _with_another_preset(name: str, workspace: Workspace, asked: Form, before: Settings) -> Session:
    """A run without work takes the preset; one with work stays what it is."""
    if not has_work(workspace):
        settings = settings_of(asked)
        workspace.save_settings(settings)
        _say(f"Run {name}: nothing was made with the preset {before.preset} yet; it has {_summary(settings)} now.")
        return Session(settings, workspace)
    offer_start_over(workspace)
    raise CaiError(
        f"The run {name} was made with the preset {before.preset}, and the form says {asked.preset}: both in one folder "
        "would mix two runs.",
        f"Type another run_name in the form, such as {name}-{asked.preset}. Or start over with the button above, which moves "
        "the old work to archive/, and run this cell again.",
    )


def offer_start_over(workspace: Workspace) -> None:
    """A button that moves the run's work and settings to archive/."""
    import ipywidgets as widgets
    from IPython.display import display

    from cai_helpers.notebook.controls import button, line

    said = widgets.HTML()

    def pressed() -> None:
        start_over(workspace, with_settings=True)
        said.value = "The old work is in archive/. Run the form's cell again: it begins anew."

    display(line(button("start over", pressed), said))


def has_work(workspace: Workspace) -> bool:
    """Whether a stage was begun here."""
    return any(path.name.partition(".")[0] not in _NO_WORK for path in workspace.manifests.glob("*.json"))


class _Conflict(NamedTuple):
    stage: str
    name: str
    old: Any
    new: Any


def _conflict(workspace: Workspace, before: Settings, now: Settings) -> _Conflict | None:
    """The first changed setting that rows or checkpoints which are there were made with."""
    differences = _differences(before, now)
    for stage in ("generate", "train"):
        begun = workspace.begun(stage)
        manifest = workspace.manifest(stage)
        depends = begun if begun is not None else manifest.fingerprint if manifest is not None else {}
        for name, (old, new) in differences.items():
            if name in depends and _content(name, old) != _content(name, new):
                return _Conflict(stage, name, old, new)
    return None


def _content(name: str, value: Any) -> Any:
    """A model's folder by what is in it: moving it changes nothing."""
    return identity(value) if name in ("models.base", "models.adapter") else value


_MADE = {"generate": "pairs", "train": "a training"}


def _refusal(workspace: Workspace, conflict: _Conflict, call: str) -> CaiError:
    name, made = workspace.root.name, _MADE[conflict.stage]
    what = "only the training is made anew" if conflict.stage == "train" else "everything is made anew"
    return CaiError(
        f"The run {name} has {made} made with {conflict.name} = {conflict.old!r}; with {conflict.new!r} it would mix two runs. "
        "Nothing was changed.",
        f"Type another run_name in the form, such as {name}-2, to keep both. Or start over, where {what} and the old work "
        f"goes to archive/: {call}",
    )


def _differences(before: Settings, now: Settings) -> dict[str, tuple[Any, Any]]:
    """Setting → (before, now), by its dotted name."""
    old, new = _flat(before), _flat(now)
    return {name: (old[name], new[name]) for name in new if old[name] != new[name]}


def _flat(settings: Settings) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in settings.model_dump(mode="json").items():
        flat |= (
            {f"{section}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {section: value}
        )
    return flat


def _last_form(workspace: Workspace) -> Form | None:
    if not workspace.form.exists():
        return None
    try:
        return Form.model_validate(read_json(workspace.form, "Delete that file: the run's settings stay."))
    except ValidationError:  # of another version
        return None


def _summary(settings: Settings) -> str:
    adapter = f" with {Path(settings.models.adapter).name}" if settings.models.adapter else ""
    count = "all" if settings.prompts.limit is None else f"{settings.prompts.limit:,}"
    return f"preset {settings.preset}, {settings.models.base}{adapter}, {count} prompts, {settings.train.method}"


def _say(*lines: str) -> None:
    for text in filter(None, lines):
        print(text)
