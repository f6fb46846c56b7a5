"""The folder of a run: who may write into it, where a stopped run goes on, what comes out.

`config.yaml`, `metrics.jsonl`, `checkpoints/` and `final/` are every trainer's; each adds its own.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from ...core.config import Config, save_config
from ...core.errors import FEW, BadInput, CheckpointError, TrainingFailed, first_line
from ...rewriters.reprompt import SETTINGS
from ...storage.files import apply_umask, write_whole
from . import distributed

# A resumed run may change these settings, because nothing that is learned depends on them. A round does not
# depend on how many rounds follow, so that a finished run takes more of them.
ROUND_COUNT = "rounds.count"
CHANGEABLE = (
    "save_every",
    "log_every",
    "gradient_checkpointing",
    "offload",
    "keep_gb",
    "rounds.offload",
    "rounds.keep_gb",
    ROUND_COUNT,
)
STARTED_CONFIG = Path("checkpoints") / "config.yaml"  # of a run that has begun
RECORDS = ("metrics.jsonl", "evaluations.jsonl", "rollouts/rollouts.jsonl")  # a line has its "step"


class TrainingLoop(Protocol):
    def run(self) -> Path: ...


def run_training(
    config: Config, run: Path, resume: bool, log: Callable[[str], None], begin: Callable[[], TrainingLoop]
) -> Path:
    """Claim the folder `run` for the config, make a loop with `begin`, run it, and return `run`/final.

    With `resume` a run goes on from its newest whole checkpoint, and ends in the same weights as if it had
    never stopped, bit for bit on a CPU. A finished run is returned as it is, unless its config has another
    number of rounds. A run that cannot begin changes nothing.

    Raises BadInput where the folder holds another run, where nothing can be learned from the data, or where
    other data or settings than at the start came with `resume`; CheckpointError for models and checkpoints
    that cannot be loaded; TrainingFailed for a loss that is NaN or infinite, and where the disk is full.
    Methods that draw also raise RewardFailed and RenderFailed.
    """
    text, final = save_config(config), run / "final"
    other_rounds = ROUND_COUNT in distributed.run_on_main(lambda: claim_run_folder(run, text, resume))
    if resume and final.is_dir() and not other_rounds:
        log(f"{run} is finished already")
        return final
    from ...core.model_files import quiet_loading

    with quiet_loading():
        with undo_failed_start(run, text, resume):
            loop = begin()
            if other_rounds:
                shutil.rmtree(final, ignore_errors=True)  # a copy of a round's; there will be a later one
        return loop.run()


def claim_run_folder(run: Path, text: str, resume: bool) -> list[str]:
    """Make a new run's folder, or check that a resumed run has the config `text`.

    The command line may have written `config.yaml` already; a run has begun when `checkpoints/` has one, too.
    Returns the settings that a resumed run changes; it may change those in `CHANGEABLE`, and
    `undo_failed_start` stores them. Raises BadInput.
    """
    started = run / STARTED_CONFIG
    if started.exists():
        if not resume:
            raise BadInput(f"{run} holds a run already; go on with --resume {run}, or choose another folder")
        if (before := started.read_text(encoding="utf-8")) == text:
            return []
        return _changes(run, started, before, text)
    if resume:
        raise BadInput(f"{run} holds no run to go on with: it has no checkpoints/config.yaml")
    try:
        started.parent.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(text, encoding="utf-8")
        started.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write the run folder {run}: {error.strerror}; choose another") from error
    return []


def _changes(run: Path, started: Path, text_before: str, text: str) -> list[str]:
    """The settings in which two configs differ. Raises BadInput where one is not in `CHANGEABLE`."""
    before, now = (dict(_leaves(yaml.safe_load(one))) for one in (text_before, text))
    nothing = object()
    changed = [key for key in {**before, **now} if before.get(key, nothing) != now.get(key, nothing)]
    if other := [key for key in changed if key not in CHANGEABLE]:
        named = ", ".join(other[:FEW]) + (", …" if len(other) > FEW else "")
        changeable = ", ".join(key for key in CHANGEABLE if key in before)
        raise BadInput(
            f"{run} was begun with other settings of {named}, see {started}; it goes on with those, "
            f"only {changeable} may change"
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
    """A context for the start of a run. Where it fails, a new run's folder is removed, and a resumed run's is
    as it was. Where it succeeds, a resumed run's files have the config `text`."""
    try:
        yield
    except BaseException:
        if not resume and distributed.is_main():
            for path in (run / STARTED_CONFIG, run / "config.yaml"):
                path.unlink(missing_ok=True)
            for folder in (run / "checkpoints", run):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise
    if resume and distributed.is_main():
        for path in (run / "config.yaml", run / STARTED_CONFIG):
            if path.is_file() and path.read_text(encoding="utf-8") != text:
                write_whole(path, text)


def resume_point(run: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None: from the start. Lines of later steps are cut from the records.

    Raises CheckpointError.
    """
    checkpoint = newest_checkpoint(run / "checkpoints") if resume else None
    for name in RECORDS:
        # From the start, the evaluation before the first step is made again, too.
        drop_later_lines(run / name, step_of(checkpoint) if checkpoint else -1)
    return checkpoint


def started_from(checkpoint: Path | None) -> str:
    """Where a run goes on, for the log."""
    return f"going on from {checkpoint.name}" if checkpoint else "from the start"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. The trainer's state is its last file.

    One that was being written when the run was killed is removed. Raises CheckpointError for one that
    was whole and is damaged.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
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
    """Add lines to a file of JSON lines. Raises TrainingFailed where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise TrainingFailed(
            f"{path} cannot be written: {error.strerror or error}; make room, and go on with --resume"
        ) from error


def drop_later_lines(path: Path, done: int) -> None:
    """Cut the lines of steps after `done` from a file of JSON lines; these steps will be taken again.

    A last line without an end was being written when the run was killed; it is cut, too.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        write_whole(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= done))


def save_error(path: Path, run: Path, error: Exception) -> TrainingFailed:
    return TrainingFailed(
        f"{path} cannot be written: {first_line(error)}; make room, and go on with --resume {run}"
    )


def export_rewriter(folder: Path, model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    """Write a rewriter's folder. Raises TrainingFailed."""
    with write_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        (part / SETTINGS).write_text(text, encoding="utf-8")


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into. At the end it takes the place of `folder`, which is so always whole.

    Raises TrainingFailed for whatever goes wrong meanwhile; the run is the folder above.
    """
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                apply_umask(file)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # safetensors and the file system raise their own kinds
        raise save_error(folder, folder.parent, error) from error
