"""What a reward server refuses so that it stays there for others: memory, time, addresses, web pages."""

import json
import socket
import struct
import sys
import threading
import time
import zlib

import httpx
import pytest
import torch
from PIL import Image

from reprise.backend.core.errors import BadInput
from reprise.backend.net.reward_protocol import Limits
from reprise.backend.serving import app as app_module
from reprise.backend.serving import body as body_module
from reprise.backend.serving import server as server_module
from reprise.backend.serving.access import address_of
from reprise.backend.serving.batching import BatchingQueue, QueuedRequest, QueueFull
from reprise.backend.serving.memory import Memory
from reprise.backend.serving.pictures import PictureFile, checked, decoded

from ...reward_server import Brightness, Gate, encoded, serving

JSON = {"Content-Type": "application/json"}
HEAD = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GREY = encoded(Image.new("L", (8, 4), 128))


def body_of(*images, rewards=("brightness",), prompt="a"):
    return json.dumps({"images": images, "prompts": [prompt] * len(images), "rewards": rewards}).encode()


def post(made, body, **options):
    return made.http.post("/score", content=body, headers={**JSON, **options.pop("headers", {})})


def refused(response, status, part):
    assert response.status_code == status, response.text
    assert part in response.json()["detail"], response.text


def connected(made, source=None):
    address = httpx.URL(made.url)
    place = (source, 0) if source else None
    return socket.create_connection((address.host, address.port), timeout=20, source_address=place)


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def server():
    with serving(Brightness()) as made:
        yield made


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8009", "[::1]:8009", "127.1.2.3", "a.localhost:1"])
def test_programs_on_this_machine_are_answered(server, host):
    assert post(server, body_of(GREY), headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8009", "127.0.0.1.evil.example", "192.168.0.9", "", "[::1"],
)
@pytest.mark.parametrize("path", ["health", "rewards", "score"])
def test_a_foreign_host_name_that_leads_here_is_refused(server, host, path):
    """DNS rebinding: the browser believes that it talks to the page's own server."""
    method = "POST" if path == "score" else "GET"
    response = server.http.request(method, f"/{path}", content=b"", headers={**JSON, "Host": host})
    refused(response, 421, "answers only as localhost or 127.0.0.1")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000"])
def test_web_pages_are_refused(server, origin):
    refused(post(server, body_of(GREY), headers={"Origin": origin}), 403, "does not answer web pages")
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    response = server.http.options("/score", headers=preflight)
    assert response.status_code >= 400 and not any("access-control" in name for name in response.headers)


def test_with_a_key_any_name_will_do():
    with serving(Brightness(), key="word") as made:
        names = {"Host": "judges.example", "Authorization": "Bearer word"}
        assert post(made, body_of(GREY), headers=names).status_code == 200
        refused(post(made, body_of(GREY), headers={"Host": "judges.example"}), 401, "key")


@pytest.mark.parametrize(
    "client,address",
    [("10.0.0.1", "10.0.0.1"), ("2001:db8::1:2", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64"), (None, "")],
)
def test_the_address_that_limits_count(client, address):
    from starlette.requests import Request

    scope = {"type": "http", "client": client and (client, 1), "headers": [(b"x-forwarded-for", b"1.2.3.4")]}
    assert address_of(Request(scope)) == address


def test_no_request_takes_more_memory_than_it_leaves():
    memory = Memory(1600)
    assert memory.largest == 400
    with memory.lease("a") as one, memory.lease("a") as two, memory.lease("b") as three:
        one.grow(400)
        with pytest.raises(QueueFull, match="too much memory"):
            two.grow(201)
        two.grow(200)  # of the 400 that are left to this address
        with pytest.raises(QueueFull):
            two.grow(1)
        three.grow(400)  # another address has as much
        assert memory.held == {"a": 600, "b": 400}
        two.release()
        two.grow(100)
    assert not memory.held


def test_bodies_of_all_requests_together_are_bounded():
    """Two large ones do not fit together, a small one does; the refused one fits when the other is done."""
    gate, memory = Gate(), Memory(400_000)
    large = body_of(encoded(Image.effect_noise((230, 230), 90)), rewards=["gate"])
    assert 60_000 < len(large) < memory.largest
    with serving(gate, memory=memory) as made:
        statuses = []
        first = threading.Thread(target=lambda: statuses.append(post(made, large).status_code))
        first.start()
        assert gate.entered.wait(10)
        full = post(made, large)
        refused(full, 503, "hold too much memory")
        assert full.headers["Retry-After"] == "1" and memory.held.total() == len(large)
        small = threading.Thread(
            target=lambda: statuses.append(post(made, body_of(GREY, rewards=["gate"])).status_code)
        )
        small.start()
        wait_for(lambda: len(made.queue) == 1)
        gate.open.set()
        first.join(10), small.join(10)
        assert statuses == [200, 200] and not memory.held
        assert post(made, large).status_code == 200


def test_a_large_body_whose_size_is_not_declared_is_bounded_too():
    def parts():
        for _ in range(30):
            yield b" " * 10_000

    memory = Memory(400_000)
    with serving(Brightness(), memory=memory) as made:
        refused(made.http.post("/score", content=parts(), headers=JSON), 503, "hold too much memory")
        assert not memory.held


def test_memory_is_given_back_where_a_client_breaks_off_or_is_refused(monkeypatch):
    monkeypatch.setattr(body_module, "BODY_SECONDS", 0.2)
    memory = Memory()
    with serving(Brightness(), memory=memory) as made:
        with connected(made) as sock:
            sock.sendall(HEAD + b"Content-Length: 90000\r\n\r\n" + b" " * 1000)
            wait_for(lambda: memory.held.total() == 1000)
        wait_for(lambda: not memory.held)
        for wrong in (b"{", b" " * 9, body_of("x"), body_of(GREY, rewards=["none"])):
            assert post(made, wrong).status_code in (400, 422)
            assert not memory.held


def test_a_body_that_pauses_or_drips(monkeypatch):
    monkeypatch.setattr(body_module, "BODY_SECONDS", 0.3)

    def drip(first=b"{", seconds=0.05):
        yield first
        for _ in range(100):
            threading.Event().wait(seconds)
            yield b" "

    with serving(Brightness()) as made:
        for parts in (drip(), drip(seconds=0.6), drip(b" " * 2**20)):  # a fast start is no credit for later
            started = time.monotonic()
            try:
                refused(made.http.post("/score", content=parts, headers=JSON), 408, "came more slowly")
            except httpx.TransportError:  # the server has hung up while the client sent
                pass
            assert time.monotonic() - started < 3


def test_a_slow_but_steady_body_is_taken(monkeypatch):
    """It takes longer than it may pause."""
    monkeypatch.setattr(body_module, "BODY_SECONDS", 1.0)

    def parts():
        for _ in range(5):
            yield b" " * body_module.BODY_RATE
            threading.Event().wait(0.3)
        yield body_of(GREY)

    with serving(Brightness()) as made:
        assert made.http.post("/score", content=parts(), headers=JSON).status_code == 200


def test_a_client_that_sends_many_requests_and_reads_no_answer_is_closed(server):
    with connected(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        with pytest.raises(OSError):
            for _ in range(100_000):
                sock.sendall(b"GET /rewards HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)


@pytest.mark.skipif(sys.platform == "darwin", reason="has no 127.0.0.2")
def test_one_address_takes_half_of_the_queue_and_waits_for_no_other():
    """Clients of 127.0.0.1 send more than they may; the one of 127.0.0.2 is served after the one in work."""
    gate = Gate()
    order = []
    with serving(gate, waiting=8, batch=1) as made:

        def ask(source, prompt):
            body = body_of(GREY, rewards=["gate"], prompt=prompt)
            with connected(made, source) as sock:
                sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                order.append((source, sock.recv(12)[9:]))

        threads = [threading.Thread(target=ask, args=("127.0.0.1", "first"))]
        threads[0].start()
        assert gate.entered.wait(10)
        threads += [threading.Thread(target=ask, args=("127.0.0.1", "more")) for _ in range(6)]
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: len(made.queue) == 4 and len(order) == 2)
        assert order == [("127.0.0.1", b"503")] * 2
        threads.append(threading.Thread(target=ask, args=("127.0.0.2", "other")))
        threads[-1].start()
        wait_for(lambda: len(made.queue) == 5)
        gate.open.set()
        for thread in threads:
            thread.join(10)
        assert sorted(order[2:]) == [("127.0.0.1", b"200")] * 5 + [("127.0.0.2", b"200")]


def test_batches_begin_with_another_address_in_turn():
    gate = Gate()
    queue = BatchingQueue([gate], batch=1)
    white = checked([png(8, 4, b"\xff")], 100)

    class Noted(Brightness):
        def score(self, images, prompts):
            seen.extend(prompts)
            return super().score(images, prompts)

    def job(prompt, address, reward="note"):
        return QueuedRequest(white, [prompt], [reward], address=address)

    seen = []
    queue.rewards["note"] = Noted("note")
    first = queue.submit(job("first", "a", "gate"))
    assert gate.entered.wait(10)
    futures = [queue.submit(job(f"a{i}", "a")) for i in range(4)]
    futures += [queue.submit(job(f"b{i}", "b")) for i in range(2)]
    gate.open.set()
    for future in [first, *futures]:
        future.result(10)
    assert seen == ["b0", "a0", "b1", "a1", "a2", "a3"]
    queue.close()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, value=b"\0", more=b""):
    """An RGB picture of one value; `more` are chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + value * 3 * width) * height)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_texts_in_waiting_pictures_stay_compressed():
    """64 KB of file are 60 MiB of texts once Pillow has opened it."""
    import tracemalloc

    spaces = zlib.compress(b" " * (2**20 - 100))
    texts = b"".join(chunk(b"zTXt", b"key %d\0\0" % i + spaces) for i in range(60))
    files = [png(4, 4, more=texts) for _ in range(4)]
    assert len(files[0]) < 10**5
    tracemalloc.start()
    try:
        pictures = checked(files, 100)
        waiting, peak = tracemalloc.get_traced_memory()
        assert waiting < 10**5 and peak < 80 * 2**20
        tensors = decoded(pictures)
        assert tracemalloc.get_traced_memory()[0] < 10**5
    finally:
        tracemalloc.stop()
    assert [tuple(one.shape) for one in tensors] == [(4, 4, 3)] * 4
    assert isinstance(pictures[0], PictureFile)


def test_a_jpeg_of_endless_scans_is_refused():
    """A progressive JPEG may pass over its pixels as often as it likes: a minute's work in some KB."""
    import io

    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    assert 5 < data.count(b"\xff\xda") < 20
    assert checked([data], 10**4)[0].pixels == 4096
    last = data.rindex(b"\xff\xda")
    with pytest.raises(BadInput, match="picture 2 of 2 has more than 100 scans"):
        checked([data, data[:last] + data[last:-2] * 101 + data[-2:]], 10**5)


@pytest.mark.parametrize("item", [b"0", b"[]", b"{}", b'""', b"null"])
def test_a_body_of_a_million_items_is_not_parsed(server, item):
    body = b'{"images": [' + b",".join([item] * 10**6) + b"]}"
    started = time.monotonic()
    refused(post(server, body), 413, "more than 131,072 commas and brackets")
    assert time.monotonic() - started < 5


def test_headers_are_bounded(server):
    with connected(server) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)
        assert sock.recv(12) == b"HTTP/1.1 431"


def test_the_key_is_in_no_output_of_the_server(monkeypatch, capfd):
    def broken(*_):
        raise ZeroDivisionError

    key = "a-key-that-nobody-may-see"
    with serving(Brightness(), key=key) as made:
        right, wrong = {"Authorization": f"Bearer {key}"}, {"Authorization": f"Bearer {key}x"}
        found = [post(made, body_of(GREY), headers=wrong), post(made, b"{", headers=right)]
        monkeypatch.setattr("reprise.backend.serving.batching.decoded", broken)
        found.append(post(made, body_of(GREY), headers=right))
    assert [one.status_code for one in found] == [401, 400, 500]
    out, err = capfd.readouterr()
    assert "ZeroDivisionError" in out + err
    assert not any(key in text for text in (out, err, *(one.text + repr(one.headers) for one in found)))


def test_a_key_of_many_megabytes_is_refused_fast(server):
    started = time.monotonic()
    response = post(server, b'{"' + b"x" * (20 * 2**20) + b'": 1}')
    refused(response, 422, "unknown setting in the request: 'xxx")
    assert time.monotonic() - started < 5 and len(response.content) < 400


def test_pictures_of_long_prompts_in_many_letters_fit_the_bound_on_items():
    """What this project's own client sends at most: 16 pictures, prompts of 8,000 commas."""
    assert 16 * 8_000 < app_module.MOST_MARKS


def test_both_alphabets_of_base64_are_read(server):
    import base64

    rgb = torch.arange(8 * 8 * 3).reshape(8, 8, 3) % 256
    data = base64.b64decode(encoded(rgb.float() / 255))
    texts = [base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()]
    scores = post(server, body_of(*texts)).json()["scores"]["brightness"]
    assert scores[0] == scores[1] == pytest.approx(float(rgb.double().mean() / 255))


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Windows has no limit on open files")
@pytest.mark.parametrize(
    "soft,hard,connections,raised",
    [
        (1024, 4096, 2048, 2304),
        (1024, 1024, 768, None),
        (256, 256, 192, None),
        (64, 128, 96, 128),
        (20_000, 20_000, 2048, None),
        (1024, -1, 2048, 2304),
        (-1, -1, 2048, None),
    ],
)
def test_the_limit_on_open_files(monkeypatch, soft, hard, connections, raised):
    import resource

    calls = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: calls.append(pair))
    assert server_module.raise_open_files() == connections
    assert calls == ([(raised, hard)] if raised else [])


def test_limits_of_a_request_are_told(server):
    assert server.http.get("/rewards").json()["limits"] == Limits().model_dump()
