"""The constitution in a text field: edited, checked line by line, and kept in the workspace."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import ipywidgets as widgets
from IPython.display import display

from cai_helpers.critique.constitution import load_constitution
from cai_helpers.errors import CaiError
from cai_helpers.notebook.colab import change
from cai_helpers.notebook.controls import button, line
from cai_helpers.notebook.markup import Html
from cai_helpers.settings import Settings, as_override, load_settings
from cai_helpers.store import write_atomically
from cai_helpers.workspace import Workspace


class ConstitutionEditor:
    """The field, a button that saves it if it is sound, and one that takes the shipped text again."""

    def __init__(self, settings: Settings, workspace: Workspace) -> None:
        self._workspace = workspace
        own = settings.generate.constitution
        layout = widgets.Layout(width="100%", height="340px")
        self.text = widgets.Textarea(value=Path(own).read_text(encoding="utf-8") if own else _shipped(), layout=layout)
        self.said = widgets.HTML()
        self.view = widgets.VBox(
            [self.text, line(button("Save", self.save), button("Shipped text", self.restore)), self.said]
        )

    def save(self) -> None:
        """Keep the text as the run's constitution, or say which line is wrong and keep nothing."""
        file = self._workspace.own_constitution
        draft = file.with_suffix(".draft.yaml")
        write_atomically(draft, self.text.value.encode())
        try:
            principles = load_constitution(draft).principles
        except CaiError as error:
            self._say(f"Not saved. {error.what.removeprefix(str(draft)).lstrip(', ')}")
            return
        finally:
            draft.unlink()
        if self._is_used():
            return
        write_atomically(file, self.text.value.encode())
        change(self._workspace, as_override("generate.constitution", file))
        self._say(f"Saved: {len(principles)} principles. The next cell tries them.")

    def restore(self) -> None:
        if self._is_used():
            return
        self.text.value = _shipped()
        change(self._workspace, "generate.constitution=null")
        self._say("The shipped constitution is used.")

    def _is_used(self) -> bool:
        """Whether pairs were made with the constitution as it is: another text would mix two runs."""
        if self._workspace.begun("generate") is None:
            return False
        self._say(
            "Not saved: this run has pairs that were made with the constitution as it is. Type another run_name in the form, or "
            "start over with colab.start_over(workspace), then save it there."
        )
        return True

    def _say(self, message: str) -> None:
        self.said.value = Html("<b>{}</b>").format(message)


def edit_constitution(settings: Settings, workspace: Workspace) -> None:
    """Show the run's constitution for editing."""
    display(ConstitutionEditor(settings, workspace).view)


def saved_settings(workspace: Workspace) -> Settings:
    """The settings with what was saved in the editor."""
    return load_settings(str(workspace.settings_file))


def _shipped() -> str:
    return (resources.files("cai_helpers") / "assets" / "constitution.yaml").read_text(encoding="utf-8")
