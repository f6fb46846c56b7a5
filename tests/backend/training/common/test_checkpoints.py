"""Checkpoints: only what was being written is removed, and what is damaged is never learned from."""

import errno
import os
import shutil

import pytest
import torch

from reprise.backend.core.errors import CheckpointError, TrainingFailed
from reprise.backend.storage.checksums import CHECKSUMS
from reprise.backend.training.common import checkpoints
from reprise.backend.training.common.checkpoints import (
    all_checkpoints,
    goes_on_from,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from reprise.backend.training.common.run_folder import full_disk_is_told


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


@pytest.fixture
def optimizer(model):
    made = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    made.step()
    return made


@pytest.fixture
def save(model, optimizer, tmp_path):
    names = [name for name, _ in model.named_parameters()]

    def saved(*steps):
        for step in steps:
            weights = {"weights": dict(model.named_parameters())}
            save_checkpoint(tmp_path, step, weights, optimizer, names, {"position": step})
        return tmp_path / "checkpoints"

    return saved


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_saved_is_loaded(save, model, optimizer):
    newest = newest_checkpoint(save(1, 2, 3))
    assert newest.name == "checkpoint-3" and [path.name for path in all_checkpoints(newest.parent)] == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    before = {name: one.clone() for name, one in model.state_dict().items()}
    moments = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
    fresh = torch.optim.AdamW(model.parameters())
    weights = {"weights": dict(model.named_parameters())}
    state = load_checkpoint(newest, weights, fresh, list(weights["weights"]), "cpu")
    assert state == {"global_step": 3, "position": 3}
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], moments)
    with pytest.raises(CheckpointError, match="checkpoint-3 does not fit this run .*; delete the folder"):
        load_checkpoint(newest, {"weights": {"other": torch.ones(1)}}, fresh, ["other"], "cpu")


@pytest.mark.parametrize("failing", ["listdir", "open", "scandir"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_read_error_deletes_nothing(failing, code, save, monkeypatch):
    folder = save(1, 2)
    before = tree(folder)

    def broken(path, *rest, **options):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        if failing == "open":
            patch.setattr(checkpoints, "check_folder", broken)
        else:
            patch.setattr(os, failing, broken)
        with pytest.raises(CheckpointError, match=f"cannot read .*checkpoint.*{os.strerror(code)}"):
            newest_checkpoint(folder)
    assert tree(folder) == before and newest_checkpoint(folder).name == "checkpoint-2"


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "optimizer.safetensors", "weights.safetensors", CHECKSUMS]
)
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_is_named_and_left(name, how, save):
    folder = save(1, 2)
    path = folder / "checkpoint-2" / name
    data = bytearray(path.read_bytes())
    if how == "flipped":
        middle = len(data) // 2
        data[middle : middle + 64] = bytes(one ^ 0xFF for one in data[middle : middle + 64])
    path.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "empty": b"", "gone": b""}[how])
    if how == "gone":
        path.unlink()
    before = tree(folder)
    if name == CHECKSUMS and how in ("empty", "gone"):  # as a kill between the last two files leaves it
        assert newest_checkpoint(folder).name == "checkpoint-2"
        return
    with pytest.raises(CheckpointError, match="delete the folder .*checkpoint-2") as caught:
        newest_checkpoint(folder)
    assert name in str(caught.value) or name == CHECKSUMS
    assert tree(folder) == before
    shutil.rmtree(folder / "checkpoint-2")
    assert newest_checkpoint(folder).name == "checkpoint-1"


def test_one_without_checksums_is_read_as_far_as_can_be_told(save):
    folder = save(1, 2)
    for path in folder.rglob(CHECKSUMS):
        path.unlink()
    assert newest_checkpoint(folder).name == "checkpoint-2"
    weights = folder / "checkpoint-2" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="weights.safetensors is damaged .*; delete the folder"):
        newest_checkpoint(folder)


def test_what_was_being_written_is_removed_and_told(save):
    folder, said = save(1, 2), []
    half = folder / "checkpoint-3"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert newest_checkpoint(folder, said.append).name == "checkpoint-2" and not half.exists()
    assert said == ["removed checkpoint-3, which was being written when the run was stopped"]


def test_a_copy_of_the_users_is_no_checkpoint_and_stays(save):
    folder = save(1, 2)
    for name in ("checkpoint-9-good", "checkpoint-best", "checkpoint-"):
        shutil.copytree(folder / "checkpoint-1", folder / name)
    (folder / "checkpoint-8").write_text("a file")
    assert newest_checkpoint(folder).name == "checkpoint-2"
    save(3, 4, 5)
    kept = {
        "checkpoint-9-good",
        "checkpoint-best",
        "checkpoint-",
        "checkpoint-8",
        "checkpoint-4",
        "checkpoint-5",
    }
    assert {path.name for path in folder.iterdir()} == kept


def test_a_full_disk_is_one_line_and_leaves_the_last_one_good(save, tmp_path, monkeypatch):
    import safetensors.torch

    folder = save(1, 2)
    before, write = tree(folder), safetensors.torch.save_file

    def no_room(tensors, path):
        if path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598")
        write(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", no_room)
    with pytest.raises(TrainingFailed) as caught, full_disk_is_told(tmp_path, True):
        save(3)
    said = str(caught.value)
    assert said.startswith(f"no space left to write {folder / 'checkpoint-3'}: ") and "enforce" not in said
    assert "MB are free, it takes 1 MB or more; make room" in said
    assert said.endswith(f"and --resume {tmp_path} goes on from step 2")
    assert tree(folder) == before


def test_an_existing_folder_is_not_overwritten(save):
    folder = save(1, 2)
    before = tree(folder)
    with pytest.raises(TrainingFailed, match="checkpoint-2 exists already and is not overwritten; move it"):
        save(2)
    assert tree(folder) == before


def test_where_a_run_goes_on(save, tmp_path):
    assert goes_on_from(tmp_path) == "from the start"
    save(7)
    assert goes_on_from(tmp_path) == "from step 7"
    for number in (9, 10):
        (tmp_path / "rounds" / str(number)).mkdir(parents=True)
    assert goes_on_from(tmp_path) == "from round 10"
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "rounds" / "10" / "checkpoints")
    assert goes_on_from(tmp_path) == "from step 7 of round 10"
