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
CHECK_SECONDS = 0.05  # between two looks at the other nodes
QUIET_CHECKS = 4  # looks without a change after which nothing else runs
_waiting_calls: set[object] = set()  # calls that wait for a server


async def run_in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """The result of `work(should_stop)`, called in a thread that needs neither torch nor the GPU.

    ComfyUI's interrupt ends it, and so does the end of the graph for another reason.
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
        left.set()  # cancelled: ComfyUI would wait for the thread


async def _wait_for_other_nodes() -> None:
    """Return when ComfyUI has nothing left to run but what waits for this node.

    It gives the loop away only then, or for moments: while it has nodes to run, it runs them.
    """
    seen, quiet = None, 0
    while quiet < QUIET_CHECKS:
        await asyncio.sleep(CHECK_SECONDS)
        now = _node_states()
        quiet = quiet + 1 if now == seen and not _waiting_calls else 0
        seen = now


def _node_states() -> list[tuple]:
    """How far each node of the graph is."""
    from comfy_execution.progress import get_progress_state

    nodes = get_progress_state().nodes
    return [(name, state["state"], state["value"]) for name, state in nodes.items()]
