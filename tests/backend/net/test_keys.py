"""Keys reach the address that the user named, and nothing else: no other host, no log, no message, no file.

The servers here are real ones on this machine. One sends its clients on to another, the thief.
"""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler

import pytest
import torch

from reprise.backend.core.errors import EndpointError, RewardFailed
from reprise.backend.net import chat_client, http
from reprise.backend.net.chat_client import ChatRequest, Endpoint
from reprise.backend.net.http import fetch
from reprise.backend.rewards import remote
from reprise.backend.rewards.published import download

from ...servers import QuietServer

KEY = "sk-never-to-be-seen-0123456789"
REDIRECTS = (301, 302, 303, 307, 308)
CARD = {"name": "far", "low": 0, "high": 1, "higher_is_better": True, "reads": "images", "critic": False}
CATALOGUE = {"rewards": [CARD], "limits": {"images": 4, "pixels": 10**6, "body": 10**6}}


class Place:
    """A server that notes its requests; `answer` (method, path) -> (status, headers, body)."""

    def __init__(self):
        place, self.requests = self, []
        self.answer = lambda method, path: (200, {}, b"{}")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                place.requests.append((self.command, self.path, dict(self.headers)))
                status, headers, body = place.answer(self.command, self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_POST = do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def named():
    made = Place()
    yield made
    made.close()


@pytest.fixture
def thief():
    made = Place()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setattr(http, "FIRST_RETRY_SECONDS", 0.01)
    for name in ("REPRISE_ENDPOINT_KEY", "OPENAI_API_KEY", "REPRISE_SERVE_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, KEY)


def ask(url):
    return Endpoint(url, "model", retries=0).complete([ChatRequest([{"role": "user", "content": "a"}])])


@pytest.mark.parametrize("status", REDIRECTS)
def test_no_client_follows_a_server_that_sends_it_elsewhere(named, thief, status):
    named.answer = lambda method, path: (status, {"Location": f"{thief.url}/stolen"}, b"")
    assert fetch(named.url, "path", key=KEY, timeout=5.0, max_bytes=1000).status == status
    with pytest.raises(EndpointError, match="has moved to"):
        ask(named.url)
    with pytest.raises(EndpointError, match="is no reward server"):
        remote.connect(named.url, "far", retries=0)
    assert [headers["Authorization"] for _, _, headers in named.requests] == [f"Bearer {KEY}"] * 3
    assert thief.requests == []


def test_a_reward_server_that_moves_later_is_not_followed_either(named, thief):
    def answer(method, path):
        if path == "/rewards":
            return 200, {}, json.dumps(CATALOGUE).encode()
        return 307, {"Location": f"{thief.url}/score"}, b""

    named.answer = answer
    with pytest.raises(EndpointError, match="is no reward server"):
        remote.connect(named.url, "far", retries=0).score(torch.zeros(1, 4, 4, 3), ["a"])
    assert thief.requests == []


def test_a_hub_that_sends_a_download_elsewhere_keeps_its_token_to_itself(named, thief, monkeypatch, tmp_path):
    """As Hugging Face does: the file lies on another host, which has no business with the token."""
    content = b"weights"

    def answer(method, path):
        headers = {
            "ETag": '"' + "a" * 40 + '"',
            "X-Repo-Commit": "c" * 40,
            "X-Linked-Size": str(len(content)),
        }
        return 302, {**headers, "Location": f"{thief.url}/file"}, b""

    named.answer, thief.answer = answer, lambda method, path: (200, {}, content)
    monkeypatch.setenv("HF_ENDPOINT", named.url)
    file = download.PublishedFile("folder", "weights.bin", len(content), "owner/model")
    assert download._download(file, tmp_path).read_bytes() == content
    assert f"Bearer {KEY}" in [headers.get("authorization") for headers in lower_case(named)]
    assert thief.requests and not any("authorization" in headers for headers in lower_case(thief))


def lower_case(place):
    return [{name.lower(): value for name, value in headers.items()} for _, _, headers in place.requests]


def test_no_key_in_any_log(named, caplog):
    """Not even where everything is logged, of every library."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "asyncio", "reprise"):
        caplog.set_level(logging.DEBUG, logger=name)
    named.answer = lambda method, path: (500, {}, b"no")
    with pytest.raises(EndpointError):
        ask(named.url)
    with pytest.raises(EndpointError):
        remote.connect(named.url, "far", retries=1)
    assert named.requests[0][2]["Authorization"] == f"Bearer {KEY}"
    assert caplog.records and KEY not in caplog.text


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_no_key_in_messages_though_the_server_sends_it_back(named, status):
    named.answer = lambda method, path: (
        status,
        {"Location": KEY},
        f'{{"detail": "you sent {KEY}"}}'.encode(),
    )
    for call in (lambda: ask(named.url), lambda: remote.connect(named.url, "far", retries=0)):
        with pytest.raises(EndpointError) as caught:
            call()
        assert KEY not in str(caught.value)


def test_no_key_in_the_message_of_a_served_reward(named):
    error = {"blame": "reward", "message": f"failed with {KEY}"}
    answers = {
        "/rewards": CATALOGUE,
        "/score": {"scores": {}, "errors": {"far": error}},
    }
    named.answer = lambda method, path: (200, {}, json.dumps(answers[path]).encode())
    with pytest.raises(RewardFailed) as caught:
        remote.connect(named.url, "far").score(torch.zeros(1, 4, 4, 3), ["a"])
    assert KEY not in str(caught.value) and "(the key)" in str(caught.value)
    answers["/score"] = {"scores": {"far": [KEY]}, "errors": {}}
    with pytest.raises(EndpointError) as wrong:
        remote.connect(named.url, "far").score(torch.zeros(1, 4, 4, 3), ["a"])
    assert KEY not in str(wrong.value)


def test_no_key_where_a_client_is_shown(named):
    named.answer = lambda method, path: (200, {}, json.dumps(CATALOGUE).encode())
    reward = remote.connect(named.url, "far")
    shown = [repr(reward), repr(reward.client), repr(Endpoint(named.url, "model")), repr(reward.spec)]
    assert reward.client.key == KEY and not any(KEY in text for text in shown)
    assert not hasattr(chat_client.Endpoint(named.url, "model"), "key")  # it is read when a request is sent
