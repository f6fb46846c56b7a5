"""A reward server on this machine, and rewards that behave as a test needs."""

import base64
import io
import random
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
import torch
from PIL import Image

from reprise.backend.core.types import RewardSpec
from reprise.backend.net import http
from reprise.backend.net.reward_protocol import Limits
from reprise.backend.rewards.base import BaseReward
from reprise.backend.serving.app import make_app
from reprise.backend.serving.batching import BatchingQueue
from reprise.backend.serving.server import RewardServer, address, listen
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.prompts import parse_prompt, sample_layout
from reprise.backend.shapeworld.scenes import random_scene
from reprise.backend.storage.images import to_pil

PROMPTS = ["a red circle", "three blue stars", "a green heart left of a yellow square", "two circles"]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Without the key and hosts of the environment; retries come at once."""
    for name in ("REPRISE_SERVE_KEY", "REPRISE_SERVE_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "FIRST_RETRY_SECONDS", 0.01)


@contextmanager
def serving(*rewards, key=None, limits=None, memory=None, **queue):
    """A running server: `url`, `queue`, `stop` and a plain `http` client of it."""
    limits = limits or Limits()
    queue = BatchingQueue(rewards, **queue)
    sock, listening = listen("127.0.0.1", 0), threading.Event()
    url = address(sock)
    server = RewardServer(make_app(queue, limits, key, memory), queue, sock, listening.set)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(10)
    # Reading certificates for nothing takes longer than all else here.
    http = httpx.Client(base_url=url, verify=False, trust_env=False, timeout=60)
    try:
        yield SimpleNamespace(url=url, queue=queue, http=http, stop=server.stop)
    finally:
        http.close()
        queue.close()
        server.stop()
        thread.join(10)


def scene(prompt, seed):
    """A picture (H, W, 3) in 0..1 of 8-bit values: what is asked for with an even seed, else anything."""
    rng = random.Random(f"{prompt} {seed}")
    drawn = sample_layout(parse_prompt(prompt), rng) if seed % 2 == 0 else random_scene(rng)
    return torch.from_numpy(draw(drawn).copy()).float() / 255


def encoded(image, kind="PNG", **options):
    """A picture (H, W, 3), a PIL picture or bytes -> base64 text."""
    if isinstance(image, torch.Tensor):
        image = to_pil(image[None])[0]
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, kind, **options)
        image = file.getvalue()
    return base64.b64encode(image).decode()


class Brightness(BaseReward):
    """The mean of a picture's pixels; fails if a prompt says "fail". `batches` are the shapes it received."""

    def __init__(self, name="brightness"):
        self.spec, self.batches = RewardSpec(name, 0.0, 1.0), []

    def score(self, images, prompts):
        self.batches.append(tuple(images.shape))
        if any("fail" in prompt for prompt in prompts):
            raise RuntimeError("out of memory\nwith a long story")
        return [float(image.double().mean()) for image in images]


class Gate(Brightness):
    """Waits until `open` is set; `entered` says that it is in work."""

    def __init__(self, name="gate"):
        super().__init__(name)
        self.open, self.entered = threading.Event(), threading.Event()

    def score(self, images, prompts):
        self.entered.set()
        assert self.open.wait(60)
        return super().score(images, prompts)
