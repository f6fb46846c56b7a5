"""The process around the app: the socket, and an end that leaves nobody waiting."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
import warnings

import uvicorn
from fastapi import FastAPI
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..core.errors import BadInput
from .batching import BatchingQueue

PATIENCE = 5.0  # seconds that the batch in work has left when the server is stopped
FAREWELL = 2  # seconds then for the last answers to leave
CONNECTIONS = 512  # open at once; more get 503
IDLE = 60.0  # seconds that a connection may be open without a request, whatever it drips meanwhile


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises BadInput where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise BadInput(f"cannot listen at {host}:{port} ({why}); take another --port or --host") from error
    # Connections inherit it; without, an answer in two packets takes 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def address(sock: socket.socket) -> str:
    """The address of a listening socket, as a client takes it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, queue: BatchingQueue, sock: socket.socket) -> None:
    """Answer until the process is stopped: KeyboardInterrupt for Ctrl-C, in the main thread."""
    make_server(app, queue).run(sockets=[sock])


def make_server(app: FastAPI, queue: BatchingQueue) -> uvicorn.Server:
    """What `serve` runs; it ends where `should_exit` is set."""
    # The limit on pixels is ours, and lower than the one at which Pillow begins to warn.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module="PIL")  # on each damaged file
    config = uvicorn.Config(
        app,
        http=H11Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=FAREWELL,
    )
    return _Server(config, queue)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, queue: BatchingQueue):
        super().__init__(config)
        self.queue = queue
        self.idle: dict[tuple[object, object], float] = {}

    @property
    def connections(self) -> list[H11Protocol]:
        return [made for made in self.server_state.connections if isinstance(made, H11Protocol)]

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self._hang_up()
        return await super().on_tick(counter)

    def _hang_up(self) -> None:
        """On those who have been connected for `IDLE` seconds since their last request, if any."""
        now, idle = time.monotonic(), {}
        for connection in self.connections:
            last = connection.cycle
            if last is None or last.response_complete:
                idle[connection, last] = since = self.idle.get((connection, last), now)
                if now - since > IDLE:
                    connection.transport.abort()
        self.idle = idle

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self.queue.close, PATIENCE)
        for connection in self.connections:
            if connection.cycle is not None and connection.cycle.more_body:
                connection.transport.abort()  # a request that still comes in is one too late
        await super().shutdown(sockets)
