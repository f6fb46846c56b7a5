"""Draws several batches in step with each other, so that a watcher sees their candidates together.

Prompts whose embeddings have different lengths are drawn by calls of the pipeline apart, and so is each
candidate of a pipeline whose rows cannot be masked. Each call runs in a thread of its own, but only one runs
at a time: it hands over where a watcher is to look, and waits there until all others have come to the same
step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

Look = TypeVar("Look")


class Left(BaseException):
    """Ends a thread whose batch nobody waits for any more. No Exception, so that no pipeline catches it."""


class Strand(Generic[Look]):
    """One batch: `work(pause)` calls `pause(look)` at each step that is looked at, and gets the answer from
    it.

    `turn` is a context that the batch needs while it runs, such as its own row mask on a shared module.
    """

    def __init__(
        self, work: Callable[[Callable[[Look], Any]], None], turn: Callable[[], AbstractContextManager[Any]]
    ):
        self.look: Look | None = None  # what it shows; None once it has ended
        self._work, self._turn = work, turn
        self._answer: Any = None
        self._error: BaseException | None = None
        self._leaving = False
        self._go, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def resume(self, answer: Any = None) -> None:
        """Run until the next look, or to the end. Raises what the batch raises."""
        self._answer, self.look = answer, None
        self._stopped.clear()
        with self._turn():
            if self._thread.ident is None:
                self._thread.start()
            self._go.set()
            self._stopped.wait()
        if self._error is not None and not isinstance(self._error, Left):
            raise self._error

    def check(self) -> None:
        """Called by the batch between its looks: ends it if nobody waits for it any more."""
        if self._leaving:
            raise Left

    def leave(self) -> None:
        """End the batch where it waits."""
        if self._thread.is_alive():
            self._leaving = True
            self._go.set()
            self._thread.join()

    def _pause(self, look: Look) -> Any:
        self.look = look
        self._stopped.set()
        self._wait()
        return self._answer

    def _wait(self) -> None:
        self._go.wait()
        self._go.clear()
        self.check()

    def _run(self) -> None:
        try:
            self._wait()
            self._work(self._pause)
        except BaseException as error:
            self._error = error
        finally:
            self._stopped.set()


def run_in_step(strands: Sequence[Strand[Look]], answer: Callable[[list[Look | None]], list[Any]]) -> None:
    """Run all strands to their ends. `answer` gets what each shows, None from those that have ended, and
    returns an answer for each. Raises what a strand or `answer` raises, once no strand runs."""
    try:
        for strand in strands:
            strand.resume()
        while any(strand.look is not None for strand in strands):
            answers = answer([strand.look for strand in strands])
            for strand, one in zip(strands, answers, strict=True):
                if strand.look is not None:
                    strand.resume(one)
    finally:
        for strand in strands:
            strand.leave()
