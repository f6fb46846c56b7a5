"""The process around the app: Granian's embedded server, and a shutdown that leaves no client waiting.

Granian's own options bound the time and the size of a request's headers and the number of connections; the
app bounds bodies (`app.py`). Uvicorn has no limit on the time that headers take; Hypercorn never closes a
connection whose large body was refused unread.
"""

from __future__ import annotations

import asyncio
import ipaddress
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
CONNECTIONS = 768  # open at once, below the 1024 files that Linux lets a process open; others wait
HEADER_SECONDS = 10.0  # until a request's headers are complete, also from the end of the one before
HEADER_BYTES = 64 * 2**10
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
            backlog=CONNECTIONS,
            backpressure=CONNECTIONS,
            http1_settings=HTTP1Settings(
                header_read_timeout=int(1000 * HEADER_SECONDS), max_buffer_size=HEADER_BYTES
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


async def _wait_until_listening(host: str, port: int) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    while True:
        try:
            _, writer = await asyncio.open_connection(reachable, port)
            return writer.close()
        except OSError:
            await asyncio.sleep(0.01)


def _cannot_listen(place: str, why: str) -> BadInput:
    why = why.partition(" (")[0]
    return BadInput(f"cannot listen at {place} ({why}); take another --port or --host")
