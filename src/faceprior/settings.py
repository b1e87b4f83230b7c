"""Options from YAML files and from NAME=VALUE texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from faceprior.errors import OptionError

Settings = TypeVar("Settings", bound=BaseModel)


def load_settings(kind: type[Settings], path: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Read options from a YAML file, if there is one, and lay flags that are not None over them.

    Raises:
        OptionError: the file cannot be read, or an option is unknown, of the wrong kind or out of its range.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise OptionError(f"{path}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise OptionError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
        if not isinstance(values, dict):
            raise OptionError(f"{path}: is not a list of `option: value` lines")
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return kind(**{**values, **given})
    except ValidationError as error:
        problems = "; ".join(explained(problem, sorted(kind.model_fields)) for problem in error.errors())
        raise OptionError(f"{path or 'flags'}: {problems}") from error


def read_assignment(text: str, what: str) -> tuple[str, Any]:
    """Split NAME=VALUE, the value read as YAML; raises OptionError, whose message begins with `what`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise OptionError(f"{what}: write NAME=VALUE")
    try:
        return name.strip().replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise OptionError(f"{what}: {value!r} is not a value") from error


def as_kind(kind: Any, value: Any, name: str) -> Any:
    """Return a value as one of a kind of option, of numbers also from the text that YAML makes of 3e-4.

    Raises:
        OptionError: it is of another kind.
    """
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=isinstance(value, bool))).validate_python(value)
    except ValidationError as error:
        raise OptionError(explained({**error.errors()[0], "loc": (name,)})) from error


_WANTED = {
    "bool": "it must be true or false",
    "int": "it must be a whole number",
    "float": "it must be a number",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than_equal": "it must be at most {le}",
    "literal": "choose {expected}",
}


def explained(problem: ErrorDetails, known: Sequence[str] = ()) -> str:
    """Say in our words what pydantic finds wrong with an option, its "loc", one of those that are known."""
    kind, name = problem["type"], ".".join(map(str, problem["loc"]))
    if kind == "extra_forbidden":
        return f"unknown option {name}; known are {', '.join(known)}"
    wanted = _WANTED.get(kind.removesuffix("_error"), _WANTED.get(kind.split("_")[0]))
    said = wanted.format(**problem.get("ctx", {})) if wanted else problem["msg"].removeprefix("Value error, ")
    return f"{name} is {problem['input']!r}; {said}" if name else said
