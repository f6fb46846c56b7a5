"""Checkpoints of a run: written whole, checked before they are loaded, never deleted while they are needed.

`checkpoints/checkpoint-STEP` holds what a stopped run goes on with. Its last files are `trainer_state.json`
and then its checksums: a folder with neither was being written when the run was killed. That folder alone is
removed; one that is damaged or cannot be read is named and left as it is.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError, TrainingFailed, first_line
from ...storage.checksums import CHECKSUMS, check_folder, write_checksums
from ...storage.files import free_megabytes, is_disk_full

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

CHECKPOINTS = 2  # how many are on disk
STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path | None) -> int:
    """The optimiser steps that a checkpoint has behind it; 0 for none."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `checkpoints/`, the oldest first. A copy that a user has made beside them, such as
    checkpoint-50-good, is none of them. Raises OSError where the folder cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(one) for one in entries if _NAME.fullmatch(one.name) and one.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(found, key=step_of)


def newest_checkpoint(folder: Path, log: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest whole checkpoint, whose files are as they were written; None where there is none yet.

    One that was being written when the run was killed is removed, and `log` is told. Raises CheckpointError
    for one that is damaged, and where anything cannot be read.
    """
    try:
        for path in reversed(all_checkpoints(folder)):
            names = set(os.listdir(path))
            if names & {STATE, CHECKSUMS}:
                _check(path, CHECKSUMS in names)
                return path
            shutil.rmtree(path)
            log(f"removed {path.name}, which was being written when the run was stopped")
    except OSError as error:
        where = error.filename or folder
        raise CheckpointError(
            f"cannot read {where}: {error.strerror}; nothing was changed; --resume once it can be read"
        ) from error
    return None


def _check(checkpoint: Path, has_checksums: bool) -> None:
    """Raises CheckpointError, and OSError. One that was stopped just before its checksums has none."""
    remedy = f"delete the folder {checkpoint} to go on from the checkpoint before it"
    check_folder(checkpoint, remedy)
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint / STATE} is damaged ({first_line(error)}); {remedy}") from error
    if has_checksums:
        return
    from safetensors import SafetensorError, safe_open

    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
                raise SafetensorError("cut off")
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({first_line(error)}); {remedy}") from error


def finish_checkpoint(checkpoint: Path) -> None:
    """Give a checkpoint whose files are all there its checksums, then delete all but the newest two."""
    write_checksums(checkpoint)
    for path in all_checkpoints(checkpoint.parent)[:-CHECKPOINTS]:
        shutil.rmtree(path)


def save_checkpoint(
    run: Path,
    step: int,
    files: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
    names: Sequence[str],
    state: Mapping[str, Any],
) -> None:
    """Write `checkpoints/checkpoint-STEP`, and delete all but the newest two.

    It holds a safetensors file for each of `files`, AdamW's moments by the `names` of its weights in order,
    and `state` as JSON. Raises CannotWrite; nothing half-written is left then.
    """
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"checkpoint-{step}"
    stored = optimizer.state_dict()["state"]
    moments = {
        f"{name}.{key}": value for i, name in enumerate(names) for key, value in stored.get(i, {}).items()
    }
    with new_checkpoint(folder):
        folder.mkdir(parents=True)
        for name, tensors in files.items():
            whole = {key: one.detach().contiguous() for key, one in tensors.items()}
            save_file(whole, folder / f"{name}.safetensors")
        save_file(moments, folder / "optimizer.safetensors")
        (folder / STATE).write_text(json.dumps({"global_step": step, **state}))
        finish_checkpoint(folder)


def load_checkpoint(
    checkpoint: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
    names: Sequence[str],
    device: str,
) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote into the tensors of `files` and the optimiser; returns the state.

    Raises CheckpointError where it holds other tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with torch.no_grad():
            for name, tensors in files.items():
                stored = load_file(checkpoint / f"{name}.safetensors", device=device)
                for key, one in tensors.items():
                    one.copy_(stored[key])
        moments = load_file(checkpoint / "optimizer.safetensors", device=device)
        whole = optimizer.state_dict()
        whole["state"] = {
            i: {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for i, name in enumerate(names)
            if f"{name}.step" in moments
        }
        optimizer.load_state_dict(whole)
        return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} does not fit this run ({type(error).__name__}: {first_line(error)}); delete the "
            "folder to go on from the checkpoint before it"
        ) from error


@contextmanager
def new_checkpoint(folder: Path, alone: bool = True) -> Iterator[None]:
    """A context in which the checkpoint `folder` is written. Where that fails, what was written of it is
    removed, and CannotWrite is raised. Unless this process is `alone`, others may have begun to write it."""
    if alone and folder.exists():
        raise CannotWrite(f"{folder} exists already and is not overwritten; move it")
    try:
        yield
    except Exception as error:  # safetensors, torch and the file system raise their own kinds
        failure = write_error(
            folder, error, needed=max(map(_bytes, all_checkpoints(folder.parent)), default=0)
        )
        shutil.rmtree(folder, ignore_errors=True)
        raise failure from error


class CannotWrite(TrainingFailed):
    """A file of a run cannot be written. `run_training` adds how the run goes on."""


def write_error(path: Path, error: BaseException, needed: int = 0) -> CannotWrite:
    """The error where `path` cannot be written. `needed` bytes are what it takes, as far as it is known."""
    if not is_disk_full(error):
        return CannotWrite(f"{path} cannot be written: {first_line(error)}; make room")
    takes = f", it takes {math.ceil(needed / 10**6)} MB or more" if needed else ""
    return CannotWrite(f"no space left to write {path}: {free_megabytes(path)} MB are free{takes}; make room")


def goes_on_from(run: Path) -> str:
    """Where a run goes on after it was stopped: "from step 50"."""
    rounds = [one for one in run.glob("rounds/*") if one.name.isdecimal()]
    last = max(rounds, key=lambda one: int(one.name), default=None)
    with suppress(OSError):
        whole = [one for one in all_checkpoints((last or run) / "checkpoints") if (one / STATE).is_file()]
        if whole:
            return f"from step {step_of(whole[-1])}" + (f" of round {last.name}" if last else "")
    return f"from round {last.name}" if last else "from the start"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
