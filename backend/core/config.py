"""Settings of long work: a pydantic model, a YAML file, and `key=value` words on top.

A key that the model does not have is refused with the near match; a value that does not fit is
refused in one line that names the key, the reason and what came.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import BadInput, UnknownName


class Config(BaseModel):
    """Base of all configs: immutable, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


C = TypeVar("C", bound=BaseModel)


def load_config(model: type[C], path: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """The settings in `path` (YAML; none: the defaults) with `overrides` ("key=value", nested keys
    with dots) on top. Raises BadInput or UnknownName."""
    values = _read_yaml(path) if path is not None else {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"expected key=value, got {word!r}")
        _put(values, key.strip().split("."), _parse(text, word), word)
    return parse_config(model, values, str(path) if path is not None else "settings")


def parse_config(model: type[C], values: dict[str, Any], where: str) -> C:
    """`values` as `model`; `where` is named in the error."""
    _refuse_unknown(model, values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{where}: {validation_message(error)}") from error


def parse_line(model: type[C], text: str, where: str) -> C:
    """A line of JSON as `model`; `where`, its file and number, is named in the error. Raises BadInput."""
    try:
        return model.model_validate(json.loads(text))
    except ValidationError as error:
        raise BadInput(f"{where}: {validation_message(error)}") from error
    except ValueError as error:
        raise BadInput(f"{where}: no JSON ({error})") from error


def save_config(config: BaseModel) -> str:
    """The YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def validation_message(error: ValidationError) -> str:
    """The first fault of a pydantic error, "key: reason, got value", and how many more there are."""
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    key = ".".join(str(part) for part in first["loc"]) or "value"
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    got = "" if first["type"] == "missing" else f", got {_short(first['input'])}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{key}: {reason}{got}{more}".replace("\n", " ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "no YAML"
        raise BadInput(f"{path}{line}: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected key: value lines, got {_short(values)}")
    return values


def _parse(text: str, word: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"cannot read the value in {word!r}") from error


def _put(values: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise BadInput(f"{word!r}: {key!r} holds no settings of its own")
    values[keys[-1]] = value


def _refuse_unknown(model: type[BaseModel], values: dict[str, Any], where: str) -> None:
    fields = model.model_fields
    for key, value in values.items():
        if key not in fields:
            raise UnknownName(f"setting in {where}:", str(key), fields)
        inner = fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, dict):
            _refuse_unknown(inner, value, f"{where}: {key}")
