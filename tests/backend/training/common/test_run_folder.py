"""Whose a run folder is, and what a stopped run goes on with."""

import pytest
import yaml

from reprise.backend.core.errors import BadInput, CheckpointError, TrainingFailed
from reprise.backend.storage.checksums import CHECKSUMS, check_folder
from reprise.backend.training.common.run_folder import (
    WRITTEN,
    claim_run_folder,
    resume_point,
    undo_failed_start,
    write_folder,
)

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


@pytest.mark.parametrize("name", WRITTEN)
def test_a_new_run_does_not_begin_among_files_of_others(name, tmp_path):
    (tmp_path / name / "mine").mkdir(parents=True)
    with pytest.raises(BadInput, match=f"holds {name} already, which a run would overwrite; choose another"):
        claim_run_folder(tmp_path, changed(), False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_that_was_killed_as_it_began_begins_again(tmp_path):
    (tmp_path / "config.yaml").write_text(changed())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".x.part").write_text("half")
    assert claim_run_folder(tmp_path, changed(), False) == []


def test_a_config_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    with pytest.raises(BadInput, match="holds config.yaml already"):
        claim_run_folder(tmp_path, changed(), False)
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"


def test_a_failed_start_leaves_nothing_but_what_was_there(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim_run_folder(tmp_path, changed(), False)
    with pytest.raises(BadInput, match="no data"), undo_failed_start(tmp_path, changed(), False):
        (tmp_path / "start").mkdir()
        (tmp_path / "start" / "model.safetensors").write_text("")
        raise BadInput("no data")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("end", [0, 10, 40])
def test_a_config_that_was_cut_off_is_named(end, run):
    started = run / "checkpoints" / "config.yaml"
    started.write_bytes(started.read_bytes()[:end])
    with pytest.raises(
        BadInput, match="checkpoints/config.yaml is damaged or cut off: .*; copy .*config.yaml there"
    ):
        claim_run_folder(run, changed(), True)


@pytest.mark.parametrize("data", [b"\xff\xfe\n", b"a: [\n", b"- 1\n", b"7\n"])
def test_a_config_of_something_else_is_named(data, run):
    (run / "checkpoints" / "config.yaml").write_bytes(data)
    with pytest.raises(BadInput, match="checkpoints/config.yaml is "):
        claim_run_folder(run, changed(), True)


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "rollouts/rollouts.jsonl"])
@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"{}", b"null", b"\x00\x00"])
def test_a_damaged_line_of_a_record_is_named_and_nothing_is_cut(line, name, run):
    record = run / name
    record.parent.mkdir(exist_ok=True)
    row = b'{"step": 1, "samples": []}\n'
    record.write_bytes(row + line + b"\n" + row)
    with pytest.raises(BadInput, match=f"{name}, line 2: .*; delete this line, and go on with --resume"):
        resume_point(run, True)
    assert record.read_bytes() == row + line + b"\n" + row
    record.write_bytes(row.replace(b"1", b"0") + row + b'{"step"')
    assert resume_point(run, True) is None
    assert record.read_bytes() == b"", "from the start, all steps are taken again"


def test_a_folder_is_replaced_whole_and_has_checksums(tmp_path):
    final = tmp_path / "final"
    for text in ("one", "two"):
        with write_folder(final) as part:
            (part / "weights").write_text(text)
    check_folder(final)
    assert {path.name for path in final.iterdir()} == {"weights", CHECKSUMS}
    (final / "notes").mkdir()
    (final / "notes" / "mine.txt").write_text("the user's own")
    (final / "README.md").write_text("my card")
    with write_folder(final) as part:
        (part / "weights").write_text("two")
    assert (final / "notes" / "mine.txt").exists() and (final / "README.md").read_text() == "my card"
    for error in (OSError(28, "No space left on device"), CheckpointError("the source is damaged")):
        with pytest.raises((TrainingFailed, CheckpointError)), write_folder(final) as part:
            (part / "weights").write_text("three")
            raise error
        assert (final / "weights").read_text() == "two"
    (tmp_path / "final.old").mkdir()
    with write_folder(final):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"final", "final.old"}, "the user's own copy stays"
