"""YAML files as frozen, validated objects; an unknown key is an error that names it and the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from nxm.errors import UserError

Share = Annotated[float, Field(ge=0.0, le=1.0)]


Positive = Annotated[float, Field(gt=0.0)]


PositiveInt = Annotated[int, Field(gt=0)]


class Settings(BaseModel):
    """Base of every block of settings: immutable, and without keys beyond those declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def listed(names: Iterable[object]) -> str:
    """Return names in alphabetical order for a message: "a, b"."""
    return ", ".join(sorted(map(str, names)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping in YAML 1.2, in which `3e-5` is a number. (PyYAML reads it as a string.)

    Raises:
        UserError: the file is missing, is no YAML or has something other than a mapping.
    """
    try:
        loaded = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
    return loaded


def explain(where: object, problem: Any, model: type[BaseModel]) -> str:
    """Return a message of one line for a problem that pydantic found.

    Args:
        where: the file, for the start of the message.
        problem: an entry of `ValidationError.errors()`.
        model: the model that was validated, for the known keys.
    """
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key '{key}'; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{where}: '{key}' is missing"
    if isinstance(problem["input"], (dict, list)):
        return f"{where}: {key + ': ' if key else ''}{message}"
    return f"{where}: {key} = {problem['input']!r}: {message}"


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at a place of the settings, found by walking the models along `location`."""
    models = {model}
    for part in location:
        fields = [found.model_fields[part].annotation for found in models if part in found.model_fields]
        if fields:  # else `part` is a key of a dict, an index of a list or the name of a union's member
            models = set().union(*map(_models_in, fields))
    return sorted(set().union(*(found.model_fields for found in models)))


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    """Return the models that an annotation such as `dict[str, Model] | None` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*map(_models_in, get_args(annotation)))
