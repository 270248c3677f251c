"""YAML files as frozen, validated objects; an unknown key is an error that names it and the nearest known one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from nxm.errors import UserError

T = TypeVar("T")


def _without_repetition(values: list[T]) -> list[T]:
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ValueError(f"{value!r} is listed twice; list each once")
    return values


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


# Strict: true, "1" and 1.0 are no integers, true and "1" no numbers
Share = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
Positive = Annotated[float, Field(strict=True, gt=0.0)]
NonNegative = Annotated[float, Field(strict=True, ge=0.0)]
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
Count = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # numpy's generators take no others
Distinct = AfterValidator(_without_repetition)  # a list in which nothing is twice
RegularExpression = Annotated[str, AfterValidator(_regular_expression)]


class Settings(BaseModel):
    """Base of every block of settings: immutable, without keys beyond those declared, and without NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed: `BEST_ADMM.replace(interval=80)`.

        Raises:
            UserError: a key is unknown or a value impossible.
        """
        kind = type(self)
        try:
            return kind.model_validate(dict(self) | changes)
        except ValidationError as error:
            raise UserError(explain_all(kind.__name__, error, kind)) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy as pydantic's method does, but with `update` checked as in `replace`."""
        return self.replace(**update) if update else super().model_copy(deep=deep)


def listed(names: Iterable[object]) -> str:
    """Return names in alphabetical order for a message: "a, b"."""
    return ", ".join(sorted(map(str, names)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping in YAML 1.2, in which `3e-5` is a number. (PyYAML reads it as a string.)

    Raises:
        UserError: the file is missing, is no YAML, has a key twice or has something other than a mapping. The message
            names the line.
    """
    text = _read_utf8(path)
    try:
        for key, first in _repeated_keys(YAML(typ="safe").compose(text)):
            raise UserError(
                f"{path}: line {_line(key)}: the key '{key.value}' is there twice, first in line {_line(first)}: "
                "keep one of them"
            )
        loaded = YAML(typ="safe").load(text)
    except (YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {_explain_yaml(text, error)}") from None
    if loaded is None:
        raise UserError(f"{path}: the file is empty; expected a mapping of settings")
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
    return loaded


def _read_utf8(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")  # editors on Windows start a file with a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: the byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None


def _repeated_keys(root: Node | None) -> Iterator[tuple[ScalarNode, ScalarNode]]:
    """Yield each key that a mapping has twice, with its first place. ruamel.yaml misses those next to a merge key."""
    todo, seen = [root], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            todo += node.value
        elif isinstance(node, MappingNode):
            first: dict[str, ScalarNode] = {}
            for key, value in node.value:
                todo.append(value)
                if isinstance(key, ScalarNode):
                    if key.value in first:
                        yield key, first[key.value]
                    first.setdefault(key.value, key)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _explain_yaml(text: str, error: Exception) -> str:
    """Return the line and the reason for which a text is no YAML."""
    if conflict := re.search(r"^(<{7} |={7}\r?$|>{7} )", text, flags=re.MULTILINE):
        line = text.count("\n", 0, conflict.start()) + 1
        return f"line {line}: a conflict mark of git: settle the conflict, and remove the mark"
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: not a YAML file: a control character"
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"not a YAML file: {error}"
    mark = error.problem_mark
    rest = text.split("\n")[mark.line][mark.column :] if mark.line < text.count("\n") + 1 else ""
    if error.problem == "found undefined alias":
        name = re.split(r"[\s,\]}]", rest.removeprefix("*"))[0]
        reason = f"'*{name}' refers to an anchor '&{name}', which nothing above it has"
    elif error.problem == "but found another document":
        reason = "a second document starts here; the settings are one"
    elif rest.startswith("\t"):
        reason = "a tab; YAML indents with spaces"
    else:
        reason = f"not a YAML file: {', '.join(filter(None, (error.context, error.problem)))}"
    return f"line {mark.line + 1}: {reason}"


def explain_all(where: object, error: ValidationError, model: type[BaseModel]) -> str:
    """Return a message of one line for each problem that pydantic found; see `explain`."""
    return "\n".join(dict.fromkeys(explain(where, problem, model) for problem in error.errors()))


def explain(where: object, problem: Any, model: type[BaseModel]) -> str:
    """Return a message of one line for a problem that pydantic found.

    Args:
        where: the file, for the start of the message.
        problem: an entry of `ValidationError.errors()`.
        model: the model that was validated, for the known keys.
    """
    # members of a union, such as `interval.literal['epoch']` or a tag `member-...`, are no keys
    key = ".".join(str(part) for part in problem["loc"] if not re.match(r"literal\[|constrained-|member-", str(part)))
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
