"""A fake OpenAI-compatible endpoint on this machine, which sends the responses that a test sets."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import pytest

from .servers import QuietServer

MODEL = "tiny-chat"
GOOD = "<reason>one cat, in the middle</reason><prompt>a grey cat on a red sofa</prompt>"


@dataclass
class Play:
    """One response. A `body` of bytes is sent as it is, another as JSON. `delay` is in seconds before the
    response, `linger` before the connection is closed."""

    body: object
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    linger: float = 0.0


def answer(text, finish="stop", **play) -> Play:
    """A good response with the answer `text`."""
    message = {"role": "assistant", "content": text}
    return Play({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}, **play)


def refusal(status, message, **more) -> Play:
    return Play({"error": {"message": message, **more}}, status)


@dataclass
class Request:
    path: str
    headers: dict
    body: dict | None


class FakeEndpoint:
    """Gives the responses `plays` in turn, then the last one for ever. `requests` are the received requests.

    A play may also be a function from the request's JSON to a `Play`. Port 0 is a free one.
    """

    def __init__(self, *plays, port=0):
        self.plays = list(plays) or [answer(GOOD)]
        self.models: Play = Play({"object": "list", "data": [{"id": MODEL}, {"id": "big-chat"}]})
        self.requests: list[Request] = []
        self.busy = self.max_busy = self.hung_up = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            counted = False

            def leave(self):
                """Count this request as done, before its client has the answer and can send the next one."""
                with outer._lock:
                    outer.busy -= self.counted
                    self.counted = False

            def do_GET(self):
                self.reply(outer.models if self.path == "/v1/models" else Play(b"page not found", 404))

            def do_POST(self):
                raw = self.rfile.read(length := int(self.headers["Content-Length"]))
                if len(raw) < length:
                    return  # the client hung up in the middle
                body = json.loads(raw)
                with outer._lock:
                    outer.requests.append(Request(self.path, dict(self.headers), body))
                    outer.busy += 1
                    self.counted = True
                    outer.max_busy = max(outer.max_busy, outer.busy)
                    play = outer.plays.pop(0) if len(outer.plays) > 1 else outer.plays[0]
                try:
                    if self.path != "/v1/chat/completions":
                        play = Play(b"404 page not found", 404)
                    self.reply(play(body) if callable(play) else play)
                finally:
                    self.leave()

            def reply(self, play: Play):
                if play.delay and self.wait_or_hang_up(play.delay):
                    return
                raw = play.body if isinstance(play.body, bytes) else json.dumps(play.body).encode()
                self.leave()
                try:
                    self.send_response(play.status)
                    for name, value in {"Content-Length": str(len(raw)), **play.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    with outer._lock:
                        outer.hung_up += 1
                if play.linger:
                    self.wait_or_hang_up(play.linger)

            def wait_or_hang_up(self, seconds: float) -> bool:
                """Wait; returns True if the client closed the connection meanwhile."""
                end = time.monotonic() + seconds
                self.connection.setblocking(False)
                while time.monotonic() < end:
                    try:
                        if self.connection.recv(1, socket.MSG_PEEK) == b"":
                            raise ConnectionError
                    except BlockingIOError:
                        time.sleep(0.02)
                    except OSError:
                        with outer._lock:
                            outer.hung_up += 1
                        self.close_connection = True
                        return True
                self.connection.setblocking(True)
                return False

            def log_message(self, *arguments):
                pass

        self.server = QuietServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def playing(*plays):
    """A running endpoint."""
    made = FakeEndpoint(*plays)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def endpoint():
    with playing() as made:
        yield made


def closed_url() -> str:
    """An address on this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"
