"""Choices of device, dtype and offload, as functions of numbers."""

from __future__ import annotations

import pytest
import torch

from reprise.backend.core.errors import BadInput, Unsupported
from reprise.backend.renderers.diffusers import devices

GIB = 2**30
CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.mark.parametrize(
    "total, largest, free, mode",
    [
        (10, 8, 24, "none"),
        (22, 10, 24, "none"),
        (33, 22, 24, "model"),
        (33, 23, 24, "sequential"),
        (33, 22, 8, "sequential"),
    ],
)
def test_auto_offload_fits_the_gpu(total, largest, free, mode):
    assert devices.choose_offload("auto", CUDA, total * GIB, largest * GIB, free * GIB) == mode


def test_a_requested_offload_is_used():
    assert devices.choose_offload("sequential", CUDA, GIB, GIB, 80 * GIB) == "sequential"
    assert devices.choose_offload("none", CUDA, 80 * GIB, GIB, GIB) == "none"
    for device in (CPU, MPS):
        assert devices.choose_offload("auto", device, 80 * GIB, 80 * GIB, 0) == "none"
        with pytest.raises(Unsupported, match="needs a CUDA device"):
            devices.choose_offload("model", device, 0, 0, 0)
    with pytest.raises(BadInput, match="offload is one of"):
        devices.choose_offload("disk", CUDA, 0, 0, 0)


def test_auto_dtype_follows_the_device(monkeypatch):
    assert devices.choose_dtype("auto", CPU, "float16") == torch.float32
    assert devices.choose_dtype("auto", MPS, "float16") == torch.float16
    for present, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda present=present: present)
        assert devices.choose_dtype("auto", CUDA) == expected
    assert devices.choose_dtype("auto", CUDA, "float16") == torch.float16
    assert devices.choose_dtype(torch.bfloat16, CPU) == torch.bfloat16
    with pytest.raises(Unsupported):
        devices.choose_dtype("float16", CPU)


def test_auto_device_takes_what_is_present(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.choose_device("auto") == CPU
    for absent in ("cuda:1", "mps"):
        with pytest.raises(BadInput, match="not present"):
            devices.choose_device(absent)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device("auto") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose_device("auto") == CUDA
