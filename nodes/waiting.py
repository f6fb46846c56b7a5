"""Waiting for a server inside a node, while the rest of the graph runs.

ComfyUI runs nodes one after the other in one event loop, and continues with other nodes while an async node
waits. On an error it stops the whole graph, also independent branches and those that wait for other servers.
So an error is held back until the other nodes have run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as management

from ..backend.core.errors import Interrupted, RepriseError

T = TypeVar("T")
CHECK_SECONDS = 0.05  # between two checks of the other nodes
QUIET_CHECKS = 4  # checks without a change after which no other node is assumed to run
_waiting_calls: set[object] = set()  # calls that are waiting for a server


async def run_in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """The result of `work(should_stop)`, which is run in a thread and must not use torch or the GPU.

    `should_stop` returns True after ComfyUI's interrupt, and when the graph ends for another reason.
    """
    left = threading.Event()
    _waiting_calls.add(left)
    try:
        return await asyncio.to_thread(work, lambda: left.is_set() or management.processing_interrupted())
    except Interrupted:
        management.throw_exception_if_processing_interrupted()
        raise
    except RepriseError:
        _waiting_calls.discard(left)
        await _wait_for_other_nodes()
        raise
    finally:
        _waiting_calls.discard(left)
        left.set()  # if this call was cancelled, ComfyUI would wait for the thread


async def _wait_for_other_nodes() -> None:
    """Return when ComfyUI has no node left to run, apart from those that wait for this one.

    While it has nodes to run, it keeps the event loop busy, except for moments.
    """
    seen, quiet = None, 0
    while quiet < QUIET_CHECKS:
        await asyncio.sleep(CHECK_SECONDS)
        now = _node_states()
        quiet = quiet + 1 if now == seen and not _waiting_calls else 0
        seen = now


def _node_states() -> list[tuple]:
    """(id, state, progress value) of each node of the graph."""
    from comfy_execution.progress import get_progress_state

    nodes = get_progress_state().nodes
    return [(name, state["state"], state["value"]) for name, state in nodes.items()]
