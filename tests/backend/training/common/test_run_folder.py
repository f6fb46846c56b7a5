"""Whose a run folder is, and what a stopped run goes on with."""

import pytest
import yaml

from reprise.backend.core.errors import BadInput
from reprise.backend.training.common.run_folder import claim_run_folder, undo_failed_start

BEGUN = {"beta": 5.0, "save_every": 50, "lora": {"r": 16}, "rounds": {"count": 3, "keep_gb": 20.0, "size": 8}}


def changed(**changes):
    return yaml.safe_dump({**BEGUN, **changes}, sort_keys=False)


@pytest.fixture
def run(tmp_path):
    claim_run_folder(tmp_path / "run", changed(), False)
    return tmp_path / "run"


def kept(run):
    return [(run / name).read_text() for name in ("config.yaml", "checkpoints/config.yaml")]


def test_settings_that_do_not_affect_learning_may_change(run):
    text, before = changed(save_every=5, rounds={"count": 5, "keep_gb": 90.0, "size": 8}), kept(run)
    assert claim_run_folder(run, text, True) == ["save_every", "rounds.count", "rounds.keep_gb"]
    with pytest.raises(BadInput, match="no data"), undo_failed_start(run, text, True):
        raise BadInput("no data")
    assert kept(run) == before, "it did not begin"
    with undo_failed_start(run, text, True):
        pass
    assert kept(run) == [text, text], "a later --resume alone goes on so, too"
    assert claim_run_folder(run, text, True) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"beta": 7.0}, "beta"),
        ({"beta": 7.0, "save_every": 5}, "beta"),
        ({"lora": {"r": 8}}, "lora.r"),
        ({"lora": None}, "lora.r, lora"),
        ({"rounds": {"count": 3, "keep_gb": 20.0, "size": 4}}, "rounds.size"),
        ({"more": 1}, "more"),
    ],
)
def test_other_changed_settings_are_refused_and_nothing_is_written(changes, named, run):
    before = kept(run)
    only = "only save_every, rounds.keep_gb, rounds.count may change"
    with pytest.raises(BadInput, match=f"begun with other settings of ({named}), .*{only}"):
        claim_run_folder(run, changed(**changes), True)
    assert kept(run) == before
    claim_run_folder(run, before[0], True)
