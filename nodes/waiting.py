"""Waiting for a server from inside a node, while the rest of the graph runs.

ComfyUI runs its nodes one after the other in one event loop, and goes on with other nodes while an async one
waits. At an error it stops the whole graph, also branches that have nothing to do with it, and those that
wait for other servers. So an error is held back until the others have run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as management

from ..backend.core.errors import Interrupted, RepriseError

T = TypeVar("T")
QUIET, LOOKS = 0.05, 4  # seconds between looks, and how many without a change mean that nothing else runs
_answering: set[object] = set()  # calls that wait for a server


async def in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """The result of `work(should_stop)`, called in a thread that needs neither torch nor the GPU.

    ComfyUI's interrupt ends it, and so does the end of the graph for another reason.
    """
    left = threading.Event()
    _answering.add(left)
    try:
        return await asyncio.to_thread(work, lambda: left.is_set() or management.processing_interrupted())
    except Interrupted:
        management.throw_exception_if_processing_interrupted()
        raise
    except RepriseError:
        _answering.discard(left)
        await _others_done()
        raise
    finally:
        _answering.discard(left)
        left.set()  # cancelled: ComfyUI would wait for the thread


async def _others_done() -> None:
    """Return when ComfyUI has nothing left to run but what waits for this node.

    It gives the loop away only then, or for moments: while it has nodes to run, it runs them.
    """
    seen, quiet = None, 0
    while quiet < LOOKS:
        await asyncio.sleep(QUIET)
        now = _states()
        quiet = quiet + 1 if now == seen and not _answering else 0
        seen = now


def _states() -> list[tuple]:
    """How far each node of the graph is."""
    from comfy_execution.progress import get_progress_state

    nodes = get_progress_state().nodes
    return [(name, state["state"], state["value"]) for name, state in nodes.items()]
