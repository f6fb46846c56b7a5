"""A fake ComfyUI server on this machine: it runs graphs at once, and fails as a test sets."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from .servers import QuietServer

STEPS = 4
# A minimal text-to-image graph.
GRAPH = {
    "1": {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "sd15.safetensors"},
        "_meta": {"title": "Load Checkpoint"},
    },
    "2": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "a cat", "clip": ["1", 1]},
        "_meta": {"title": "Positive"},
    },
    "3": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "blurry", "clip": ["1", 1]},
        "_meta": {"title": "Negative"},
    },
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 1,
            "steps": STEPS,
            "cfg": 7.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "cats"}},
}


def picture(prompt: str, seed: int) -> np.ndarray:
    """The picture (8, 8, 3) uint8 that a fake server draws."""
    digest = hashlib.sha256(f"{prompt}\n{seed}".encode()).digest()
    return np.random.default_rng(list(digest)).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def with_metadata(file: bytes, graph: dict) -> bytes:
    """A picture with its graph in it, as SaveImage writes it."""
    from PIL.PngImagePlugin import PngInfo

    info, out = PngInfo(), io.BytesIO()
    info.add_text("prompt", json.dumps(graph))
    Image.open(io.BytesIO(file)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


class FakeComfyUI:
    """Answers a run of `GRAPH` as ComfyUI 0.33.0 does.

    `delay`: seconds that a run takes. `queued`: runs of others in its queue. `at_run[n]` is called in the
    middle of the n-th run (from 0), `at_other_runs` in that of all others; if it returns messages, they are
    sent instead of the rest. `answers[path]` (status, body) replaces a route's answer. `runs` are the
    (prompt, seed) of started runs. `history` is lost with a process; `uploads` are pictures for its input
    folder. With a `token` only requests that carry it in `header` are answered; `path` is what all addresses
    begin with. `refuses(graph)` gives the answer to a
    graph that is not taken, else None.
    """

    def __init__(self, delay: float = 0.0, sink: bool = True, version: str = "0.33.0"):
        self.delay, self.sink, self.version = delay, sink, version
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.at_run: dict = {}
        self.at_other_runs = None
        self.queued = 0
        self.runs: list[tuple[str, int]] = []
        self.graphs: list[dict] = []
        self.requests: list[tuple[str, object]] = []  # (path, body) of what was posted
        self.files: dict[str, bytes] = {}
        self.history: dict[str, dict] = {}
        self.uploads: dict[str, bytes] = {}
        self.token: str | None = None
        self.header, self.path = "Authorization", ""
        self.refuses = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def posted(self, path: str) -> list:
        return [body for at, body in self.requests if at == path]

    def start(self) -> None:
        """Listen; after a `stop`, on the same port again."""
        outer = self

        class Bound(Handler):
            fake = outer

        class Listener(QuietServer):
            def get_request(self):
                request, address = super().get_request()
                outer.connections.append(request)
                return request, address

            def handle_error(self, request, client_address):
                pass  # a connection that `stop` broke

        self.connections: list[socket.socket] = []
        self.pending: list[tuple[str, dict, dict]] = []
        self.running: tuple[str, dict, dict] | None = None
        self.interrupted = False
        self.history = {}
        self.life = life = object()  # None when stopped; what an earlier one left running ends by itself
        self.sockets: dict[str, socket.socket] = {}
        self.lock = threading.Condition()
        self.server = Listener(("127.0.0.1", self.port), Bound)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        threading.Thread(target=self.work, args=(life,), daemon=True).start()

    def stop(self) -> None:
        """Stop as a killed process does: without closing connections properly."""
        with self.lock:
            self.life = None
            self.lock.notify_all()
        self.server.shutdown()
        self.server.server_close()
        for one in self.connections:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def work(self, life: object) -> None:
        lock = self.lock
        while True:
            with lock:
                while not self.pending and self.life is life:
                    lock.wait()
                if self.life is not life:
                    return
                self.running, self.interrupted = self.pending.pop(0), False
            self.run(*self.running)
            if self.life is life:
                self.running = None
                self.status()

    def run(self, name: str, graph: dict, extra: dict) -> None:
        client, number, life = extra["client_id"], len(self.runs), self.life
        prompt, seed = graph["2"]["inputs"]["text"], graph["5"]["inputs"]["seed"]
        self.runs.append((prompt, seed))
        self.graphs.append(graph)
        self.send_event(client, "execution_start", prompt_id=name)
        self.send_event(client, "executing", node="5", prompt_id=name)
        play = self.at_run.get(number, self.at_other_runs)
        end = time.monotonic() + self.delay
        while time.monotonic() < end and self.life is life and not self.interrupted:
            time.sleep(0.005)
        self.send_event(client, "progress", node="5", prompt_id=name, value=STEPS // 2, max=STEPS)
        messages = play() if play else None
        if self.life is not life:
            return
        if self.interrupted:
            messages = [("execution_interrupted", {"node_id": "5", "node_type": "KSampler"})]
        if messages is not None:
            for kind, data in messages:
                self.send_event(client, kind, prompt_id=name, **data)
            return
        self.send_event(client, "progress", node="5", prompt_id=name, value=STEPS, max=STEPS)
        file = encoded(picture(prompt, seed))
        if "reprise" not in graph:  # the workflow as its user has saved it
            self.files[f"{name}.png"] = with_metadata(file, graph)
            images = [{"filename": f"{name}.png", "subfolder": "", "type": "output"}]
            self.send_event(client, "executed", node="7", prompt_id=name, output={"images": images})
            self.history[name] = {
                "outputs": {"7": {"images": images}},
                "status": {"status_str": "success", "completed": True, "messages": []},
            }
        elif graph["reprise"]["class_type"] == "SaveImageWebsocket":
            self.binary(client, name, "5", encoded(np.zeros((2, 2, 3), np.uint8)))  # a preview
            self.send_event(client, "executing", node="reprise", prompt_id=name)
            self.binary(client, name, "reprise", file)
        else:
            self.files[f"{name}.png"] = file
            images = [{"filename": f"{name}.png", "subfolder": "", "type": "temp"}]
            self.send_event(client, "executed", node="reprise", prompt_id=name, output={"images": images})
        self.send_event(client, "execution_success", prompt_id=name)
        self.send_event(client, "executing", node=None, prompt_id=name)

    def status(self) -> None:
        remaining = len(self.pending) + (self.running is not None) + self.queued
        for client in list(self.sockets):
            self.send_event(client, "status", status={"exec_info": {"queue_remaining": remaining}})

    def send_event(self, client: str, kind: str, **data) -> None:
        self.frame(client, 0x81, json.dumps({"type": kind, "data": data}).encode())

    def binary(self, client: str, name: str, node: str, file: bytes) -> None:
        about = json.dumps({"node_id": node, "prompt_id": name, "image_type": "image/png"}).encode()
        self.frame(client, 0x82, struct.pack(">II", 4, len(about)) + about + file)

    def frame(self, client: str, kind: int, data: bytes) -> None:
        """One frame of the websocket, unmasked, as servers send them."""
        length = struct.pack("!BH", 126, len(data)) if len(data) > 125 else bytes([len(data)])
        with self.lock:
            try:
                self.sockets[client].sendall(bytes([kind]) + length + data)
            except (KeyError, OSError):
                self.sockets.pop(client, None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeComfyUI

    def do_GET(self) -> None:
        fake, address = self.fake, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        path = address.path.removeprefix(fake.path).lstrip("/")
        if not self.allowed():
            return self.answer(401, b"who are you?")
        if path in fake.answers:
            return self.answer(*fake.answers[path])
        if path == "ws":
            return self.websocket(query["clientId"])
        if path == "system_stats":
            return self.json(
                {
                    "system": {"comfyui_version": fake.version, "pytorch_version": "2.13.0"},
                    "devices": [{"name": "cpu", "type": "cpu"}],
                }
            )
        if path == "object_info/SaveImageWebsocket":
            return self.json({"SaveImageWebsocket": {}} if fake.sink else {})
        if path == "queue":
            running = [fake.running] if fake.running else []
            return self.json(
                {
                    "queue_running": [entry(*run) for run in running],
                    "queue_pending": [entry(*run) for run in fake.pending]
                    + [entry("theirs", {}, {})] * fake.queued,
                }
            )
        if path.startswith("history/"):
            name = path.removeprefix("history/")
            return self.json({name: fake.history[name]} if name in fake.history else {})
        if path == "view" and query["filename"] in fake.files:
            return self.answer(200, fake.files[query["filename"]])
        self.answer(404, b"not found")

    def do_POST(self) -> None:
        fake, path = self.fake, self.path.removeprefix(self.fake.path).lstrip("/")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.allowed():
            return self.answer(401, b"who are you?")
        if path == "upload/image":
            return self.upload(content)
        body = json.loads(content)
        fake.requests.append((path, body))
        if path in fake.answers:
            return self.answer(*fake.answers[path])
        if path == "prompt" and fake.refuses and (refusal := fake.refuses(body["prompt"])):
            return self.answer(400, json.dumps(refusal).encode())
        if path == "prompt":
            with fake.lock:
                extra = {**body["extra_data"], "client_id": body["client_id"]}
                fake.pending.append((body["prompt_id"], body["prompt"], extra))
                fake.lock.notify_all()
            self.json({"prompt_id": body["prompt_id"], "number": 1, "node_errors": {}})
            return fake.status()
        if path == "queue":
            with fake.lock:
                fake.pending = [run for run in fake.pending if run[0] not in body["delete"]]
        if path == "interrupt" and fake.running and fake.running[0] == body.get("prompt_id"):
            fake.interrupted = True
        self.answer(200, b"")

    def allowed(self) -> bool:
        token, bearer = self.fake.token, "Bearer " if self.fake.header == "Authorization" else ""
        return token is None or self.headers.get(self.fake.header) == bearer + token

    def upload(self, content: bytes) -> None:
        """A form as browsers send it: the picture, and where it goes."""
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        fields, name = {}, ""
        for part in content.split(b"--" + boundary)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            field = re.search(rb' name="([^"]*)"', head)[1].decode()
            fields[field] = value.removesuffix(b"\r\n")
            if found := re.search(rb' filename="([^"]*)"', head):
                name = found[1].decode()
        folder = fields["subfolder"].decode()
        self.fake.requests.append(("upload/image", name))
        self.fake.uploads[f"{folder}/{name}"] = fields["image"]
        self.json({"name": name, "subfolder": folder, "type": "input"})

    def json(self, value) -> None:
        self.answer(200, json.dumps(value).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def websocket(self, client: str) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.fake.sockets[client] = self.connection
        self.fake.status()
        try:
            while head := self.rfile.read(2):  # answer pings, ignore messages, wait until it closes
                length = head[1] & 127
                if length == 126:
                    length = int.from_bytes(self.rfile.read(2), "big")
                mask, content = self.rfile.read(4), self.rfile.read(length)
                if head[0] & 15 == 8:
                    break
                if head[0] & 15 == 9:
                    self.fake.frame(client, 0x8A, bytes(one ^ mask[i % 4] for i, one in enumerate(content)))
        except (OSError, IndexError):
            pass
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


def entry(name: str, graph: dict, extra: dict) -> list:
    return [1, name, graph, extra, ["reprise"]]
