"""What ends a command from outside: signals, and a reader of its output that leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CTRL_C = 128 + signal.SIGINT  # what shells report for a program that Ctrl-C stopped
PIPE_CLOSED = 128 + 13  # … and for one whose output nobody reads; 13 is SIGPIPE, which Windows does not name
AGAIN = 5.0  # seconds in which a repeated signal is the same one: supervisors tell a group and its processes
NAMES = ("SIGTERM", "SIGHUP")  # of kill, schedulers and containers; of a terminal that is closed


class StopSignals:
    """`exit_code` is what shells report for the signal that came, for Ctrl-C where none did."""

    def __init__(self) -> None:
        self.exit_code = CTRL_C
        self._last = -AGAIN

    def raise_interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last < AGAIN:
            return
        self._last, self.exit_code = now, 128 + number
        raise KeyboardInterrupt


@contextmanager
def stopping_like_ctrl_c() -> Iterator[StopSignals]:
    """Within this context SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does.

    A signal that the process was started to ignore, as nohup does with SIGHUP, stays ignored.
    """
    signals, before = StopSignals(), {}
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, signals.raise_interrupt)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_closed_streams() -> None:
    """Give streams that were closed when the process started (`>&-`) the null device.

    Otherwise the next file that is opened gets their number, and with it what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def drop_output() -> None:
    """Send what is still to be printed nowhere, or Python complains about the closed pipe when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(null, stream.fileno())
