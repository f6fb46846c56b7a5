"""The process around the app: Granian's embedded server, and a shutdown that leaves no client waiting.

Granian's own options bound the time and the size of a request's headers and the number of connections; the
app bounds bodies (`app.py`). Uvicorn has no limit on the time that headers take; Hypercorn never closes a
connection whose large body was refused unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server
from PIL import Image

from ..core.errors import BadInput, first_line
from .batching import BatchingQueue

BATCH_SECONDS = 5.0  # that the batch in work has left when the server is stopped
LEAVE_SECONDS = 2.0  # then for the last answers to be sent
MOST_CONNECTIONS = 2048  # open at once; others wait
HEADER_SECONDS = 5.0  # until a request's headers are complete
HEADER_BYTES = 64 * 2**10
OTHER_FILES = 256  # that the process may have open besides
# Errors alone, and not on the standard output, which is Granian's default.
LOG = {name: {"class": "logging.StreamHandler", "formatter": "generic"} for name in ("console", "access")}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that holds an address until the server takes it; port 0 takes a free one. Raises BadInput."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise _cannot_listen(f"{host}:{port}", error.strerror or str(error)) from error


def address(sock: socket.socket) -> str:
    """The address of a listening socket, as a client takes it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, queue: BatchingQueue, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Answer at the address of `sock` until the process is stopped; `ready` is called when it listens.

    For the main thread. Ends as the signal does: with KeyboardInterrupt after Ctrl-C.
    """
    server, received = RewardServer(app, queue, sock, ready), []

    def stop(number: int, _: Any) -> None:
        received.append(number)
        server.stop()

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in received[:1]:
        signal.raise_signal(number)


class RewardServer:
    """Serves `app` at the address of `sock`, which it closes. `run` returns after `stop`."""

    def __init__(
        self, app: FastAPI, queue: BatchingQueue, sock: socket.socket, ready: Callable[[], None] | None = None
    ):
        self.app, self.queue, self.sock, self.ready = app, queue, sock, ready
        self._stop = threading.Event()

    def stop(self) -> None:
        """Stop the server, from any thread or a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Raises BadInput where the address was taken in the meantime."""
        # The limit on pixels is ours, and lower than the one at which Pillow begins to warn.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")  # on each damaged file
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        host, port = self.sock.getsockname()[:2]
        server = Server(
            self.app,
            host,
            port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=MOST_CONNECTIONS,
            backpressure=raise_open_files(),
            # One request a connection: a client that sends many and reads no answer would hold it for ever.
            http1_settings=HTTP1Settings(
                header_read_timeout=int(1000 * HEADER_SECONDS), max_buffer_size=HEADER_BYTES, keep_alive=False
            ),
            log_level=LogLevels.error,
            log_dictconfig={"handlers": LOG},
        )
        self.sock.close()
        serving = asyncio.create_task(server.serve())
        stopped = asyncio.create_task(asyncio.to_thread(self._stop.wait))
        listening = asyncio.create_task(_wait_until_listening(host, port))
        try:
            await asyncio.wait({serving, stopped, listening}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and self.ready is not None:
                self.ready()
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():  # before anybody stopped it
                serving.result()
            self.app.state.stopping.set()
            await asyncio.to_thread(self.queue.close, BATCH_SECONDS)
            server.stop()
            await asyncio.wait({serving}, timeout=LEAVE_SECONDS)
        except RuntimeError as error:
            raise _cannot_listen(f"{host}:{port}", first_line(error)) from error
        finally:
            self._stop.set()
            for task in (serving, listening):
                task.cancel()


def raise_open_files() -> int:
    """How many connections fit into this process's limit on open files, which is raised as far as needed.

    The rest is for the judges' files. Linux's usual limit of 1024 can be raised by the process itself.
    """
    if os.name == "nt":  # has no such limit
        return MOST_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(1, min(MOST_CONNECTIONS, soft - min(OTHER_FILES, soft // 4)))


async def _wait_until_listening(host: str, port: int) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 is compared, not bound
    while True:
        try:
            _, writer = await asyncio.open_connection(reachable, port)
            return writer.close()
        except OSError:
            await asyncio.sleep(0.01)


def _cannot_listen(place: str, why: str) -> BadInput:
    why = why.partition(" (")[0]
    return BadInput(f"cannot listen at {place} ({why}); take another --port or --host")
