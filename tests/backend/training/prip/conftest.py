"""What the trainings of PRIP are given in tests: a small log, and a refiner with random weights."""

import pytest
import torch

from reprise.backend.rewriters.prip import presets as prip_presets

from ...rewriters.prip.tiny_prip import TINY, save
from .. import pictures


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return pictures.make(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    """A refiner with random weights, that has statistics already."""
    return save(tmp_path_factory.mktemp("refiner") / "tiny")


@pytest.fixture
def tiny_preset(monkeypatch):
    """`preset: shapeworld` at a size for tests."""
    monkeypatch.setitem(prip_presets.PRESETS, "shapeworld", TINY)
