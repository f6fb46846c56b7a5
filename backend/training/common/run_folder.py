"""The run folder of a training: whose it is, where a stopped run goes on, the rewriter that comes out.

`config.yaml`, `metrics.jsonl`, `checkpoints/` and `final/` are every trainer's; each adds its own.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ...core.errors import FEW, BadInput, CheckpointError, TrainingFailed, first_line
from ...rewriters.reprompt import SETTINGS
from ...storage.files import apply_umask, write_whole
from . import distributed

# What a run may go on with in another way: nothing that it learned depends on it. A round knows nothing of
# how many follow, so that a finished run takes more of them.
ROUNDS_ASKED = "rounds.count"
FREE = (
    "save_every",
    "log_every",
    "gradient_checkpointing",
    "offload",
    "keep_gb",
    "rounds.offload",
    "rounds.keep_gb",
    ROUNDS_ASKED,
)
KEPT_CONFIG = Path("checkpoints") / "config.yaml"


def claim_run_folder(run: Path, text: str, resume: bool) -> list[str]:
    """Make the run folder ours, or make sure that what is in it is this run; `text` is its config.
    Which settings a resumed run goes on with in another way.

    The command line may have written `config.yaml`; a run has begun when `checkpoints/` holds one too. A
    resumed run takes changed settings of `FREE`, which `undo_failed_start` writes down; others are refused.
    """
    kept = run / KEPT_CONFIG
    if kept.exists():
        if not resume:
            raise BadInput(f"{run} holds a run already; go on with --resume {run}, or choose another folder")
        if (begun := kept.read_text(encoding="utf-8")) == text:
            return []
        return _changed_free(run, kept, begun, text)
    if resume:
        raise BadInput(f"{run} holds no run to go on with: it has no checkpoints/config.yaml")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(text, encoding="utf-8")
        kept.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write the run folder {run}: {error.strerror}; choose another") from error
    return []


def _changed_free(run: Path, kept: Path, begun: str, text: str) -> list[str]:
    """In what one config differs from the other. Raises BadInput where that is more than `FREE`."""
    before, now = (dict(_leaves(yaml.safe_load(one))) for one in (begun, text))
    nothing = object()
    changed = [key for key in {**before, **now} if before.get(key, nothing) != now.get(key, nothing)]
    if other := [key for key in changed if key not in FREE]:
        named = ", ".join(other[:FEW]) + (", …" if len(other) > FEW else "")
        free = ", ".join(key for key in FREE if key in before)
        raise BadInput(
            f"{run} was begun with other settings of {named}, see {kept}; it goes on with those, "
            f"only {free} may change"
        )
    return changed


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The single settings of a config, under their names with dots."""
    if not isinstance(values, dict) or not values:
        yield name, values
        return
    for key, value in values.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


@contextmanager
def undo_failed_start(run: Path, text: str, resume: bool) -> Iterator[None]:
    """What cannot even begin leaves nothing half-written: a new run gives its folder back, and a resumed one
    is as it was. Its files have the config `text` once it has begun."""
    try:
        yield
    except BaseException:
        if not resume and distributed.is_main():
            for path in (run / KEPT_CONFIG, run / "config.yaml"):
                path.unlink(missing_ok=True)
            for folder in (run / "checkpoints", run):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise
    if resume and distributed.is_main():
        for path in (run / "config.yaml", run / KEPT_CONFIG):
            if path.is_file() and path.read_text(encoding="utf-8") != text:
                write_whole(path, text)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint written to its end; the trainer's state is its last file.

    One that was being written when the run was killed is removed. Raises CheckpointError for one that
    was whole and is damaged.
    """
    found = sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        _check_whole(path)
        return path
    return None


def _check_whole(checkpoint: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
                raise OSError("cut off")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is damaged ({first_line(error)}); delete the folder {checkpoint} to go on from the "
                "checkpoint before it"
            ) from error


def step_of(checkpoint: Path | None) -> int:
    """The optimiser steps that a checkpoint has behind it; 0 for none."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file of JSON lines. Raises TrainingFailed where the disk does not take them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise TrainingFailed(
            f"{path} cannot be written: {error.strerror or error}; make room, and go on with --resume"
        ) from error


def drop_later_lines(path: Path, done: int) -> None:
    """Take from a file of JSON lines those of steps after `done`, which will be taken again.

    What stands behind the last line's end was being written when the run was killed.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        write_whole(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= done))


def export_rewriter(final: Path, model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    """Write a rewriter's folder."""
    with write_folder(final) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        (part / SETTINGS).write_text(text, encoding="utf-8")


@contextmanager
def write_folder(final: Path) -> Iterator[Path]:
    """A folder to write to, beside its place, which is put there at the end: it is whole, or not there."""
    part, old = final.with_name(final.name + ".part"), final.with_name(final.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    for file in part.rglob("*"):
        if file.is_file():
            apply_umask(file)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    part.rename(final)
    shutil.rmtree(old, ignore_errors=True)
