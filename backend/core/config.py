"""Settings of long work: a pydantic model, a YAML file, and `key=value` words on top.

An unknown key is refused with the closest match. A wrong value is refused in one line: key, reason, value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import BadInput, UnknownName
from .parsing import parse_json, parse_yaml


class Config(BaseModel):
    """Base of all configs: immutable, no unknown keys.

    The docstring below a field is its description. A field that a subclass declares again, with another
    default or type, keeps the description of its base unless it has its own.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        for name, field in cls.model_fields.items():
            if field.description is None:
                field.description = next(
                    (
                        base.model_fields[name].description
                        for base in cls.__mro__[1:]
                        if issubclass(base, Config) and name in base.model_fields
                    ),
                    None,
                )


C = TypeVar("C", bound=BaseModel)


def load_config(model: type[C], path: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Settings from the YAML file `path` (None: the defaults), changed by `overrides`.

    An override is "key=value"; dots separate nested keys. Raises BadInput or UnknownName.
    """
    values = _read_yaml(path) if path is not None else {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"expected key=value, got {word!r}")
        _put(values, key.strip().split("."), _parse(text, word), word)
    return parse_config(model, values, str(path) if path is not None else "settings")


def parse_config(model: type[C], values: dict[str, Any], where: str) -> C:
    """`values` as a `model`. `where` is named in errors. Raises BadInput or UnknownName."""
    _refuse_unknown(model, values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{where}: {validation_message(error)}") from error


def parse_line(model: type[C], text: str, where: str) -> C:
    """A line of JSON as a `model`. `where`, its file and line number, is named in errors. Raises BadInput."""
    try:
        return model.model_validate(parse_json(text))
    except ValidationError as error:
        raise BadInput(f"{where}: {validation_message(error)}") from error
    except ValueError as error:
        raise BadInput(f"{where}: not JSON ({error})") from error


def save_config(config: BaseModel) -> str:
    """YAML text from which `load_config` reads an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def validation_message(error: ValidationError) -> str:
    """The first problem of a pydantic error, "key: reason, got value", and the number of others."""
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    key = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if key:  # else it is about several settings together, which the reason names
        got = "" if first["type"] == "missing" else f", got {_short(first['input'])}"
        reason = f"{key}: {reason}{got}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{reason}{more}".replace("\n", " ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text") from error
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected key: value lines, got {_short(values)}")
    return values


def _parse(text: str, word: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise BadInput(f"cannot read the value in {word!r}: {error}") from error


def _put(values: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise BadInput(f"{word!r}: {key!r} is a value, not a group of settings")
    values[keys[-1]] = value


def _refuse_unknown(model: type[BaseModel], values: dict[str, Any], where: str) -> None:
    fields = model.model_fields
    for key, value in values.items():
        if key not in fields:
            raise UnknownName(f"setting in {where}:", str(key), fields)
        inner = fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, dict):
            _refuse_unknown(inner, value, f"{where}: {key}")
