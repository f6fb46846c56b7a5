"""The one HTTP client: its proxy, certificates, headers and retries; and that it is the only one."""

import asyncio
import re
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from reprise.backend.net import background, http
from reprise.backend.net.background import run_in_thread
from reprise.backend.net.http import (
    FaultKind,
    HttpClient,
    HttpFault,
    fetch,
    quote,
    tls_context,
    websocket_options,
)

from ...fake_endpoint import closed_url
from ...servers import QuietServer

ROOT = Path(__file__).parents[3]
LIMITS = {"timeout": 5.0, "max_bytes": 1000}


@pytest.fixture
def server():
    """Sends `server.answers` (status, headers, body) in turn, the last for ever; `server.seen`: requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            made.seen.append((self.path, dict(self.headers)))
            status, headers, body = made.answers.pop(0) if len(made.answers) > 1 else made.answers[0]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    made = QuietServer(("127.0.0.1", 0), Handler)
    made.seen, made.answers = [], [(200, {}, b"{}")]
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(http, "FIRST_RETRY_SECONDS", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_headers_and_answer(server):
    server.answers = [(200, {"X-One": "1"}, b'{"a": 1}')]
    answer = fetch(server.url, "path", params={"q": "a b"}, key="secret", **LIMITS)
    assert (answer.status, answer.json, answer.headers["x-one"], answer.tries) == (200, {"a": 1}, "1", 1)
    [(path, headers)] = server.seen
    assert path == "/path?q=a+b"
    assert re.fullmatch(r"reprise/\d+\.\d+\.\d+", headers["User-Agent"])
    assert headers["Accept-Encoding"] == "identity" and headers["Authorization"] == "Bearer secret"
    assert "secret" not in repr(HttpClient(server.url, key="secret", **LIMITS))


def test_the_environments_proxy_is_for_other_machines_alone(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    assert fetch("http://elsewhere.example:1", "path", **LIMITS).status == 200
    assert server.seen[0][0] == "http://elsewhere.example:1/path"
    with pytest.raises(HttpFault, match="UNREACHABLE"):  # not by the proxy, which would answer
        fetch(closed_url(), "path", **LIMITS)
    monkeypatch.setenv("NO_PROXY", "elsewhere.example")
    with pytest.raises(HttpFault):
        fetch("http://elsewhere.example:1", "path", **LIMITS)
    assert len(server.seen) == 1


def test_websockets_follow_the_same_rules():
    assert websocket_options("http://127.0.0.1:8188") == {"open_timeout": 10.0, "proxy": None, "ssl": None}
    secure = websocket_options("https://elsewhere.example")
    assert secure["proxy"] is True and secure["ssl"] is tls_context()
    assert tls_context().verify_mode == ssl.CERT_REQUIRED and tls_context().check_hostname


def test_waits_double_and_the_servers_own_wait_counts(server, monkeypatch):
    waits, plain = [], asyncio.sleep

    async def sleep(seconds):
        waits.append(seconds)
        await plain(0)

    monkeypatch.setattr(http.asyncio, "sleep", sleep)
    monkeypatch.setattr(http, "FIRST_RETRY_SECONDS", 8.0)
    server.answers = [(503, {}, b""), (429, {"Retry-After": "19"}, b""), (500, {}, b""), (200, {}, b"")]
    assert fetch(server.url, "", retries=5, **LIMITS).tries == 4
    assert waits == [8.0, 19.0, 20.0]
    server.answers = [(503, {"Retry-After": "21"}, b"later")]
    assert fetch(server.url, "", retries=5, **LIMITS).message == "later"
    assert len(waits) == 3


@pytest.mark.parametrize("value", ["", "soon", "-5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_retry_after_that_is_not_a_number_of_seconds(server, value):
    server.answers = [(503, {"Retry-After": value}, b""), (200, {}, b"")]
    assert fetch(server.url, "", retries=1, **LIMITS).status == 200


def test_statuses_that_are_not_tried_again(server):
    for status in (301, 400, 401, 404, 422):
        server.answers, server.seen = [(status, {}, b"no")], []
        answer = fetch(server.url, "", retries=3, **LIMITS)
        assert (answer.status, answer.message, len(server.seen)) == (status, "no", 1)


def test_faults_say_what_happened(server):
    def fault(url=server.url, **limits):
        with pytest.raises(HttpFault) as caught:
            fetch(url, "", **{**LIMITS, **limits})
        return caught.value

    assert re.fullmatch(
        r"cannot reach S after 2 tries \('.*'\)", fault(closed_url(), retries=1).describe("S")
    )
    server.answers = [(200, {}, b"x" * 1001)]
    assert fault().describe("S") == "S answered with more than 1,000 bytes"
    server.answers = [(200, {"Content-Length": "100"}, b"x")]
    assert fault(retries=2).describe("S").startswith("S broke off after 3 tries ('peer closed connection")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        slow = fault(url, timeout=0.3, retries=3)
    assert slow.describe("S") == "S did not answer within 0.3 s" and slow.kind is FaultKind.TOO_SLOW


@pytest.mark.parametrize(
    "body,message",
    [
        (b'{"error": {"message": "a"}}', "a"),
        (b'[{"error": {"message": "b"}}]', "b"),
        (b'{"error": "c"}', "c"),
        (b'{"message": "d"}', "d"),
        (b'{"error": {}, "detail": "e"}', "e"),
        (b'{"error": 3}', '{"error": 3}'),
        (b"\xff<html>", "\ufffd<html>"),
    ],
)
def test_where_the_servers_message_is_found(server, body, message):
    server.answers = [(400, {}, body)]
    assert fetch(server.url, "", **LIMITS).message == message


def test_quotes_are_short_and_without_the_key():
    assert quote(b"a\n\x1b[31mb \xff") == "'a [31mb \ufffd'"
    assert quote("no sk-1 here", "sk-1") == "'no (the key) here'"
    assert len(quote("x" * 10**6)) == 202


def test_ctrl_c_ends_a_wait_within_a_fraction_of_a_second(monkeypatch):
    closed = threading.Event()

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            closed.set()

    def tick():
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_in_thread(work(), tick)
    assert closed.is_set() and time.monotonic() - started < 0.9
    assert background.POLL_SECONDS <= 0.1


def test_work_that_does_not_end_when_cancelled_is_left_behind():
    async def stubborn():
        for _ in range(20):
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                pass

    def tick():
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_in_thread(stubborn(), tick, patience=0.1)
    assert time.monotonic() - started < 1.5


def test_clients_are_made_in_one_place():
    makes = re.compile(
        r"httpx\.(Async)?Client\(|httpx\.(get|post|put|stream|request)\(|urlopen\(|import requests"
    )
    sources = [path for room in ("backend", "nodes") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 100
    assert [path.name for path in sources if makes.search(path.read_text())] == ["http.py"]
