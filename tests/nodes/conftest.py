"""A real ComfyUI on the CPU with this pack in its custom_nodes, and a small client for its API.

Found by COMFYUI_PATH (default ~/ComfyUI) and COMFYUI_PYTHON (default its .venv); skipped without.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

import httpx
import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.lab.bench.nodes import find_comfyui

ROOT = Path(__file__).resolve().parents[2]
FRONTEND = os.environ.get("COMFYUI_FRONTEND_ROOT")  # a frontend package's `static`, in place of ComfyUI's own


def needed() -> tuple[Path, Path]:
    """ComfyUI's folder and its Python, or the test is skipped with the reason."""
    try:
        return find_comfyui()
    except BadInput as error:
        pytest.skip(str(error))


class Server:
    """A running ComfyUI, at a free port or `port`. `run` queues an API-format graph and returns its history
    entry."""

    def __init__(self, base: Path, port: int = 0):
        folder, python = needed()
        self.base, self.log = base, base / "server.log"
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
            self.port = free.getsockname()[1]
        packs = base / "custom_nodes"
        packs.mkdir(parents=True)
        # A copy, as an installation is: without the tests, the environment and the history.
        left_out = shutil.ignore_patterns(".git", ".venv", "tests", "out", "__pycache__", ".*cache")
        shutil.copytree(ROOT, packs / "reprise-nodes", ignore=left_out)
        self.process = subprocess.Popen(
            [
                str(python),
                str(folder / "main.py"),
                "--cpu",
                "--base-directory",
                str(base),
                "--port",
                str(self.port),
                "--database-url",
                "sqlite:///:memory:",
                "--disable-api-nodes",
                "--disable-auto-launch",
                *(["--front-end-root", FRONTEND] if FRONTEND else []),
            ],
            cwd=folder,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def wait(self, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            try:
                self.http.get("/system_stats")
                return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError("ComfyUI did not start:\n" + self.log.read_text(errors="replace")[-3000:])

    def queue(self, graph: dict) -> httpx.Response:
        return self.http.post("/prompt", json={"prompt": graph, "prompt_id": str(uuid.uuid4())})

    def run(self, graph: dict, seconds: float = 240) -> dict:
        answer = self.queue(graph)
        assert answer.status_code == 200, answer.text
        return self.result(answer.json()["prompt_id"], seconds)

    def result(self, prompt_id: str, seconds: float = 240) -> dict:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.http.get(f"/history/{prompt_id}").json()
            if prompt_id in found and found[prompt_id]["status"].get("status_str"):
                return found[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"not done after {seconds} s:\n" + self.log.read_text(errors="replace")[-3000:])

    def images(self, entry: dict, node: str) -> list:
        """The pictures (H, W, 3) uint8 that a Save or Preview node of a run left."""
        import io

        import numpy as np
        from PIL import Image

        return [
            np.asarray(Image.open(io.BytesIO(self.http.get("/view", params=image).content)).convert("RGB"))
            for image in entry["outputs"][node]["images"]
        ]

    def stop(self) -> None:
        self.http.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("comfyui"))
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.fixture
def graph():
    """Loads an API-format graph of tests/data/api, fresh each time."""
    return lambda name: json.loads((ROOT / "tests" / "data" / "api" / f"{name}.json").read_text())


def error_of(entry: dict) -> dict:
    """The execution error of a run that failed."""
    assert entry["status"]["status_str"] == "error", entry["status"]
    return next(data for kind, data in entry["status"]["messages"] if kind == "execution_error")


@pytest.fixture(scope="session")
def in_comfyui():
    """Runs a script of tests/nodes inside ComfyUI's own Python and returns the JSON of its last line."""

    def run(script: str, *arguments: str, seconds: float = 600, needs: str = "") -> dict:
        folder, python = needed()
        if needs and subprocess.run([str(python), "-c", f"import {needs}"], capture_output=True).returncode:
            pytest.skip(f"{python} has no {needs}, which this test compares with")
        done = subprocess.run(
            [str(python), str(Path(__file__).parent / script), str(folder), str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=folder,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT / "backend" / "lab" / "bench" / "inside"),
            },
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
