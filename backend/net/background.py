"""Coroutines for callers that are none: in a thread of their own, to be stopped within 0.1 s."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

POLL_SECONDS = 0.1  # between two looks at whether the caller wants to stop
T = TypeVar("T")


def run_in_thread(
    work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None, patience: float = 1.0
) -> T:
    """The result of a coroutine, run in an event loop in a thread of its own.

    The caller may be inside a running event loop (ComfyUI's nodes are). Ten times a second and once at the
    end `tick` is called in the caller's thread. When it raises, and on Ctrl-C, the coroutine is cancelled: it
    has `patience` seconds to close its connections.
    """
    thread, finished = _LoopThread(work), False
    thread.start()
    try:
        while not finished:
            finished = thread.wait(POLL_SECONDS)
            if tick is not None:
                tick()
    finally:
        thread.cancel(patience)
    return thread.result()


class _LoopThread(threading.Thread, Generic[T]):
    """Runs a coroutine in an event loop of its own."""

    def __init__(self, work: Coroutine[Any, Any, T]):
        super().__init__(name="reprise-http", daemon=True)
        self._work, self._started_work, self._finished = work, threading.Event(), threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._task: asyncio.Task | None = None

    def run(self) -> None:
        try:
            self._result = asyncio.run(self._main())
        except BaseException as error:  # handed to the caller's thread
            self._error = error
        finally:
            self._started_work.set()
            self._finished.set()

    async def _main(self) -> T:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._started_work.set()
        return await self._work

    def wait(self, seconds: float) -> bool:
        """Whether the work is over, after so many seconds at most. After a Ctrl-C in `join`, `is_alive` would
        be wrong."""
        return self._finished.wait(seconds)

    def cancel(self, patience: float) -> None:
        self._started_work.wait()
        if not self._finished.is_set() and self._task is not None:
            try:
                self._loop.call_soon_threadsafe(self._task.cancel)
            except RuntimeError:  # the loop has ended meanwhile
                pass
        self.wait(patience)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return cast(T, self._result)
