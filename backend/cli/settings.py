"""The settings of a pydantic model as a table: name, type in words, default, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel

WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
}
BOUNDS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


@dataclass(frozen=True)
class Setting:
    """One setting. `name` has dots where settings are nested, as on the command line; `default` is as JSON
    has it, None for a `required` one too."""

    name: str
    type: str
    default: Any
    required: bool
    description: str

    @property
    def default_text(self) -> str:
        """The default as a YAML file would say it."""
        if self.required:
            return "required"
        if self.type.startswith("settings") and self.default is not None:
            return "as below"
        if isinstance(self.default, Mapping):
            return yaml.safe_dump(self.default, default_flow_style=True, width=10**6, sort_keys=False).strip()
        return json.dumps(self.default) if not isinstance(self.default, str) else self.default or '""'


def settings_of(model: type[BaseModel]) -> list[Setting]:
    """The settings of `model`: required ones, its own, its bases'; nested ones follow their holder."""
    return list(_settings_of(model, "", None))


def show(model: type[BaseModel], what: str, as_json: bool) -> None:
    """Print the settings of `what`, a command."""
    from . import terminal

    found = settings_of(model)
    if as_json:
        terminal.print_json({"name": what, "settings": [asdict(one) for one in found]})
        return
    rows = [(one.name, one.type, one.default_text, one.description) for one in found]
    terminal.print_table(f"settings of {what}", ("setting", "type", "default", "meaning"), rows)


def _settings_of(model: type[BaseModel], prefix: str, values: BaseModel | None) -> Iterator[Setting]:
    """`values`: an instance whose values are the defaults in place of the model's own."""
    model.model_rebuild()  # names that its module imports for its annotations alone
    own, fields = model.__annotations__, model.model_fields
    for name in sorted(fields, key=lambda name: (not fields[name].is_required(), name not in own)):
        field = fields[name]
        value = getattr(values, name) if values is not None else field.get_default(call_default_factory=True)
        required = values is None and field.is_required()
        nested = next((one for one in _parts(field.annotation) if _is_model(one)), None)
        yield Setting(
            prefix + name,
            type_in_words(field.annotation, field.metadata),
            None if required else {} if isinstance(value, BaseModel) else _as_json(value),
            required,
            " ".join((field.description or "").split()),
        )
        if nested is not None:
            yield from _settings_of(
                nested, f"{prefix}{name}.", value if isinstance(value, BaseModel) else None
            )


def type_in_words(annotation: Any, metadata: Any = ()) -> str:
    """`int | None` with a bound of 64 -> "whole number, at least 64; or null"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(parts[0], (*parts[1:], *metadata))
    if origin in (Union, UnionType):
        texts = [type_in_words(one, () if one is NoneType else metadata) for one in parts]
        return ("; or " if any("," in text for text in texts) else " or ").join(texts)
    if origin is Literal:
        *most, last = map(str, parts)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is list:
        text = f"list of {type_in_words(parts[0])}"
    elif origin is dict:
        text = f"mapping of {type_in_words(parts[0])} to {type_in_words(parts[1])}"
    elif _is_model(annotation):
        text = "settings"
    else:
        text = WORDS[annotation]
    bounds = [
        f"{words} {getattr(one, key)}"
        for one in metadata
        for kind, (words, key) in BOUNDS.items()
        if isinstance(one, kind)
    ]
    bounds += [f"at least {one.min_length}" for one in metadata if isinstance(one, MinLen)]
    return f"{text}, {' and '.join(bounds)}" if bounds else text


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _as_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
