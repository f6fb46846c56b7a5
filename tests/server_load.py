"""Load on a reward server: honest clients beside connections that keep it busy on purpose.

Sockets are plain asyncio streams, so that a thousand of them cost this machine little.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHUNK = 2**18  # bytes of a body that are sent before other coroutines have their turn


@dataclass
class Answers:
    """What some clients were answered: seconds and statuses; 0 stands for no answer."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    texts: Counter = field(default_factory=Counter)

    def add(self, started: float, status: int, text: str = "") -> None:
        self.seconds.append(time.monotonic() - started)
        self.statuses[status] += 1
        if status != 200:
            self.texts[text[:200]] += 1

    def __str__(self) -> str:
        if not self.seconds:
            return "none"
        order = sorted(self.seconds)
        middle, slowest = order[len(order) // 2], order[-1]
        found = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        return f"{len(order)} requests ({found}), median {middle:.2f} s, slowest {slowest:.2f} s"


class Load:
    """Coroutines that put load on the server at `url` until they are cancelled."""

    def __init__(self, url: str, body: bytes):
        parts = urlsplit(url)
        self.host, self.port, self.body = parts.hostname, parts.port, body

    async def ask(self, answers: Answers, body: bytes | None = None, source: str = "127.0.0.1") -> int:
        """One request on a connection of its own, from the address `source`."""
        body = self.body if body is None else body
        started, status, text, writer = time.monotonic(), 0, "", None
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=(source, 0))
            writer.write(head(len(body)))
            for start in range(0, len(body), CHUNK):
                writer.write(body[start : start + CHUNK])
                await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            status = int(answer[9:12])
            size = int(re.search(rb"content-length: (\d+)", answer.lower())[1])
            text = (await reader.readexactly(size)).decode()
        except (OSError, EOFError) as error:
            text = repr(error)
        finally:
            if writer is not None:
                writer.close()
        answers.add(started, status, text)
        return status

    async def client(self, answers: Answers, wait: float = 0.0, source: str = "127.0.0.1") -> None:
        """Requests one after another, `wait` seconds apart; a second after a refusal, as it asks for."""
        while True:
            status = await self.ask(answers, source=source)
            await asyncio.sleep(wait if status == 200 else 1.0)

    async def hold(self, first: bytes, drip: bytes = b"", every: float = 0.5) -> None:
        """A connection that sends `first`, then `drip` now and then; when it is closed, another one."""
        while True:
            writer = None
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
                writer.write(first)
                while not reader.at_eof():
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(reader.read(1000), every)
                    if drip:
                        writer.write(drip)
                        await writer.drain()
            except OSError:
                pass
            finally:
                if writer is not None:
                    writer.close()
            await asyncio.sleep(0.1)

    def besiege(self, half_open: int, dripping: int) -> list[Coroutine[Any, Any, None]]:
        """Connections that say half a line and wait, and some that send a letter now and then, half of them
        in the headers and half in the body."""
        heads = [self.hold(b"POST /score HTTP/1.1\r\nX: ", b"x") for _ in range(dripping // 2)]
        bodies = [self.hold(head(10**6), b" ") for _ in range(dripping - dripping // 2)]
        return [self.hold(b"POST /sc") for _ in range(half_open)] + heads + bodies


def head(size: int) -> bytes:
    """The headers of a request with a body of `size` bytes."""
    lines = ["POST /score HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode()


async def for_seconds(seconds: float, works: list[Coroutine[Any, Any, Any]]) -> None:
    """Runs coroutines together, and cancels them after so many seconds. Raises the first error of theirs."""
    tasks = [asyncio.ensure_future(work) for work in works]
    await asyncio.sleep(seconds)
    pending = set(tasks)
    while pending:  # wait_for of Python 3.11 can lose a cancellation
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)
    for task in tasks:
        if not task.cancelled():
            task.result()


class ServerProcess:
    """`reprise serve rewards` in a process of its own."""

    def __init__(self, *words: str, env: dict[str, str] | None = None):
        command = [sys.executable, "-m", "reprise", "serve", "rewards", "--port", "0", *words]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        line = self.process.stderr.readline()
        found = re.search(r" at (http://\S+);", line)
        assert found, line + self.process.stderr.read()
        self.url = found[1]
        self.resident = self._status("VmRSS")

    def _status(self, name: str) -> int:
        """MiB of this process's memory, as Linux counts it."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) // 1024

    def grown(self) -> int:
        """MiB by which its memory grew at most since it listened."""
        return self._status("VmHWM") - self.resident

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> float:
        """Seconds that it takes to stop."""
        started = time.monotonic()
        self.process.terminate()
        self.process.communicate(timeout=30)
        return time.monotonic() - started


def score_request(*pictures: str, prompt: str = "a red circle") -> bytes:
    words = {"images": pictures, "prompts": [prompt] * len(pictures), "rewards": ["shapeworld"]}
    return json.dumps(words).encode()
