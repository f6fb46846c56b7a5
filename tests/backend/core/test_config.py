"""Configs from YAML and key=value words; bad values are refused in one line."""

import pytest
from pydantic import Field

from reprise.backend.core.config import Config, load_config, save_config
from reprise.backend.core.errors import BadInput, UnknownName


class Optimizer(Config):
    learning_rate: float = Field(1e-4, gt=0)
    name: str = "adamw"


class Example(Config):
    steps: int = Field(100, ge=1)
    prompts: str | None = None
    optimizer: Optimizer = Optimizer()


def write(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = write(tmp_path, "steps: 5\noptimizer:\n  learning_rate: 2e-3\n")
    config = load_config(Example, path, ["steps=7", "optimizer.name=sgd"])
    assert (config.steps, config.optimizer.learning_rate, config.optimizer.name) == (7, 2e-3, "sgd")
    assert load_config(Example) == Example()
    assert load_config(Example, write(tmp_path, "")) == Example()


def test_a_saved_config_reads_back_equal(tmp_path):
    config = load_config(Example, None, ["optimizer.learning_rate=1e-5", "prompts=ä b"])
    assert load_config(Example, write(tmp_path, save_config(config))) == config


@pytest.mark.parametrize(
    "text,words,expected",
    [
        ("stesp: 5", [], "did you mean 'steps'"),
        ("optimizer: {learning_rat: 1}", [], "did you mean 'learning_rate'"),
        ("", ["stepz=1"], "did you mean 'steps'"),
        ("steps: 0", [], "steps: input should be greater than or equal to 1, got 0"),
        ("", ["steps=many"], "steps: input should be a valid integer"),
        ("", ["steps"], "expected key=value, got 'steps'"),
        ("", ["=3"], "expected key=value"),
        ("", ["steps.x=3", "steps=1"], None),
        ("", ["steps=[1"], "cannot read the value in 'steps=[1'"),
        ("steps: 3", ["steps.inner=3"], "'steps' is a value, not a group of settings"),
        ("- a\n- b", [], "expected key: value lines"),
        ("a: [1\nb: 2", [], "line 2"),
        (b"\xff\xfe", [], "not UTF-8"),
    ],
)
def test_bad_configs_are_refused_in_one_line(tmp_path, text, words, expected):
    if expected is None:  # a later word replaces an earlier one
        assert load_config(Example, None, words).steps == 1
        return
    with pytest.raises(BadInput) as caught:
        load_config(Example, write(tmp_path, text), words)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_key_is_refused_with_the_closest_match():
    with pytest.raises(UnknownName) as caught:
        load_config(Example, None, ["optimizer.nam=x"])
    assert caught.value.near == "name"


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match="nowhere.yaml"):
        load_config(Example, tmp_path / "nowhere.yaml")
