"""`reprise serve rewards`, and what clients do to it: honest requests are answered as ever."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from PIL import Image

from .harness import ALTERED, BROKEN, LOST, REFUSED, STOPPED, SURVIVED, Bench, Outcome
from .process import run
from .services import Rewards

PATIENCE = 2.0  # seconds that an honest request may take
NAME = "serve rewards"


def _png(size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(file, "PNG")
    return file.getvalue()


def _body(picture: bytes = _png(), **more: object) -> bytes:
    encoded = base64.b64encode(picture).decode()
    request = {"images": [encoded], "prompts": ["a red circle"], "rewards": ["redness"], **more}
    return json.dumps(request).encode()


def _bomb() -> bytes:
    """A PNG of a few bytes whose header promises 900 million pixels."""
    data = bytearray(_png())
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@contextmanager
def _served(bench: Bench) -> Iterator[Rewards]:
    server = Rewards(bench.folder, "redness")
    try:
        yield server
    finally:
        server.stop()


def _post(server: Rewards, body: bytes, path: str = "score", **headers: str) -> httpx.Response:
    sent = {"Content-Type": "application/json", **headers}
    return httpx.post(f"{server.url}/{path}", content=body, headers=sent, timeout=20, trust_env=False)


def _scores(server: Rewards) -> object:
    """The answer to an honest request, which takes no longer than `PATIENCE`."""
    begun = time.monotonic()
    answer = _post(server, _body())
    took = time.monotonic() - begun
    assert answer.status_code == 200, f"an honest request: {answer.status_code} {answer.text[:200]}"
    assert took < PATIENCE, f"an honest request took {took:.1f} s"
    return answer.json()["scores"]


def ended(bench: Bench, name: str) -> Outcome:
    """The server is ended by a signal and started again at its port."""
    with _served(bench) as server:
        expected = _scores(server)
        server.process.send(getattr(signal, name))
        gone = server.process.wait(20)
        said = gone.stderr.strip().splitlines()[-1:]
        if name in STOPPED and (gone.code != STOPPED[name] or len(gone.refusals) != 1 or gone.crashed):
            return Outcome(BROKEN, f"exit {gone.code}: {said}")
        server.start()
        return Outcome(SURVIVED) if _scores(server) == expected else Outcome(ALTERED)


def taken(bench: Bench) -> Outcome:
    """A second server is started at its port."""
    with _served(bench) as server:
        expected = _scores(server)
        second = run(["serve", "rewards", "--port", str(server.port), "--reward", "redness"], bench.folder)
        if second.crashed or second.code != 2 or len(second.refusals) != 1:
            return Outcome(BROKEN, f"exit {second.code}: {second.stderr[-300:]}")
        return Outcome(REFUSED) if _scores(server) == expected else Outcome(ALTERED)


def asked(bench: Bench, request: Callable[[Rewards], httpx.Response]) -> Outcome:
    """A request that cannot be answered is refused on one line, and the next honest one is answered."""
    with _served(bench) as server:
        expected = _scores(server)
        answer = request(server)
        if not 400 <= answer.status_code < 500:
            return Outcome(BROKEN, f"status {answer.status_code}: {answer.text[:200]}")
        detail = answer.json().get("detail", "")
        if not detail or "\n" in detail or "Traceback" in detail:
            return Outcome(BROKEN, f"no line of why: {answer.text[:200]}")
        return Outcome(REFUSED, detail) if _scores(server) == expected else Outcome(ALTERED)


def pestered(bench: Bench, pester: Callable[[Rewards], list[socket.socket]]) -> Outcome:
    """Clients that hold connections, or leave them: an honest request is answered meanwhile and after."""
    with _served(bench) as server:
        expected = _scores(server)
        held = pester(server)
        try:
            meanwhile = _scores(server)
        except (AssertionError, httpx.HTTPError) as error:
            return Outcome(LOST, f"meanwhile: {error}")
        finally:
            for one in held:
                one.close()
        return Outcome(SURVIVED) if meanwhile == expected == _scores(server) else Outcome(ALTERED)


def paused(bench: Bench) -> Outcome:
    """The server stands still for a second while a request waits."""
    with _served(bench) as server:
        expected = _scores(server)
        server.process.pause(1)
        return Outcome(SURVIVED) if _scores(server) == expected else Outcome(ALTERED)


def _connected(server: Rewards, count: int, data: bytes = b"") -> list[socket.socket]:
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(count)]
    for one in held:
        one.sendall(data)
    return held


def _left(server: Rewards, data: bytes) -> list[socket.socket]:
    for one in _connected(server, 20, data):
        one.close()
    return []


HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(_body()) + _body()

REQUESTS: dict[str, Callable[[Rewards], httpx.Response]] = {
    "a body that is no JSON": lambda server: _post(server, b"]garbage["),
    "a body of bad UTF-8": lambda server: _post(server, b'{"images": ["\xff\xfe"]}'),
    "an empty body": lambda server: _post(server, b""),
    "a picture cut in half": lambda server: _post(server, _body(_png()[:40])),
    "a picture that is none": lambda server: _post(server, _body(b"GIF89a")),
    "a picture of 900 million pixels": lambda server: _post(server, _body(_bomb())),
    "a reward that is not served": lambda server: _post(server, _body(rewards=["beauty"])),
    "more pictures than prompts": lambda server: _post(server, _body(prompts=[])),
    "a body of 65 MiB": lambda server: _post(server, b" " * (65 * 2**20)),
    "nesting 100,000 deep": lambda server: _post(server, b"[" * 100_000),
}

PESTS: dict[str, Callable[[Rewards], list[socket.socket]]] = {
    "100 connections that say nothing": lambda server: _connected(server, 100),
    "50 half a header": lambda server: _connected(server, 50, HEAD),
    "20 half a body": lambda server: _connected(server, 20, WHOLE[:-20]),
    "20 that leave inside the body": lambda server: _left(server, WHOLE[:-20]),
    "20 that leave before their answer": lambda server: _left(server, WHOLE),
    "20 that speak no HTTP": lambda server: _connected(server, 20, b"\x16\x03\x01 hello \x00\xff\r\n\r\n"),
}
