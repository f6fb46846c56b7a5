"""Checksums: what is altered, cut off, missing or unreadable is named before it is loaded."""

import errno
import shutil

import pytest
import torch

from reprise.backend.core.errors import CheckpointError
from reprise.backend.core.model_files import EMBEDDED_WEIGHTS
from reprise.backend.storage import checksums
from reprise.backend.storage.checksums import (
    CHECKSUMS,
    check_file,
    check_folder,
    check_tensors,
    load_tensors,
    save_tensors,
    write_checksums,
)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    (made / "decoder").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (made / "decoder" / "config.json").write_text('{"a": 1}')
    (made / "README.md").write_text("A card.")
    write_checksums(made)
    return made


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_folder_as_it_was_written_is_loaded(folder, tmp_path):
    check_folder(folder)
    check_folder(folder / "decoder")
    (folder / "README.md").write_text("My own words.")
    (folder / "notes.txt").write_text("of the user's")
    check_folder(shutil.copytree(folder, tmp_path / "copy"))


def test_one_flipped_bit_is_named(folder):
    flip(folder / "model.safetensors", 5000)
    expected = r"model.safetensors is damaged \(expected the checksum \w{12}… .*, got \w{12}…\); fetch it"
    with pytest.raises(CheckpointError, match=expected) as caught:
        check_folder(folder, "fetch it")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        check_file(folder / "model.safetensors")
    check_folder(folder / "decoder")


def test_a_part_is_checked_by_whoever_loads_it(folder):
    flip(folder / "decoder" / "config.json", 2)
    check_folder(folder, deep=False)
    for check, path in ((check_folder, "decoder"), (check_folder, "."), (check_file, "decoder/config.json")):
        with pytest.raises(CheckpointError, match="decoder/config.json is damaged"):
            check(folder / path)


def test_a_missing_file_is_named(folder):
    (folder / "decoder" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="decoder/config.json is missing; copy, download or train"):
        check_folder(folder)


def test_a_read_error_is_no_damage(folder, monkeypatch):
    def broken(path, durable=False):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checksums, "file_checksum", broken)
    with pytest.raises(CheckpointError, match=r"cannot read .*decoder/config.json: Input/output error"):
        check_folder(folder)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"0123  a\n", b"a letter\n"])
def test_damaged_checksums_are_refused(text, folder):
    (folder / CHECKSUMS).write_bytes(text)
    with pytest.raises(CheckpointError, match=CHECKSUMS):
        check_folder(folder)


def test_a_folder_without_checksums_is_loaded(folder):
    (folder / CHECKSUMS).unlink()
    flip(folder / "model.safetensors", 5000)
    check_folder(folder)
    check_folder(folder / "nothing")


def test_a_file_of_tensors_holds_its_own_checksum(tmp_path):
    path, tensors = (
        tmp_path / "a.safetensors",
        {"x": torch.arange(6.0), "y": torch.zeros(2, dtype=torch.half)},
    )
    save_tensors(path, tensors)
    whole = path.read_bytes()
    check_tensors(path, "delete it")
    for at in range(0, len(whole), 3):
        path.write_bytes(whole)
        flip(path, at)
        try:
            found = load_tensors(path, "delete it")
        except CheckpointError as error:
            assert str(path) in str(error) and str(error).endswith("delete it")
        else:  # the name of the checksum itself was hit
            assert {name: one.tolist() for name, one in found.items()} == {
                name: one.tolist() for name, one in tensors.items()
            }
    path.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match="is damaged"):
        check_tensors(path, "delete it")


def test_the_embedded_models_are_as_they_were_made():
    models = [path for path in EMBEDDED_WEIGHTS.iterdir() if path.is_dir()]
    assert models
    for model in models:
        check_folder(model)
        listed = {line.split("  ")[1] for line in (model / CHECKSUMS).read_text().splitlines()}
        there = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
        assert there - {"README.md", CHECKSUMS} == listed, model.name


def test_without_xxhash_files_are_loaded_unchecked_which_is_said_once(folder, tmp_path, monkeypatch, caplog):
    save_tensors(tmp_path / "own.safetensors", {"a": torch.ones(2)})
    checksums._can_check.cache_clear()
    monkeypatch.setattr(checksums, "find_spec", lambda name: None)
    try:
        flip(folder / "model.safetensors", 9)
        check_folder(folder)
        check_file(folder / "model.safetensors")
        assert load_tensors(tmp_path / "own.safetensors", "again")["a"].tolist() == [1, 1]
        assert [record.message for record in caplog.records] == [
            "Reprise loads its weights unchecked: xxhash is not installed; pip install xxhash"
        ]
    finally:
        checksums._can_check.cache_clear()
