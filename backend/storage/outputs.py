"""The folder that a command writes to: one process at a time, and files that others put there are left alone.

`.reprise/` in the folder holds `lock`, which the operating system frees when its process ends, however it
ends; `holder.json`, who holds it; and `made.json`, which command wrote here and the SHA-256 of single files
that it wrote, such as the page. A file with another checksum is somebody else's, or was changed since. Where
a process was killed, the next one that holds the folder removes the files that were half written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.errors import BadInput, plain
from .files import cannot_write, is_part, prepare_folder, write_whole

MARK, LOCK, HOLDER, MADE = ".reprise", "lock", "holder.json", "made.json"
REPLACED = "replaced-{}"  # where a later call puts what an earlier one made
WAIT = 60.0  # seconds at most, where a lock is held for a moment only
COMMAND_LENGTH = 120  # characters of a holder's command line that are shown

_held: set[tuple[Path, int]] = set()  # by this process: folder, thread


class _Made(BaseModel):
    """`made.json`."""

    model_config = ConfigDict(extra="ignore")

    command: str
    sha256: list[str] = []


@contextmanager
def claim(folder: Path, command: str, names: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Make `folder` and hold it for this process while `command` ("render", "evaluate search") writes to it.

    `names` are the files and folders that the command writes, from `folder`: where nothing here is the
    command's own yet, none of them may exist. Where nothing comes of the call, no folder is left behind.

    Raises BadInput where the folder cannot be written, another process holds it, another command wrote it,
    or it holds one of `names`.
    """
    made_now = _missing(folder)
    prepare_folder(folder)
    try:
        with lock(folder, tidy=True):
            known = _read(folder)
            if known is None:
                foreign = [path for name in names if os.path.lexists(path := folder / name)]
                if foreign:
                    raise BadInput(
                        f"{_plainly(foreign[0])} was not made by this command; move it, or give another --out"
                    )
                _write(folder, _Made(command=command))
            elif known.command != command:
                raise BadInput(
                    f"{folder} holds what `reprise {known.command}` made; give another --out to "
                    f"`reprise {command}`"
                )
            try:
                yield folder
            finally:
                with suppress(OSError):  # somebody deleted the folder meanwhile
                    if known is None and {path.name for path in folder.iterdir()} <= {MARK}:
                        (folder / MARK / MADE).unlink()
    finally:
        _remove_empty(made_now)


@contextmanager
def lock(folder: Path, wait: float = 0.0, tidy: bool = False) -> Iterator[None]:
    """Hold an existing folder for this thread, which may hold it several times.

    With `tidy` the folder is left without a trace if no command has claimed it. Raises BadInput, saying who
    holds it, where another process still does after `wait` seconds. A process that has ended holds nothing.
    """
    key = (folder.resolve(), threading.get_ident())
    if key in _held:
        yield
        return
    from filelock import FileLock, Timeout

    mark = folder / MARK
    try:
        mark.mkdir(exist_ok=True)
        file = FileLock(mark / LOCK)
        file.acquire(timeout=wait)
    except Timeout as error:
        raise BadInput(
            f"{folder} is being written by {_holder(mark)}; wait until it has ended, or give another --out"
        ) from error
    except OSError as error:
        raise cannot_write(mark, error) from error
    _held.add(key)
    try:
        if any(name == HOLDER or is_part(name) for name in os.listdir(mark)):
            _remove_parts(folder)  # who held it before was killed
        write_whole(mark / HOLDER, json.dumps(_myself()) + "\n")
        yield
    finally:
        _held.discard(key)
        with suppress(OSError):
            (mark / HOLDER).unlink()
        with suppress(OSError):
            if tidy and {path.name for path in mark.iterdir()} <= {LOCK}:
                (mark / LOCK).unlink()  # while it is held: who waits for it sees that it is gone
        file.release()
        if tidy:
            with suppress(OSError):  # it is not empty
                mark.rmdir()


def _remove_parts(folder: Path) -> None:
    """Remove what `write_whole` left unfinished in and below a folder that is held.

    Folders in it that have a lock of their own are left out: another process may be writing there.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not os.path.lexists(Path(place, name, MARK))]
        for name in filter(is_part, names):
            with suppress(OSError):
                os.unlink(Path(place, name))


def check_made(folder: Path, *paths: Path) -> None:
    """Raises BadInput for a file among `paths` that `write_made` did not write, or that was changed since."""
    known = _read(folder)
    for path in paths:
        if not os.path.lexists(path):
            continue
        if known is None or not path.is_file() or _sha256(path) not in known.sha256:
            raise BadInput(
                f"{_plainly(path)} was not made by this command, or was changed since; move it, or give "
                "another --out"
            )


def write_made(folder: Path, path: Path, data: bytes | str) -> None:
    """Write a file whole, as one that was made here: a later call may replace it.

    `folder` is the claimed one, in which `path` usually is. Raises as `check_made` and `write_whole`.
    """
    if isinstance(data, str):
        data = data.encode("utf-8")
    check_made(folder, path)
    known = _read(folder) or _Made(command="")
    digest = hashlib.sha256(data).hexdigest()
    if digest not in known.sha256:  # first, so that the file is known as ours whenever this is stopped
        _write(folder, known.model_copy(update={"sha256": [*known.sha256, digest]}))
    write_whole(path, data)


def write_new(path: Path, data: bytes | str) -> None:
    """Write a file whole. Raises BadInput where it is there with other content, and as `write_whole`."""
    if isinstance(data, str):
        data = data.encode("utf-8")
    if os.path.lexists(path) and (not path.is_file() or path.read_bytes() != data):
        raise BadInput(f"{_plainly(path)} is there, with other content; move it, or give another --out")
    write_whole(path, data)


def set_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move what there is of `names` in `folder` to its next free `replaced-N`, in this order.

    Returns that folder, or None where there is nothing. After a kill a second call moves the rest to the same
    place. Raises as `write_whole`.
    """
    there = [name for name in names if os.path.lexists(folder / name)]
    if not there:
        return None
    number = 1
    while any(os.path.lexists(folder / REPLACED.format(number) / name) for name in there):
        number += 1
    aside = folder / REPLACED.format(number)
    try:
        aside.mkdir(exist_ok=True)
        for name in there:
            os.rename(folder / name, aside / name)
    except OSError as error:
        raise cannot_write(aside, error) from error
    return aside


def is_set_aside(name: str) -> bool:
    """Whether a folder of this name holds what `set_aside` moved."""
    return re.fullmatch(REPLACED.format(r"\d+"), name) is not None


def _plainly(path: Path) -> str:
    return plain(os.path.normpath(path))


def _myself() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(["reprise", *sys.argv[1:]]),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }


def _holder(mark: Path) -> str:
    """Who holds a lock, in words."""
    try:
        found = json.loads((mark / HOLDER).read_text(encoding="utf-8"))
        command = plain(str(found["command"]), COMMAND_LENGTH)
        return plain(f"process {found['pid']} on {found['host']} since {found['since']} ({command})")
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"  # which has taken it just now


def _read(folder: Path) -> _Made | None:
    path = folder / MARK / MADE
    try:
        return _Made.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; give another --out") from error
    except ValidationError as error:
        raise BadInput(
            f"{path} is damaged; delete it together with what the command wrote, or give another --out"
        ) from error


def _write(folder: Path, made: _Made) -> None:
    write_whole(folder / MARK / MADE, made.model_dump_json(indent=1) + "\n")


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; give another --out") from error


def _missing(folder: Path) -> list[Path]:
    """`folder` and those above it that do not exist yet, the innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _remove_empty(folders: list[Path]) -> None:
    for path in folders:
        try:
            path.rmdir()
        except OSError:  # something was written to it
            return
