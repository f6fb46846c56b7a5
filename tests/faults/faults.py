"""Faults of a running process, each at one of its file operations: the same place every time.

Python tells of every file that is opened, renamed or deleted (`sys.addaudithook`). The libraries that write
weights from C++ and Rust do not; `_tell_of_libraries` lets them. A fault inside a write, and a file that
cannot grow, are the kernel's own (RLIMIT_FSIZE), so that they reach those libraries, too.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READ, WRITE = "read", "write"
CHANGES = {"os.rename": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0}  # the argument that is the path
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
IGNORED = ("tensorboard",)  # written by threads of its own, when they come to it
INSIDE = 20  # bytes of a file that are written before a fault inside the write


@dataclass(frozen=True)
class Fault:
    """`what` happens before the operation `at` (from 0) of its kind, of those on a file called `name`.

    what: a signal (SIGKILL, SIGTERM, SIGINT, SIGSTOP); "torn": killed when 20 bytes of the file are written;
    "full": from then on no file grows beyond 20 bytes more than it has; or the name of an error, EIO or
    ENOSPC, with which this operation fails.
    """

    what: str
    at: int = 0
    on: str = WRITE
    name: str = "*"
    clock: float = 0.0  # seconds that the process's clock is ahead

    def arm(self, folder: Path, log: Path | None = None) -> None:
        """Begin to count operations on files below `folder`; with `log` write each there, one a line."""
        # Here, because files may be written in a thread that may set no handler.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.what == "torn" else signal.SIG_IGN)
        if self.clock:
            now, now_ns = time.time, time.time_ns
            time.time = lambda: now() + self.clock
            time.time_ns = lambda: now_ns() + int(self.clock * 1e9)
        _tell_of_libraries()
        sys.addaudithook(_Hook(self, str(folder), log))


def happened(folder: Path | str) -> Path:
    """The file that says that a fault did happen in `folder`."""
    return Path(f"{str(folder).rstrip(os.sep)}.happened")


class _Hook:
    def __init__(self, fault: Fault, folder: str, log: Path | None):
        self.fault, self.folder, self.seen = fault, folder + os.sep, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None
        self.lock = threading.Lock()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITING) if mode is None else any(letter in mode for letter in "wax+")
            kind = WRITE if writes else READ
        elif event in CHANGES:
            path, kind = arguments[CHANGES[event]], WRITE
            if arguments[-1] not in (-1, None) and isinstance(arguments[-1], int) and event != "os.mkdir":
                path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), os.fsdecode(path))
        else:
            return
        if isinstance(path, int):
            return
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(self.folder) or any(part in path for part in IGNORED):
            return
        name = path[len(self.folder) :]
        if self.log is not None:
            os.write(self.log, f"{kind} {event} {name}\n".encode())
        if kind != self.fault.on or not fnmatch.fnmatch(name, self.fault.name):
            return
        with self.lock:
            here, self.seen = self.seen == self.fault.at, self.seen + 1
        if here and self.fault.what:
            os.close(os.open(happened(self.folder), os.O_WRONLY | os.O_CREAT))
            _happen(self.fault.what, path)


def _happen(what: str, path: str) -> None:
    if what in ("torn", "full"):
        size = (os.path.getsize(path) if os.path.isfile(path) else 0) + INSIDE
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    elif what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    else:
        code = getattr(errno, what)
        raise OSError(code, os.strerror(code), path)


def _tell_of_libraries() -> None:
    """Let torch and safetensors tell of the files that they open without Python."""
    import safetensors
    import safetensors.torch
    import torch

    def telling(function: Any, place: int, mode: str) -> Any:
        def told(*arguments: Any, **options: Any) -> Any:
            path = arguments[place] if len(arguments) > place else options.get("filename")
            if isinstance(path, (str, os.PathLike)):
                sys.audit("open", os.fspath(path), mode, 0)
            return function(*arguments, **options)

        return told

    library: Any = safetensors.torch
    library.serialize_file = telling(library.serialize_file, 1, "w")
    library.safe_open = safetensors.safe_open = telling(safetensors.safe_open, 0, "r")
    torch.serialization._open_zipfile_writer_file.__init__ = telling(
        torch.serialization._open_zipfile_writer_file.__init__, 1, "w"
    )
