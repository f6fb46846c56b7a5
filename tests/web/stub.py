"""A stub of a ComfyUI server: serves a frontend package and the pack's scripts, and sends recorded events.

`data/server.json` holds a real server's description of our nodes, and the outputs of some runs.
`python -m tests.web.stub` in the repository records it again from a real ComfyUI, found as the tests find it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import mimetypes
import os
import struct
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Queue
from urllib.parse import urlsplit

import pytest

from ..servers import QuietServer

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "data" / "server.json"
GRAPHS = ("shapeworld_quick_start", "reflection_loop", "prip_refiner")


def frontend() -> Path:
    """The frontend to test: of COMFYUI_FRONTEND_ROOT, else of the package beside pytest."""
    found = importlib.util.find_spec("comfyui_frontend_package")
    root = os.environ.get("COMFYUI_FRONTEND_ROOT") or (found and Path(str(found.origin)).parent / "static")
    if not root or not (Path(root) / "index.html").is_file():
        pytest.skip("no frontend; install comfyui-frontend-package or set COMFYUI_FRONTEND_ROOT")
    return Path(root)


class Stub(QuietServer):
    """`prompts` are the graphs that the page queued; `send_event` sends an event to all pages."""

    def __init__(self, root: Path, object_info: dict):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.port, self.prompts, self.sockets = root, self.server_address[1], Queue(), []
        self.settings = {"Comfy.TutorialCompleted": True}
        scripts = sorted(path.name for path in (ROOT / "web").glob("*.js"))
        self.answers = {
            "/users": {"storage": "server", "migrated": True},
            "/settings": self.settings,
            "/extensions": [f"/extensions/reprise-nodes/{name}" for name in scripts],
            "/object_info": object_info,
            "/system_stats": {
                "system": {
                    "os": "posix",
                    "comfyui_version": "0.33.0",
                    "python_version": "",
                    "embedded_python": False,
                    "argv": [],
                },
                "devices": [],
            },
            "/queue": {"queue_running": [], "queue_pending": []},
            "/prompt": {"exec_info": {"queue_remaining": 0}},
            "/jobs": {"jobs": [], "pagination": {"offset": 0, "limit": 200, "total": 0, "has_more": False}},
            "/experiment/models": [],
            "/userdata": [],
        }
        self.empty = (
            "/features",
            "/i18n",
            "/global_subgraphs",
            "/node_replacements",
            "/workflow_templates",
            "/history",
            "/internal/folder_paths",
        )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def send_event(self, kind: str, **data) -> None:
        text = json.dumps({"type": kind, "data": data}).encode()
        length = struct.pack("!BH", 126, len(text)) if len(text) > 125 else bytes([len(text)])
        for socket in list(self.sockets):
            try:
                socket.sendall(b"\x81" + length + text)
            except OSError:
                self.sockets.remove(socket)

    def executed(self, outputs: dict[str, dict]) -> None:
        """Send the events of a whole run with these outputs of its nodes."""
        for node, output in outputs.items():
            self.send_event("executed", node=node, display_node=node, output=output, prompt_id="1")
        self.send_event("execution_success", prompt_id="1", timestamp=0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/ws":
            return self._websocket()
        route = path.removeprefix("/api")
        if route in self.server.answers or route in self.server.empty:
            return self._json(self.server.answers.get(route, {}))
        folder, name = self.server.root, path.lstrip("/") or "index.html"
        if path.startswith("/extensions/reprise-nodes/"):
            folder, name = ROOT / "web", path.split("/", 3)[3]
        found = (folder / name).resolve()
        if not found.is_file() or not found.is_relative_to(folder.resolve()):
            return self._json({}, 404)
        kind = "text/javascript" if found.suffix == ".js" else mimetypes.guess_type(name)[0]
        self._answer(200, kind or "application/octet-stream", found.read_bytes())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        route = urlsplit(self.path).path.removeprefix("/api")
        if route.startswith("/settings/"):
            self.server.settings[route.split("/")[-1]] = json.loads(body)
        if route == "/prompt":
            self.server.prompts.put(json.loads(body)["prompt"])
        self._json({"prompt_id": "1", "number": 1, "node_errors": {}} if route == "/prompt" else {})

    def _json(self, value, status: int = 200) -> None:
        self._answer(status, "application/json", json.dumps(value).encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _websocket(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.server.sockets.append(self.connection)
        self.server.send_event("status", status={"exec_info": {"queue_remaining": 0}}, sid="stub")
        while self.rfile.read(1):  # what the page says is of no interest, only that it goes
            pass
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


def record(server) -> dict:
    """What `data/server.json` holds, from a running ComfyUI (`tests.nodes.conftest.Server`)."""
    known, object_info, outputs = server.http.get("/object_info").json(), {}, {}
    for name in GRAPHS:
        graph = json.loads((ROOT / "tests" / "data" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        object_info |= {node["class_type"]: known[node["class_type"]] for node in graph.values()}
        found = server.run(graph)["outputs"]
        outputs[name] = {
            node: found[node]
            for node in graph
            if any(key.startswith("reprise") for key in found.get(node, {}))
        }
    return {"object_info": dict(sorted(object_info.items())), "outputs": outputs}


if __name__ == "__main__":
    import tempfile

    from tests.nodes.conftest import Server

    with tempfile.TemporaryDirectory() as base:
        running = Server(Path(base))
        try:
            running.wait()
            text = json.dumps(record(running), indent=1, ensure_ascii=False)
        finally:
            running.stop()
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(text + "\n", encoding="utf-8")
