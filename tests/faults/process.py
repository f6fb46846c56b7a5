"""A command line of Reprise in a process of its own, forked from one that has loaded the libraries already.

A start takes a tenth of a second in place of ten, so that hundreds of faults can be tried. What a killed
process leaves on the disk is the same.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults import Fault

ROOT = Path(__file__).parents[2]
LIBRARIES = f"{__name__.rpartition('.')[0]}.preload"
HANGS = 240.0  # seconds after which a command is taken to hang


@dataclass(frozen=True)
class Ended:
    """What a process left behind. `code` is negative for the signal that ended it, None if it hung."""

    code: int | None
    stdout: str
    stderr: str

    @property
    def refusals(self) -> list[str]:
        """The lines in which the program says why it ends."""
        return [line for line in self.stderr.splitlines() if line.startswith("reprise: ")]

    @property
    def crashed(self) -> bool:
        """Whether an error of the program's own making reached the user."""
        return "Traceback (most recent call last)" in self.stderr or "REPRISE_DEBUG=1" in self.stderr


class Run:
    """A running command. Its output is read as it comes, so that the process never waits for its reader."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        fault: Fault | None = None,
        log: Path | None = None,
        heard: bool = True,
    ):
        """`log`: a file for its operations. `heard`: whether anybody reads its stdout."""
        context = _context()
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        ends = [writer for _, writer in pipes]
        given = (list(arguments), folder, fault, log, *ends)
        self.process = context.Process(target=_run, args=given)
        self.process.start()
        self._texts: list[list[bytes]] = [[], []]
        self._readers = []
        for (reader, writer), parts, read in zip(pipes, self._texts, (heard, True)):
            writer.close()
            if not read:
                reader.close()
                continue
            self._readers.append(threading.Thread(target=_read, args=(reader, parts), daemon=True))
            self._readers[-1].start()

    def send(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def pause(self, seconds: float) -> None:
        """Let it stand still for that long; returns at once."""
        self.send(signal.SIGSTOP)
        threading.Timer(seconds, self.send, [signal.SIGCONT]).start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def stderr(self) -> str:
        return b"".join(self._texts[1]).decode("utf-8", "replace")

    def wait_until_stopped(self) -> None:
        """Wait until it stands still (SIGSTOP)."""
        end = time.monotonic() + HANGS
        while time.monotonic() < end:
            if self.process.exitcode is not None:
                break
            if Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return
            time.sleep(0.02)
        raise AssertionError(f"it did not come to the place where it was to stop: {self.wait(1)}")

    def wait_or_none(self, seconds: float) -> Ended | None:
        """Its end, or None where it is still at work after `seconds`."""
        self.process.join(seconds)
        return None if self.process.exitcode is None else self.wait()

    def wait(self, seconds: float = HANGS) -> Ended:
        """Wait for its end; a process that does not end is killed."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        for reader in self._readers:
            reader.join(10)
        stdout, stderr = (b"".join(parts).decode("utf-8", "replace") for parts in self._texts)
        return Ended(code, stdout, stderr)


def run(arguments: Sequence[str], folder: Path, fault: Fault | None = None, **more: Any) -> Ended:
    return Run(arguments, folder, fault, **more).wait()


def _context() -> Any:
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(ROOT), str(ROOT.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LIBRARIES])
    return context


def _read(reader: Any, parts: list[bytes]) -> None:
    while part := os.read(reader.fileno(), 2**16):
        parts.append(part)
    reader.close()


def _run(
    arguments: list[str],
    folder: Path,
    fault: Fault | None,
    log: Path | None,
    stdout: Any,
    stderr: Any,
) -> None:
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    stdout.close(), stderr.close()
    # New ones: those that were forked may still take the pipes for files.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    from reprise.backend.cli.main import main
    from reprise.backend.net import http

    from ..backend.training.world import NAMES

    for table, name, where in NAMES:
        table[name] = where
    http.FIRST_RETRY_SECONDS = 0.05  # as many tries as ever, sooner
    if fault is not None or log is not None:
        (fault or Fault("")).arm(folder, log)
    sys.argv = ["reprise", *arguments]
    main()
