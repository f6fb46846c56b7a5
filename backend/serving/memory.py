"""How much memory requests may hold together: their bodies, from the first byte to the answer.

A request that would not fit is refused at once; waiting would keep what it already holds. No request may
take more than it leaves, to the other requests of its address and to those of other addresses: however many
large ones there are, small ones still fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from .batching import ADDRESS_SHARE, QueueFull


@dataclass
class Memory:
    """`limit` bytes for the bodies of all requests. Not locked: for the event loop's thread alone."""

    limit: int = 2**29

    def __post_init__(self) -> None:
        self.held: Counter[str] = Counter()  # by address

    @property
    def largest(self) -> int:
        """Bytes of the largest body that an idle server takes."""
        return self.limit // ADDRESS_SHARE // 2

    @contextmanager
    def lease(self, address: str) -> Generator[Lease]:
        """Bytes for a request from `address`, given back at the end."""
        lease = Lease(self, address)
        try:
            yield lease
        finally:
            lease.release()


@dataclass
class Lease:
    """The bytes that one request holds."""

    memory: Memory
    address: str
    size: int = 0

    def check(self, more: int) -> None:
        """Raises QueueFull where `more` bytes do not fit now."""
        limit, held = self.memory.limit, self.memory.held
        left = min(limit - held.total(), limit // ADDRESS_SHARE - held[self.address]) - more
        if self.size + more > left:
            raise QueueFull("the requests in work hold too much memory for this one; try again later")

    def grow(self, more: int) -> None:
        """Take `more` bytes. Raises QueueFull where they do not fit."""
        self.check(more)
        self.size += more
        self.memory.held[self.address] += more

    def release(self) -> None:
        """Give all back."""
        self.memory.held[self.address] -= self.size
        if not self.memory.held[self.address]:
            del self.memory.held[self.address]
        self.size = 0
