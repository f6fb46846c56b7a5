"""Tiny, randomly initialised pipelines of every family, built in code, without a hub."""

from __future__ import annotations

import json

import pytest
import torch

from reprise.backend.lab.pipelines.known import KNOWN

FAMILIES = ["flux", "flux_true_cfg", "sd3", "sd1", "sdxl", "pixart", "amused"]
# How each is rendered in the tests; 3 steps and 16-pixel pictures keep them fast.
SETTINGS = {
    "flux": {"guidance": 3.5, "max_sequence_length": 20},
    "flux_true_cfg": {"true_cfg": 3.0, "max_sequence_length": 20},
    "sd3": {"guidance": 4.0, "max_sequence_length": 20},
    "sd1": {"guidance": 5.0},
    "sdxl": {"guidance": 5.0},
    "pixart": {"guidance": 4.0, "max_sequence_length": 20},
    "amused": {"guidance": 3.0},
}
# Denoiser rows of one candidate at one step.
ROWS = {"flux": 1, "flux_true_cfg": 2, "sd3": 2, "sd1": 2, "sdxl": 2, "pixart": 2, "amused": 2}

# What the constructor wants beside components.
EXTRA = {"sd1": {"requires_safety_checker": False}, "sdxl": {"add_watermarker": False}}


def build(family: str):
    torch.manual_seed(0)
    pipe = KNOWN[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def pipelines():
    """family -> its tiny pipeline; shared, because a render leaves it as it was (and a test proves it)."""
    built = {}

    def get(family: str):
        if family not in built:
            built[family] = build(family)
        return built[family]

    return get


@pytest.fixture(scope="session")
def folders(pipelines, tmp_path_factory):
    """family -> a folder that its pipeline was saved to. Do not change it: copy it."""
    saved = {}

    def get(family: str):
        if family not in saved:
            saved[family] = tmp_path_factory.mktemp(family) / "model"
            pipelines(family).save_pretrained(saved[family])
            assert json.loads((saved[family] / "model_index.json").read_text())
        return saved[family]

    return get


@pytest.fixture
def renderer(pipelines):
    """(family, **settings) -> a renderer on the shared tiny pipeline, 3 steps, 16 pixels."""
    from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

    def make(family: str, scheduler=None, **settings):
        pipe = pipelines(family)
        if scheduler is not None:
            pipe = type(pipe)(**{**pipe.components, "scheduler": scheduler}, **EXTRA.get(family, {}))
        return DiffusersRenderer(pipe, **{"steps": 3, "size": 16, **SETTINGS[family], **settings})

    return make


class Cuts:
    """A watcher that keeps, at each of its steps, the rows it is told to, and remembers what it saw."""

    def __init__(self, keep: dict[int, list[int]]):
        self.keep = keep
        self.steps = frozenset(keep)
        self.seen: list[tuple[int, list[int], torch.Tensor]] = []

    def look(self, step, rows, previews):
        self.seen.append((step, rows, previews))
        return [row for row in rows if row in self.keep[step]]


@pytest.fixture
def offline(monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("nothing may be fetched"))


@pytest.fixture
def cuts():
    return Cuts
