"""Bodies of requests: bounded in size, in time, and in the memory that all of them hold together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from .batching import QueueFull
from .memory import Lease

BODY_SECONDS = 5.0  # that a body may pause, or lag behind BODY_RATE
BODY_RATE = 2**18  # bytes a second: 2 Mbit/s
DISCARD_FACTOR = 4  # times the limit: how much of a refused body is read, so that its sender sees why


async def read_body(request: Request, lease: Lease, most: int) -> bytearray:
    """The body of a request, whose bytes `lease` holds.

    Raises HTTPException where it has more than `most` bytes (413), comes too slowly (408) or breaks off
    (400), and QueueFull where `lease` cannot hold it, or the server stops before it is complete.
    """
    body = _Body(request, lease, most)
    reading = asyncio.ensure_future(body.read())
    stopping = asyncio.ensure_future(request.app.state.stopping.wait())
    try:
        while (left := body.deadline - time.monotonic()) > 0:
            await asyncio.wait({reading, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if stopping.done():
                raise QueueFull("the server is stopping")
        raise body.refusal or HTTPException(
            408, f"the body came more slowly than {BODY_RATE:,} bytes a second"
        )
    finally:
        reading.cancel()
        stopping.cancel()


class _Body:
    """A body as it comes. Of one that is refused the rest is read and thrown away."""

    def __init__(self, request: Request, lease: Lease, most: int):
        self.request, self.lease, self.most = request, lease, most
        self.deadline = time.monotonic() + BODY_SECONDS
        self.content, self.size = bytearray(), 0
        self.refusal: HTTPException | QueueFull | None = None

    async def read(self) -> bytearray:
        self._bound(self._declared())
        self._hold(self.lease.check, self._declared())
        try:
            async for chunk in self.request.stream():
                more = len(chunk)
                self.deadline = min(self.deadline + more / BODY_RATE, time.monotonic() + BODY_SECONDS)
                self.size += more
                self._bound(self.size)
                if self._hold(self.lease.grow, more):
                    self.content += chunk
        except ClientDisconnect as error:
            raise HTTPException(400, "the body broke off") from error  # or HTTP/1.1 encodes it otherwise
        if self.refusal is not None:
            raise self.refusal
        return self.content

    def _declared(self) -> int:
        text = self.request.headers.get("content-length", "")[:18]  # digits enough for any size
        return int(text) if text.isdecimal() else 0

    def _bound(self, size: int) -> None:
        """Refuse a body of `size` bytes where that is too many, at once where it is not worth reading."""
        if size > self.most:
            self._refuse(
                HTTPException(413, f"the body has more than {self.most:,} bytes; send fewer pictures")
            )
        if self.refusal is not None and size > DISCARD_FACTOR * self.most:
            raise self.refusal

    def _hold(self, hold: Callable[[int], None], more: int) -> bool:
        """Whether the body is still wanted after `hold(more)`, of its lease."""
        if self.refusal is None:
            try:
                hold(more)
            except QueueFull as full:
                self._refuse(full)
        return self.refusal is None

    def _refuse(self, refusal: HTTPException | QueueFull) -> None:
        self.refusal = self.refusal or refusal
        self.lease.release()
        self.content.clear()
