"""A user's YAML file → a validated model, with errors that name the line."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cai_helpers.errors import CaiError

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path | Traversable, model: type[Model], example: str) -> Model:
    """The content of `path` as `model`; `example` names a file of the same form.

    Raises:
        CaiError: there is no such file, it is not YAML, or not of the model's form; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CaiError(f"There is no file {path}.", f"Check the path, or begin with a copy of {example}.") from None
    except UnicodeDecodeError as error:
        raise CaiError(f"{path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    value = parse_yaml(text, str(path), "Correct that line.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [
            f"line {_line(text, problem['loc'])}: {_place(problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise CaiError(f"{path}, {'; '.join(problems)}", f"Compare with {example}.") from error


def parse_yaml(text: str, name: str, todo: str) -> Any:
    """The value of a YAML text; `name` says in an error where it stands, `todo` what to do.

    Raises:
        CaiError: it is not YAML; the message names the line, where there is more than one.
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}, line {mark.line + 1}" if mark and "\n" in text.strip() else name
        raise CaiError(f"{place}: not valid YAML: {error.problem}.", todo) from error
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML knows not; a date that is none
        raise CaiError(f"{name}: not valid YAML: {str(error).splitlines()[0]}.", todo) from error


def _line(text: str, location: tuple[int | str, ...]) -> int:
    """Line of the deepest part of `location` that stands in the file: a missing field has the line of its parent."""
    node = yaml.compose(text)
    line = 1
    for part in location:
        child = _child(node, part)
        if child is None:
            break
        node, line = child
    return line


def _child(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line + 1
    return None


def _place(location: tuple[int | str, ...]) -> str:
    return " → ".join(str(part) for part in location) or "the file"
