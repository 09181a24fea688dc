"""Presets, files and overrides → frozen settings."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError

from cai_helpers.errors import CaiError
from cai_helpers.sections import (
    Alarms,
    Calibrate,
    Curate,
    Endpoint,
    Evaluate,
    Export,
    Generate,
    Models,
    Prompts,
    Score,
    Section,
    Train,
)
from cai_helpers.yaml_file import parse_yaml

PRESETS = ("smoke", "t4", "a100")
OUTWARD = ("train.copy_to", "train.report_to")  # what a run sends or writes to another place than its workspace
REWARD_VARIABLE = "STAGE3_RM_MODEL"  # environment variable: the reward model, where the settings name none

# What was called something else: read from files as it was, and named to who writes it.
_RENAMED = {
    f"reward_{field}": field for field in ("input", "max_length", "labels")
}  # models.reward_… → models.reward.…
# What was a setting once and is a constant of its section now.
_CONSTANTS: dict[str, tuple[type[Section], tuple[str, ...]]] = {
    "generate": (Generate, ("top_p",)),
    "evaluate": (Evaluate, ("top_p",)),
    "alarms": (Alarms, ("window", "least_accuracy", "chosen_share", "eval_rise", "length_gap", "gradient_spike")),
}


class Settings(Section):
    """All settings of a run: frozen, checked, one section for each thing that a person decides."""

    preset: str = "t4"
    seed: int = 0
    cpu: bool = False  # a preset that is sized for a GPU runs without one: you know that it takes long
    threads: int | None = Field(None, ge=1, le=512)  # torch's CPU threads; None leaves torch's choice
    models: Models = Models()
    prompts: Prompts = Prompts()
    generate: Generate = Generate()
    endpoint: Endpoint = Endpoint()
    score: Score = Score()
    calibrate: Calibrate = Calibrate()
    curate: Curate = Curate()
    train: Train = Train()
    alarms: Alarms = Alarms()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()

    _by_file_alone: frozenset[str] = PrivateAttr(frozenset())

    @property
    def by_file_alone(self) -> frozenset[str]:
        """Settings that send or write something elsewhere and that nobody but a file named. Neither written nor read."""
        return self._by_file_alone

    def of_file(self, names: frozenset[str]) -> Settings:
        """The same settings, of which a file alone named these."""
        found = self.model_copy()
        found._by_file_alone = names
        return found


def load_settings(preset: str = "t4", overrides: list[str] | None = None, **changes: Any) -> Settings:
    """Settings of a preset, changed by `"train.beta=0.2"` strings and by keywords such as `seed=1`.

    `preset` is a name in PRESETS or the path of a YAML or JSON file of the same form (a workspace's settings.json).
    Override values are read as YAML. Where none of all that names a reward model, the environment variable
    STAGE3_RM_MODEL does, which is said. A key is sent to an endpoint only if an override or a keyword names it: see Endpoint.

    Raises:
        CaiError: unknown preset, unknown field or a value out of range; the message names it.
    """
    values = _preset_values(preset)
    values.update(changes)
    for override in overrides or []:
        _apply(values, override)
    _name_reward_by_environment(values)
    settings = _validated({"preset": preset, **values})
    if preset not in PRESETS and "train" not in changes:
        settings = settings.of_file(_outward(settings) - _named(overrides))
    return _named_by_person(settings) if "endpoint" in changes or _names_endpoint(overrides) else settings


def read_settings(content: bytes, name: str) -> Settings:
    """The settings in a file that is not on disk; `name` says in an error where it stands.

    Raises:
        CaiError: it does not hold settings.
    """
    return _validated(_values_of(content, name, "Take that file from where you got it once more."))


def change_settings(settings: Settings, overrides: list[str]) -> Settings:
    """`settings`, changed by `"train.beta=0.2"` strings.

    Raises:
        CaiError: unknown field or a value out of range; the message names it.
    """
    values = settings.model_dump(mode="json")
    for override in overrides:
        _apply(values, override)
    changed = _validated(values).of_file(settings.by_file_alone - _named(overrides))
    kept = settings.endpoint.named_by_person and changed.endpoint.base_url == settings.endpoint.base_url
    return _named_by_person(changed) if kept or _names_endpoint(overrides) else changed


def as_override(name: str, value: str | Path) -> str:
    """`value` as the override that sets `name` to it: a path may hold what YAML takes for something else ("a: #2.jsonl")."""
    return f"{name}={json.dumps(str(value), ensure_ascii=False)}"


def _names_in(overrides: list[str] | None) -> set[str]:
    return {text.partition("=")[0].strip() for text in overrides or []}


def _names_endpoint(overrides: list[str] | None) -> bool:
    return not _names_in(overrides).isdisjoint({"endpoint", "endpoint.base_url"})


def _outward(settings: Settings) -> frozenset[str]:
    """Those of OUTWARD that are set."""
    train = settings.train
    return frozenset(
        name for name, used in zip(OUTWARD, (train.copy_to, train.report_to != "none"), strict=True) if used
    )


def _named(overrides: list[str] | None) -> frozenset[str]:
    names = _names_in(overrides)
    return frozenset(OUTWARD) if "train" in names else frozenset(OUTWARD) & names


def _named_by_person(settings: Settings) -> Settings:
    return settings.model_copy(update={"endpoint": settings.endpoint.by_person()})


def _validated(values: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise CaiError(
            f"setting {name}: {first['msg']} (it was {_shortened(repr(first['input']))})",
            "See cai_helpers/sections.py, or the settings form of the notebook, for the fields there are.",
        ) from error


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _preset_values(preset: str) -> dict[str, Any]:
    if preset in PRESETS:
        source = resources.files("cai_helpers") / "assets" / "presets" / f"{preset}.yaml"
    elif (source := Path(preset)).is_dir():
        raise CaiError(
            f"{preset} is a folder, and a file of settings was expected.", "Move it away, and name a preset."
        )
    elif source.suffix not in (".yaml", ".yml", ".json") or not source.is_file():
        raise CaiError(
            f"there is no preset {preset!r}", f"Use one of {', '.join(PRESETS)}, or the path of a YAML file."
        )
    remedy = f"Correct it, or move it away and name a preset ({', '.join(PRESETS)}) and your own settings once more."
    return _values_of(source.read_bytes(), preset, remedy)


def _values_of(content: bytes, name: str, remedy: str) -> dict[str, Any]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise CaiError(f"{name} is not UTF-8 text: {error}.", remedy) from error
    values = parse_yaml(text, name, remedy)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        what = "is empty" if values is None else "does not hold sections of settings"
        raise CaiError(f"{name} {what}.", remedy)
    return _in_todays_form(values, name)


def _in_todays_form(values: dict[str, Any], source: str) -> dict[str, Any]:
    """A file of settings that an earlier version wrote, in the names of this one.

    Raises:
        CaiError: it changes what cannot be changed any more.
    """
    models = values.get("models")
    if isinstance(models, dict) and _RENAMED.keys() & models.keys():
        reward = _as_source(models.get("reward"))
        values["models"] = {name: value for name, value in models.items() if name not in _RENAMED}
        values["models"]["reward"] = reward | {new: models[old] for old, new in _RENAMED.items() if old in models}
    for name, (section, constants) in _CONSTANTS.items():
        given = values.get(name)
        if not isinstance(given, dict):
            continue
        for constant in constants:
            if given.get(constant) not in (None, getattr(section, constant)):
                raise _constant(f"{name}.{constant}", getattr(section, constant), f"{source}: ")
        values[name] = {field: value for field, value in given.items() if field not in constants}
    return values


def _constant(name: str, value: object, where: str = "") -> CaiError:
    return CaiError(f"{where}{name} is no setting any more: it is always {value:g}.", "Leave it out.")


def _as_source(reward: object) -> dict[str, Any]:
    """models.reward as the fields that are given: a name alone is one of them."""
    if isinstance(reward, dict):
        return dict(reward)
    return {} if reward is None else {"model": reward}


def _name_reward_by_environment(values: dict[str, Any]) -> None:
    name, models = os.environ.get(REWARD_VARIABLE), values.setdefault("models", {})
    if not name or not isinstance(models, dict) or "model" in (reward := _as_source(models.get("reward"))):
        return
    models["reward"] = {"model": name, **reward}
    print(f"settings: the reward model is {name}, as {REWARD_VARIABLE} says")


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not name:
        raise CaiError(f"{override!r} is not of the form section.field=value", "Write, for example, train.beta=0.2")
    _refuse_former(name)
    value = _read_value(text, name)
    *sections, field = name.split(".")
    for section in sections:
        inner = values.get(section, {})
        if name.startswith(("models.reward.", "evaluate.scorer.")) and section in ("reward", "scorer"):
            inner = _as_source(inner)
        if not isinstance(inner, dict):
            raise CaiError(
                f"{name} goes deeper than the settings do", "Write section.field=value, as in train.beta=0.2"
            )
        values[section] = values = dict(inner)
    if name in ("models.reward", "evaluate.scorer") and isinstance(value, str):
        value = {**_as_source(values.get(field)), "model": value}  # the name alone: how it is read stays as it was
    values[field] = value


def _refuse_former(name: str) -> None:
    section, _, field = name.partition(".")
    if section == "models" and field in _RENAMED:
        new = f"models.reward.{_RENAMED[field]}"
        raise CaiError(f"{name} is called {new} now.", f"Write {new}=…")
    if section in _CONSTANTS and field in _CONSTANTS[section][1]:
        raise _constant(name, getattr(_CONSTANTS[section][0], field))


def _read_value(text: str, name: str) -> Any:
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    value = parse_yaml(text, f"{name}={shown}", "Write the value as YAML: 0.2, true, null, [a, b] or {a: 1}.")
    if not isinstance(value, str):
        return value
    if text.strip()[:1] not in "\"'|>!&":  # plain text: all of it, where YAML would read " #2.jsonl" as a comment
        value = text.strip()
    try:
        return float(value)  # YAML 1.1 takes "5e-6" for text
    except ValueError:
        return value
