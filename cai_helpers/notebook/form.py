"""What stands in the notebook's form, as settings. An empty field is the preset's."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

from cai_helpers.errors import CaiError
from cai_helpers.notebook.places import path_of
from cai_helpers.settings import Settings, as_override, load_settings

FIELDS = {
    "base_model": "models.base",
    "stage2_adapter": "models.adapter",
    "prompts": "prompts.source",
    "training_prompts": "prompts.limit",
    "scorer": "models.reward",
}
# The embedded models talk about a world of their own: nothing of these fits them.
UNUSED_BY = {"smoke": ("base_model", "stage2_adapter", "prompts", "scorer")}
_SCORER = re.compile(r"(?P<model>.+?)(?::(?P<input>pair|chat)(?::(?P<max_length>\d+))?)?")
_FEEDBACK = "the model itself"


class Form(BaseModel):
    """The form as it stood when the cell was run last; it lies beside the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    fields: dict[str, str]  # field → text; a field that is empty, or 0, is not there


def form_of(preset: str, given: dict[str, Any]) -> Form:
    """
    Raises:
        CaiError: a field that no form has.
    """
    if unknown := sorted(given.keys() - FIELDS.keys()):
        raise CaiError(f"The form has no field {unknown[0]!r}.", f"It has {', '.join(FIELDS)}.")
    texts = {name: str(given.get(name, "")).strip() for name in FIELDS}
    return Form(preset=preset, fields={name: text for name, text in texts.items() if text not in ("", "0", "None")})


def settings_of(form: Form) -> Settings:
    """The preset, changed by the fields that are filled in.

    Raises:
        CaiError: a value out of range, or a folder that is not there.
    """
    return load_settings(form.preset, overrides(form, list(form.fields)))


def overrides(form: Form, names: list[str]) -> list[str]:
    """What these fields of the form ask for; a field that was emptied asks for the preset's value."""
    unused = UNUSED_BY.get(form.preset, ())
    return [text for name in names if name not in unused for text in _asked(form, name)]


def _asked(form: Form, name: str) -> list[str]:
    text = form.fields.get(name)
    if text is None:
        return _of_preset(load_settings(form.preset), name)
    if name == "training_prompts":
        return [f"prompts.limit={text}"]
    if name == "scorer":
        return _scorer(text)
    changes = [as_override(FIELDS[name], path_of(text))]
    # the preset's held-out prompts belong to its own source
    return [*changes, "prompts.eval_source=null"] if name == "prompts" else changes


def _scorer(text: str) -> list[str]:
    """OWNER/NAME, with :chat or :chat:2048 where it is read by its chat template; or the model itself (AI feedback)."""
    if text == _FEEDBACK:
        return ["score.by=ai_feedback"]
    parts = _SCORER.fullmatch(text)
    assert parts is not None  # everything matches
    given = [("model", as_override("models.reward.model", path_of(parts["model"])))]
    given += [(key, f"models.reward.{key}={parts[key]}") for key in ("input", "max_length") if parts[key]]
    return ["score.by=reward_model", *(override for _, override in given)]


def _of_preset(preset: Settings, name: str) -> list[str]:
    if name == "training_prompts":
        return [f"prompts.limit={'null' if preset.prompts.limit is None else preset.prompts.limit}"]
    if name == "prompts":
        held_out = preset.prompts.eval_source
        kept = "prompts.eval_source=null" if held_out is None else as_override("prompts.eval_source", held_out)
        return [as_override("prompts.source", preset.prompts.source), kept]
    if name == "scorer":
        reward = preset.models.reward
        return [
            f"score.by={preset.score.by}",
            as_override("models.reward.model", reward.model),
            f"models.reward.input={reward.input}",
            f"models.reward.max_length={reward.max_length}",
        ]
    value = preset.models.base if name == "base_model" else preset.models.adapter
    return [f"{FIELDS[name]}=null" if value is None else as_override(FIELDS[name], value)]


def changed_fields(before: Form, now: Form) -> list[str]:
    """The fields in which two forms differ."""
    return [name for name in FIELDS if before.fields.get(name) != now.fields.get(name)]


def unused_line(form: Form) -> str:
    """Which filled-in fields this preset has no use for, in words; "" where there is none."""
    names = [name for name in UNUSED_BY.get(form.preset, ()) if name in form.fields]
    if not names:
        return ""
    return (
        f"The preset {form.preset} brings its own models and prompts: it does not use {', '.join(names)} of the form. "
        "Choose t4 or a100 to use them."
    )
