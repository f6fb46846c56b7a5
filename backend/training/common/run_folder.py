"""The folder of a run: who may write into it, where a stopped run goes on, what comes out.

`config.yaml`, `metrics.jsonl`, `checkpoints/` and `final/` are every trainer's; each adds its own.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import yaml

from ...core.config import Config, save_config
from ...core.errors import FEW, BadInput, CheckpointError, DiskFull, RepriseError, TrainingFailed
from ...rewriters.reprompt import SETTINGS
from ...storage.checksums import move_unlisted, write_checksums
from ...storage.files import apply_umask, is_disk_full, prepare_folder, read_lines, read_text, write_whole
from ...storage.outputs import lock
from . import distributed
from .checkpoints import CannotWrite, goes_on_from, newest_checkpoint, step_of, write_error

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
BEFORE = ".final.before"  # the `final/` of fewer rounds
STARTED_CONFIG = Path("checkpoints") / "config.yaml"  # of a run that has begun
# Records whose lines have a "step", and what else the report reads of each line.
RECORDS: dict[str, dict[str, type]] = {
    "metrics.jsonl": {"step": int},
    "evaluations.jsonl": {"step": int, "samples": list},
    "rollouts/rollouts.jsonl": {"step": int},
}
# What a run writes into its folder, beside config.yaml. A new run begins where there is nothing of it.
WRITTEN = (
    "best",
    "checkpoints",
    "evaluations.jsonl",
    "final",
    "metrics.jsonl",
    "pivots",
    "report.html",
    "rollouts",
    "rounds",
    "start",
    "tensorboard",
    "warm",
)


class TrainingLoop(Protocol):
    def run(self) -> Path: ...


def run_training(
    config: Config, run: Path, resume: bool, log: Callable[[str], None], begin: Callable[[], TrainingLoop]
) -> Path:
    """Claim the folder `run` for the config, make a loop with `begin`, run it, and return `run`/final.

    With `resume` a run goes on from its newest whole checkpoint, and ends in the same weights as if it had
    never stopped, bit for bit on a CPU. A finished run is returned as it is, unless its config has another
    number of rounds. A run that cannot begin changes nothing.

    Raises BadInput where another process trains in the folder, where it holds another run or other files of
    a run, where nothing can be learned from the data, where other data or settings than at the start came
    with `resume`, and for a damaged record; CheckpointError for models and checkpoints that cannot be loaded
    or are damaged; TrainingFailed for a loss that is NaN or infinite, and where the disk is full, with the
    step from which the run goes on.
    Methods that draw also raise RewardFailed and RenderFailed.
    """
    with ExitStack() as until_the_end:

        def hold() -> None:
            if resume and not run.is_dir():
                raise BadInput(f"{run} holds no run to go on with: there is no such folder")
            until_the_end.enter_context(lock(prepare_folder(run), tidy=True))

        try:
            distributed.run_on_main(hold)
            return _run_held(config, run, resume, log, begin)
        except BaseException:
            until_the_end.close()
            if not resume and distributed.is_main():
                with suppress(OSError):  # it holds something
                    run.rmdir()
            raise


def _run_held(
    config: Config, run: Path, resume: bool, log: Callable[[str], None], begin: Callable[[], TrainingLoop]
) -> Path:
    from ...core.model_files import quiet_loading

    text, final = save_config(config), run / "final"
    other_rounds = ROUND_COUNT in distributed.run_on_main(lambda: claim_run_folder(run, text, resume))
    if resume and final.is_dir() and not other_rounds:
        log(f"{run} is finished already")
        return final
    with quiet_loading():
        with undo_failed_start(run, text, resume), full_disk_is_told(run, resume):
            loop = begin()
            if other_rounds and final.is_dir():  # it is kept until there is a later one
                if (run / BEFORE).is_dir():
                    move_unlisted(run / BEFORE, final)
                    shutil.rmtree(run / BEFORE)
                os.replace(final, run / BEFORE)
        with full_disk_is_told(run, True):
            made = loop.run()
    if distributed.is_main() and (run / BEFORE).is_dir():
        move_unlisted(run / BEFORE, made)
        shutil.rmtree(run / BEFORE)
    return made


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
        remedy = f"; copy {run / 'config.yaml'} there if that one is whole"
        if (before := read_text(started, "config", "is", remedy)) == text:
            return []
        return _changes(run, started, before, text)
    if resume:
        raise BadInput(f"{run} holds no run to go on with: it has no checkpoints/config.yaml")
    try:
        if foreign := _not_of_this_run(run, text):
            raise BadInput(
                f"{run} holds {foreign} already, which a run would overwrite; choose another folder"
            )
        write_whole(run / "config.yaml", text)
        write_whole(started, text)
    except OSError as error:
        raise BadInput(f"cannot read the run folder {run}: {error.strerror}; choose another") from error
    return []


def _not_of_this_run(run: Path, text: str) -> str | None:
    """The first thing in a new run's folder that the run would overwrite, or None."""
    found = set(os.listdir(run)) if run.exists() else set()
    config = run / "config.yaml"
    if config.name in found and config.read_bytes() != text.encode():
        return config.name
    return next((name for name in WRITTEN if name in found and not _is_left_over(run / name)), None)


def _is_left_over(path: Path) -> bool:
    """Whether it is an empty folder, but for a file that was being written: of a run killed as it began."""
    return path.is_dir() and all(one.suffix == ".part" for one in path.iterdir())


def _changes(run: Path, started: Path, text_before: str, text: str) -> list[str]:
    """The settings in which two configs differ. Raises BadInput where one is not in `CHANGEABLE`."""
    try:
        stored = yaml.safe_load(text_before)
    except yaml.YAMLError:
        stored = None
    beside = run / "config.yaml"
    whole = read_text(beside, "config", "is") if beside.is_file() else ""
    cut_off = whole != text_before and whole.startswith(text_before)
    if not isinstance(stored, dict) or cut_off:
        raise BadInput(
            f"{started} is damaged or cut off: expected the settings that the run was begun with; copy "
            f"{beside} there if that one is whole"
        )
    before, now = (dict(_leaves(one)) for one in (stored, yaml.safe_load(text)))
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
    """A context for the start of a run. Where it fails, what a new run has written is removed, and a resumed
    run's folder is as it was. Where it succeeds, a resumed run's files have the config `text`."""
    try:
        yield
    except BaseException:
        if not resume and distributed.is_main():
            for name in WRITTEN:  # there was nothing of it when the folder was claimed
                path = run / name
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            (run / "config.yaml").unlink(missing_ok=True)
        raise
    if resume and distributed.is_main():
        for path in (run / "config.yaml", run / STARTED_CONFIG):
            if path.is_file() and path.read_text(encoding="utf-8") != text:
                write_whole(path, text)


@contextmanager
def full_disk_is_told(run: Path, goes_on: bool) -> Iterator[None]:
    """A context for work on a run. Where a file cannot be written, or the disk is full, it raises
    TrainingFailed, with the step from which `--resume` goes on if the run `goes_on`."""
    hook = threading.excepthook

    def without_full_disk(failure: threading.ExceptHookArgs) -> None:
        if not is_disk_full(failure.exc_value):  # tensorboard's thread; the main one says it
            hook(failure)

    threading.excepthook = without_full_disk
    try:
        yield
    except Exception as error:
        if isinstance(error, CannotWrite):
            what = str(error)
        elif is_disk_full(error) and (isinstance(error, DiskFull) or not isinstance(error, RepriseError)):
            what = str(write_error(Path(getattr(error, "filename", None) or run), error))
        else:
            raise
        then = f"--resume {run} goes on {goes_on_from(run)}" if goes_on else "begin again"
        raise TrainingFailed(f"{what}, and {then}") from error
    finally:
        threading.excepthook = hook


def resume_point(run: Path, resume: bool, log: Callable[[str], None] = lambda line: None) -> Path | None:
    """The checkpoint to go on from, or None: from the start. Lines of later steps are cut from the records.

    Raises CheckpointError, and BadInput for a damaged record.
    """
    checkpoint = newest_checkpoint(run / "checkpoints", log) if resume else None
    for name, needs in RECORDS.items():
        # From the start, the evaluation before the first step is made again, too.
        drop_later_lines(run / name, step_of(checkpoint) if checkpoint else -1, needs)
    return checkpoint


def started_from(checkpoint: Path | None) -> str:
    """Where a run goes on, for the log."""
    return f"going on from {checkpoint.name}" if checkpoint else "from the start"


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file of JSON lines. Raises CannotWrite."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise write_error(path, error) from error


def drop_later_lines(path: Path, done: int, needs: Mapping[str, type]) -> None:
    """Cut the lines of steps after `done` from a file of JSON lines; these steps will be taken again.

    A last line without an end was being written when the run was killed; it is cut, too. Raises BadInput for
    any other line that is no row with the keys of `needs`.
    """
    rows = read_lines(path, "delete this line, and go on with --resume", needs)
    if path.exists():
        lines = path.read_bytes().split(b"\n")[:-1]
        kept = [line for line in lines if line.strip()]
        write_whole(path, b"".join(line + b"\n" for line, row in zip(kept, rows) if row["step"] <= done))


def export_rewriter(folder: Path, model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    """Write a rewriter's folder. Raises CannotWrite."""
    with write_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        (part / SETTINGS).write_text(text, encoding="utf-8")


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into. At the end it gets checksums and takes the place of `folder`, which is
    always whole.

    Raises CannotWrite for whatever goes wrong meanwhile.
    """
    # Hidden, so that no folder of the user's has such a name.
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                apply_umask(file)
        write_checksums(part)
        if folder.exists():
            if old.exists():  # a kill left it
                move_unlisted(old, folder)
                shutil.rmtree(old)
            folder.rename(old)
        part.rename(folder)
        if old.exists():
            move_unlisted(old, folder)
            shutil.rmtree(old)
    except CheckpointError:  # of what was to be copied
        shutil.rmtree(part, ignore_errors=True)
        raise
    except Exception as error:  # safetensors and the file system raise their own kinds
        failure = write_error(folder, error)
        shutil.rmtree(part, ignore_errors=True)
        raise failure from error
