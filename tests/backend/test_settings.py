"""Every setting says what it is, once."""

import ast
import inspect
import pkgutil
from importlib import import_module

import pytest

import reprise.backend
from reprise.backend.core.config import Config, load_config
from reprise.backend.core.registry import TRAINERS, resolve
from reprise.backend.training import shipped_config

NOT_IMPORTED = ("inside",)  # programs, which run when they are imported
OTHERS = ("RendererSettings", "TableRow")  # that a user writes, too; model files hold other configs


def configs():
    for module in pkgutil.walk_packages(reprise.backend.__path__, "reprise.backend."):
        if not set(module.name.split(".")) & set(NOT_IMPORTED):
            import_module(module.name)
    found = [Config]
    for one in found:
        found += [sub for sub in one.__subclasses__() if sub not in found]
    return [one for one in found[1:] if "training" in one.__module__ or one.__name__ in OTHERS]


@pytest.fixture(scope="module")
def all_configs():
    return configs()


def test_every_setting_has_a_description(all_configs):
    missing = [
        f"{config.__name__}.{name}"
        for config in all_configs
        for name, field in config.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert len(all_configs) > 20 and missing == []


def test_no_description_is_written_twice(all_configs):
    """A trainer that declares a setting again has the description of its base, or says something else."""
    places = {}
    for config in all_configs:
        body = ast.parse(inspect.getsource(config)).body[0].body
        for field, after in zip(body, body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = " ".join(str(ast.literal_eval(after.value)).split())
                places.setdefault((field.target.id, text), []).append(config.__name__)
    assert {key: names for key, names in places.items() if len(names) > 1} == {}


@pytest.mark.parametrize("name", TRAINERS)
def test_the_configs_that_come_with_a_trainer_are_valid(name):
    config = import_module(resolve("trainer", TRAINERS, name).__module__).CONFIG
    pattern = shipped_config(name, "*")
    found = [path for path in pattern.parent.glob(pattern.name) if load_config(config, path)]
    assert shipped_config(name, "shapeworld") in found and len(found) > 1
