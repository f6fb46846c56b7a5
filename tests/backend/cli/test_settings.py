"""Settings as a table: names, types in words, defaults, descriptions; docs/settings.md is made of them."""

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Lt
from pydantic import Field, PositiveFloat, PositiveInt

from reprise.backend.cli import settings_page
from reprise.backend.cli.settings import settings_of, type_in_words
from reprise.backend.cli.train import SUMMARIES
from reprise.backend.core.config import Config, load_config
from reprise.backend.factory import TRAINERS, find_trainer
from reprise.backend.training import shipped_config, shipped_configs


class Inner(Config):
    """Settings inside others."""

    size: PositiveInt
    """How large."""
    kind: Literal["a", "b", "c"] = "a"
    """Which one."""


class Outer(Config):
    """Settings with others inside."""

    where: Path | None = None
    """A place,
    or none."""
    weights: dict[str, PositiveFloat] = {"x": 0.5}
    """Name -> weight."""
    inner: Inner = Inner(size=3, kind="b")
    """What is inside."""
    perhaps: Inner | None = None
    """What may be."""


def test_nested_settings_have_dots_and_the_outer_defaults():
    rows = [(one.name, one.type, one.default_text, one.description) for one in settings_of(Outer)]
    assert rows == [
        ("where", "path or null", "null", "A place, or none."),
        ("weights", "mapping of text to number, above 0", "{x: 0.5}", "Name -> weight."),
        ("inner", "settings", "as below", "What is inside."),
        ("inner.size", "whole number, above 0", "3", "How large."),
        ("inner.kind", "a, b or c", "b", "Which one."),
        ("perhaps", "settings or null", "null", "What may be."),
        ("perhaps.size", "whole number, above 0", "required", "How large."),
        ("perhaps.kind", "a, b or c", "a", "Which one."),
    ]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true or false"),
        (int | None, "whole number or null"),
        (PositiveInt | None, "whole number, above 0; or null"),
        (Annotated[float, Ge(0), Lt(1)], "number, at least 0 and below 1"),
        (str | list[str], "text or list of text"),
        (Literal["auto", "cpu"] | None, "auto or cpu or null"),
        (Annotated[list[str], Field(min_length=1)], "list of text, at least 1"),
    ],
)
def test_types_in_words(annotation, words):
    class Holder(Config):
        value: annotation

    field = Holder.model_fields["value"]
    assert type_in_words(field.annotation, field.metadata) == words


def test_every_trainer_has_a_summary_and_settings():
    assert list(SUMMARIES) == list(TRAINERS)
    assert all(len(settings_of(find_trainer(name).config)) > 15 for name in TRAINERS)


def test_required_settings_come_first_and_then_a_trainers_own():
    class Shared(Config):
        seed: int = 0
        """Random numbers."""

    class Method(Shared):
        beta: float = 0.1
        """How strong."""
        model: str
        """What learns."""

    assert [one.name for one in settings_of(Method)] == ["model", "beta", "seed"]


@pytest.mark.parametrize("name", TRAINERS)
def test_shipped_configs_are_found_by_their_names(name):
    names = shipped_configs(name)
    assert "shapeworld" in names
    for one in names:
        load_config(find_trainer(name).config, shipped_config(name, one))


def test_the_page_is_up_to_date():
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page(), "run `make settings`"


def test_the_command_prints_them(reprise):
    found = json.loads(reprise("train", "grpo", "--settings", "--json").out)
    assert found["name"] == "train grpo"
    (beta,) = [one for one in found["settings"] if one["name"] == "beta"]
    assert (beta["type"], beta["default"], beta["required"]) == ("number, at least 0", 0.001, False)
    table = reprise("train", "grpo", "--settings")
    assert table.code == 0 and "renderer.steps" in table.out and "epsilon_low" in table.out


def test_the_help_of_a_trainer_names_its_configs(reprise):
    shown = " ".join(reprise("train", "prip-encoder", "--help").out.split())
    assert "Configs that come with Reprise: paper, shapeworld, tinyllama." in shown
