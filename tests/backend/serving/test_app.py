"""The reward server over real HTTP: right answers, and refusals for everything else."""

import gzip
import io
import json
import pickle
import random
import socket
import struct
import threading
import time
import zipfile
import zlib

import httpx
import pytest
from PIL import Image

from reprise.backend.core.errors import BadInput
from reprise.backend.net.reward_protocol import Limits
from reprise.backend.rewards.shapeworld import ShapeWorldSoft, ShapeWorldStrict
from reprise.backend.serving import server as server_module
from reprise.backend.serving.pictures import checked
from reprise.backend.storage.images import to_pil

from ...reward_server import PROMPTS, Brightness, Gate, encoded, scene, serving

LIMITS = Limits(images=8, pixels=200_000, body=300_000)
GREY = encoded(Image.new("L", (8, 4), 128))


@pytest.fixture(scope="module")
def server():
    with serving(ShapeWorldSoft(), ShapeWorldStrict(), Brightness(), limits=LIMITS) as made:
        yield made


def request(images=(GREY,), prompts=None, rewards=("brightness",), **more):
    prompts = ["a red circle"] * len(images) if prompts is None else prompts
    return {"images": list(images), "prompts": list(prompts), "rewards": list(rewards), **more}


def post(server, body, path="score", **options):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **options.pop("headers", {})}
    return server.http.post(f"/{path}", content=body, headers=headers)


def refused(response, status, part):
    """4xx with a reason on one line, and no trace of the inside."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"detail"}
    detail = response.json()["detail"]
    assert part in detail and "\n" not in detail and len(detail) <= 300 and "Traceback" not in detail


def test_the_catalogue_and_health(server):
    assert server.http.get("/health").json() == {"status": "ok", "waiting": 0}
    found = server.http.get("/rewards").json()
    assert found["rewards"][0] == {
        "name": "shapeworld",
        "low": 0,
        "high": 1,
        "higher_is_better": True,
        "reads": "images",
        "critic": True,
    }
    assert [card["critic"] for card in found["rewards"]] == [True, True, False]
    assert found["limits"] == {"images": 8, "pixels": 200_000, "body": 300_000}


def test_scores_are_those_of_the_judge_itself_whatever_the_sizes(server):
    images = [scene(prompt, i) for i, prompt in enumerate(PROMPTS)]
    images[1] = images[1][:100, :90]
    found = post(server, request(map(encoded, images), PROMPTS, ["shapeworld", "shapeworld-strict"])).json()
    for judge in (ShapeWorldSoft(), ShapeWorldStrict()):
        expected = [judge.score(image[None], [prompt])[0] for image, prompt in zip(images, PROMPTS)]
        assert found["scores"][judge.spec.name] == expected
    assert found["errors"] == {}


@pytest.mark.parametrize(
    "mode,kind,mean",
    [
        ("RGB", "JPEG", 1.0),
        ("L", "PNG", 1.0),
        ("P", "PNG", 1.0),
        ("1", "PNG", 1.0),
        ("RGBA", "PNG", 1.0),
    ],
)
def test_every_kind_of_picture(server, mode, kind, mean):
    picture = Image.new("RGB", (16, 8), "white").convert(mode)
    assert post(server, request([encoded(picture, kind)])).json()["scores"]["brightness"] == [mean]


def test_a_picture_as_the_body(server):
    file = io.BytesIO()
    to_pil(scene("a red circle", 1)[None])[0].save(file, "PNG")
    query = {"prompt": "a red circle", "reward": ["shapeworld", "brightness"]}
    png = {"Content-Type": "image/png"}
    found = server.http.post("/score", params=query, content=file.getvalue(), headers=png).json()
    again = request([encoded(file.getvalue())], rewards=["shapeworld", "brightness"])
    assert found == post(server, again).json() and len(found["scores"]) == 2
    critique = server.http.post(
        "/criticize", params={**query, "reward": "shapeworld"}, content=file.getvalue(), headers=png
    )
    assert critique.json()["verdicts"]["shapeworld"]
    for params, content, part in (
        ({"reward": "brightness"}, file.getvalue(), "got 0 for 1"),
        ({"prompt": ["a", "b"], "reward": "brightness"}, file.getvalue(), "got 2 for 1"),
        ({"prompt": "a"}, file.getvalue(), "rewards: list should have at least 1 item"),
        ({"prompt": "a", "reward": ""}, file.getvalue(), "unknown reward ''"),
        (query, b"", "picture 1 of 1 is no PNG or JPEG"),
        (query, pickle.dumps(Harmful()), "picture 1 of 1 is no PNG or JPEG"),
    ):
        refused(server.http.post("/score", params=params, content=content, headers=png), 422, part)
    refused(server.http.post("/score", params=query, content=b" " * 300_001, headers=png), 413, "300,000")


def test_critiques(server):
    image = scene("a red circle", 0)
    body = request([encoded(image)] * 2, ["a red circle", "a blue star"], ["shapeworld"])
    right, wrong = post(server, body, "criticize").json()["verdicts"]["shapeworld"]
    assert right == {"satisfied": True, "critique": "", "faults": []}
    assert not wrong["satisfied"] and wrong["faults"] == ["there is no blue star"]
    refused(post(server, request(), "criticize"), 422, "'brightness' only scores")


def test_one_rewards_error_leaves_the_others_results(server):
    body = request([GREY], ["fail"], ["shapeworld", "brightness"])
    found = post(server, body).json()
    assert found["scores"] == {}
    assert found["errors"]["brightness"] == {
        "blame": "reward",
        "message": "RuntimeError: out of memory with a long story",
    }
    assert found["errors"]["shapeworld"]["blame"] == "input"
    found = post(server, request([GREY], ["a cat"], ["shapeworld", "brightness"])).json()
    assert found["scores"] == {"brightness": [pytest.approx(128 / 255)]}
    assert [*found["errors"]] == ["shapeworld"]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width, height, data=b"", more=b""):
    """A small file. `more` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + rows + chunk(b"IEND", b"")


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def zipped(data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("request.json", data)
    return file.getvalue()


SPACES = b" " * 10**8
BOMB = chunk(b"zTXt", b"words\0\0" + zlib.compress(SPACES))
whole = request()
NOT_JSON = {
    "gzip": gzip.compress(json.dumps(whole).encode()),
    "gzip bomb": gzip.compress(SPACES),
    "zip bomb": zipped(SPACES),
    "empty": b"",
    "truncated": json.dumps(whole).encode()[:-9],
    "deep list": b"[" * 100_000,
    "deep object": b'{"images":' * 20_000,
    "deep but whole": b"[" * 9_000 + b"]" * 9_000,
    "pickle": pickle.dumps(Harmful()),
    "bytes": bytes(range(256)),
    "half a letter": b'{"images": ["\\ud800"]}',
    "a number without end": b"1" * 200_000,
}
INVALID = {
    "list": ([], "expected a JSON object"),
    "null": (None, "expected a JSON object"),
    "nothing": ({}, "images: field required"),
    "images as text": (request() | {"images": GREY}, "images: input should be a valid array"),
    "images as numbers": (request() | {"images": [1]}, "images.0: picture 1 is no base64 text"),
    "images as null": (request() | {"images": [None]}, "images.0"),
    "NaN": (request() | {"images": [float("nan")]}, "images.0"),
    "prompts as NaN": (request() | {"prompts": float("nan")}, "prompts: input"),
    "rewards as object": (request() | {"rewards": {"brightness": 1}}, "rewards: input"),
    "a long prompt": (request(prompts=["x" * 8_001]), "at most 8000 characters"),
    "no images": (request([]), "images: list should have at least 1 item"),
    "no rewards": (request(rewards=[]), "rewards: list should have at least 1 item"),
    "fewer prompts": (request([GREY] * 2, ["a"]), "expected one prompt per picture, got 1 for 2"),
    "unknown key": (request(promts=[]), "did you mean 'prompts'?"),
    "many unknown keys": (request(**{f"k{i}": 1 for i in range(10_000)}), "unknown setting"),
    "unknown reward": (request(rewards=["brightnes"]), "did you mean 'brightness'?"),
    "a path": (request(rewards=["../../etc/passwd"]), "unknown reward '../../etc/passwd'"),
    "a reward elsewhere": (request(rewards=["remote:brightness@http://127.0.0.1:1"]), "unknown reward"),
    "a reward that is not served": (request(rewards=["image-reward"]), "unknown reward 'image-reward'"),
    "a long unknown reward": (request(rewards=["\x1b[31m\n" * 30]), "unknown reward"),
    "many images": (request([GREY] * 9), "9 pictures in one request; the limit is 8"),
    "very many images": (request([""] * 50_000, []), "at most 4096 items"),
    "no base64": (request(["ä" * 9]), "images.0: picture 1 is no base64 text"),
    "text": (request([GREY, encoded(b"hello")]), "picture 2 of 2 is no PNG or JPEG"),
    "pickle": (request([encoded(pickle.dumps(Harmful()))]), "is no PNG or JPEG"),
    "gif": (request([encoded(Image.new("L", (4, 4)), "GIF")]), "is no PNG or JPEG"),
    "bomb": (request([encoded(png_that_claims(30_000, 30_000))]), "more than 200,000 pixels"),
    "small bomb": (request([encoded(png_that_claims(1_000, 201))]), "(1000 x 201) they have more than"),
    "text bomb": (request([encoded(png_that_claims(4, 4, b"\0" * 52, BOMB))]), "picture 1 of 1 is damaged"),
    "negative": (request([encoded(png_that_claims(-4 % 2**32, 4))]), "picture 1 of 1"),
    "many small ones": (request([encoded(Image.new("L", (200, 200)))] * 6), "picture 6 of 6 (200 x 200)"),
    "no pixels": (request([encoded(png_that_claims(0, 4))]), "picture 1 of 1"),
    "cut": (request([encoded(png_that_claims(50, 50, b"x"))]), "picture 1 of 1 is damaged"),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_bodies_that_are_not_json(server, body):
    refused(post(server, body), 400, "the body is no JSON")


def test_pixels_beyond_those_of_the_header_are_not_unpacked(server):
    bomb = encoded(png_that_claims(4, 4, b"\0" * 52 + SPACES))
    assert post(server, request([bomb])).json()["scores"] == {"brightness": [0.0]}


def test_a_compressed_body_is_not_unpacked(server):
    body = gzip.compress(json.dumps(whole).encode())
    refused(post(server, body, headers={"Content-Encoding": "gzip"}), 400, "the body is no JSON")


@pytest.mark.parametrize("body,part", INVALID.values(), ids=INVALID)
def test_invalid_requests(server, body, part):
    refused(post(server, body), 422, part)


def test_other_content_types_methods_and_paths(server):
    for kind in ("text/plain", "application/octet-stream", "application/x-pickle", "image/gif", ""):
        refused(post(server, whole, headers={"Content-Type": kind}), 415, "application/json")
    refused(server.http.post("/score", files={"image": b"x"}), 415, "application/json")
    refused(server.http.get("/score"), 405, "")
    refused(server.http.get("/nowhere"), 404, "")
    assert server.http.get("/docs").status_code == server.http.get("/openapi.json").status_code == 404


HEAD = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
NOT_HTTP = {
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "length in words": HEAD + b"Content-Length: many\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "a length of many digits": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
    "chunks unlike chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nhello\r\n",
    "unknown transfer": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "head without end": HEAD + b"X: " + b"x" * 100_000,
    "path without end": b"GET /" + b"x" * 100_000,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
}
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def connected(server):
    address = httpx.URL(server.url)
    return socket.create_connection((address.host, address.port), timeout=20)


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
def test_invalid_http(server, data):
    with connected(server) as sock:
        sock.sendall(data)
        assert sock.makefile("rb").readline().startswith(b"HTTP/1.1 4")
    assert post(server, whole).status_code == 200


def test_other_protocols_are_not_spoken(server):
    with connected(server) as sock:
        sock.sendall(HTTP_2)
        assert sock.recv(100) == b""
    upgrade = {"Connection": "upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert server.http.get("/health", headers=upgrade | key).status_code == 200


@pytest.mark.parametrize(
    "data", [b"", b"POST /sc", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nPOST /sc"]
)
def test_dripping_connections_are_closed(monkeypatch, data):
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.2)
    with serving(Brightness()) as made, connected(made) as sock:
        with pytest.raises(ConnectionError):
            sock.sendall(data)
            for _ in range(1000):
                sock.sendall(b"o")
                threading.Event().wait(0.01)


def test_half_open_connections_delay_no_request(server):
    held = [connected(server) for _ in range(300)]
    try:
        for sock in held:
            sock.sendall(b"POST /sc")
        started = time.monotonic()
        assert post(server, whole).status_code == 200
        assert time.monotonic() - started < 2
    finally:
        for sock in held:
            sock.close()


def test_a_stop_refuses_incomplete_requests():
    with serving(Brightness()) as made, connected(made) as sock, connected(made) as idle:
        sock.sendall(HEAD + b"Content-Length: 9\r\n\r\n{")
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        threading.Event().wait(0.2)  # until it waits for the rest
        made.stop()
        answer = b"".join(iter(lambda: sock.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 503") and b"the server is stopping" in answer
        while idle.recv(1000):
            pass


def test_a_body_without_content_length(server):
    parts = (part.encode() for part in json.dumps(whole))
    found = server.http.post("/score", content=parts, headers={"Content-Type": "application/json"})
    assert found.status_code == 200


@pytest.mark.parametrize("size", [300_001, 1_200_001, 5_000_000])
def test_bodies_too_large(server, size):
    def parts():
        for start in range(0, size, 10_000):
            yield b" " * min(10_000, size - start)

    json_type = {"Content-Type": "application/json"}
    refused(server.http.post("/score", content=b" " * size, headers=json_type), 413, "300,000 bytes")
    try:  # without a Content-Length; far beyond the limit the server may hang up before all is sent
        refused(server.http.post("/score", content=parts(), headers=json_type), 413, "300,000 bytes")
    except httpx.TransportError:
        assert size > 4 * LIMITS.body
    assert post(server, whole).status_code == 200


@pytest.mark.filterwarnings("ignore")
def test_pictures_damaged_at_random_are_scored_or_refused(server):
    rng, seen = random.Random(5), set()
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    Image.effect_noise((24, 16), 60).convert("RGB").save(file, "JPEG", exif=exif)
    jpeg, png = file.getvalue(), io.BytesIO()
    Image.effect_noise((24, 16), 60).convert("P").save(png, "PNG", exif=exif, transparency=3)
    for i in range(200):
        data = bytearray(jpeg if i % 2 else png.getvalue())
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        response = post(server, request([encoded(bytes(data))]))
        seen.add(response.status_code)
        if response.status_code != 200:
            refused(response, 422, "picture 1 of 1")
    assert seen == {200, 422}


def test_a_full_queue_refuses_and_says_when_to_try_again():
    gate = Gate()
    with serving(gate, waiting=4) as made:
        answers = []

        def ask():
            answers.append(post(made, request(rewards=["gate"])).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        threads[0].start()
        assert gate.entered.wait(10)  # one in work, two in line
        for thread in threads[1:]:
            thread.start()
        for _ in range(1000):
            if len(made.queue) == 2:
                break
            threading.Event().wait(0.01)
        full = post(made, request(rewards=["gate"]))
        refused(full, 503, "2 requests of your address are waiting already")
        assert full.headers["Retry-After"] == "1" and made.http.get("/health").json()["waiting"] == 2
        gate.open.set()
        for thread in threads:
            thread.join(10)
        assert answers == [200] * 3 and made.queue.answered == 3


def test_a_client_that_hangs_up_leaves_the_queue():
    gate = Gate()
    with serving(gate) as made:
        first = threading.Thread(target=post, args=(made, request(rewards=["gate"])))
        first.start()
        assert gate.entered.wait(10)
        body = json.dumps(request(rewards=["gate"])).encode()
        with connected(made) as sock:
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            for _ in range(1000):
                if len(made.queue):
                    break
                threading.Event().wait(0.01)
            waiting = made.queue._waiting[0].done
        for _ in range(3000):
            if waiting.cancelled():
                break
            threading.Event().wait(0.01)
        gate.open.set()
        first.join(10)
        assert post(made, request(rewards=["gate"])).status_code == 200
        assert [shape[0] for shape in gate.batches] == [1, 1]


KEY = "a-long-random-word"


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer a-long-random-wor",
        f"Bearer {KEY}x",
        KEY,
        f"Basic {KEY}",
        "Bearer \xe4\xf6".encode("latin-1"),
    ],
)
def test_without_the_key_nothing_is_answered(keyed, given):
    headers = {} if given is None else {"Authorization": given}
    for path in ("score", "criticize"):
        response = post(keyed, b"rubbish", path, headers=headers)
        refused(response, 401, "bearer token")
        assert response.headers["WWW-Authenticate"] == "Bearer" and KEY not in response.text
    refused(keyed.http.get("/rewards", headers=headers), 401, "bearer token")
    assert keyed.http.get("/health").status_code == 200


def test_the_key_is_checked_before_the_body(keyed):
    with connected(keyed) as sock:
        sock.sendall(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 401"


@pytest.fixture(scope="module")
def keyed():
    with serving(Brightness(), key=KEY) as made:
        yield made


def test_with_the_key(keyed):
    assert post(keyed, request(), headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


@pytest.mark.filterwarnings("ignore")
def test_an_internal_error_is_500_without_its_traceback(server, monkeypatch, capfd):
    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("reprise.backend.serving.batching.decoded", broken)
    response = post(server, request(), headers={"Connection": "close"})
    assert (response.status_code, response.json()) == (500, {"detail": "the server failed; its log says why"})
    monkeypatch.undo()
    assert post(server, request()).status_code == 200


def test_a_broken_header_check_is_bad_input():
    with pytest.raises(BadInput, match="picture 1 of 1"):
        checked([png_that_claims(2**31 - 1, 2**31 - 1)], 10**6)
