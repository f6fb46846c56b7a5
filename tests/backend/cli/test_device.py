"""The device without torch: nvidia-smi's answer, the build of torch, and what is said where neither helps."""

import json

import pytest

from reprise.backend.cli import device
from reprise.backend.cli.device import find_device


@pytest.fixture
def torch(monkeypatch):
    """Says which torch is installed."""

    def install(version):
        monkeypatch.setattr(device, "version", lambda name: version)

    return install


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """An nvidia-smi on the PATH that answers so, and writes down what it was asked."""

    def answer(text, code=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\nprintf '%s' '{text}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path / "asked"

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return answer


def test_a_gpu_of_nvidia(torch, nvidia_smi, monkeypatch, reprise):
    torch("2.13.0")
    asked = nvidia_smi("NVIDIA GeForce RTX 4090, 23028\n")
    found = find_device()
    assert (found.name, found.gpu, found.free_bytes) == ("NVIDIA GeForce RTX 4090", True, 23028 * 2**20)
    assert asked.read_text().startswith("-i 0 --query-gpu=name,memory.free")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    find_device()
    assert asked.read_text().startswith("-i 3 ")
    shown = json.loads(reprise("models", "--json").out)
    assert shown["device"]["torch"] == "2.13.0" and shown["models"][0]["fits"]
    assert "NVIDIA GeForce RTX 4090, 22.5 GiB free; torch 2.13.0" in reprise("models").out


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_is_not_used(torch, nvidia_smi, monkeypatch, hidden):
    torch("2.13.0")
    nvidia_smi("NVIDIA H200, 140000\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not find_device().gpu


@pytest.mark.parametrize(("text", "code"), [("", 0), ("no devices were found", 6), ("H200, [N/A]", 0)])
def test_an_answer_that_helps_nobody(torch, nvidia_smi, text, code):
    torch("2.13.0")
    nvidia_smi(text, code)
    assert find_device().name.startswith("CPU, ")


def test_the_build_of_torch_decides(torch, nvidia_smi, reprise):
    nvidia_smi("NVIDIA H200, 140000\n")
    torch("2.13.0+cpu")
    assert not find_device().gpu
    torch("2.13.0+rocm7.0")
    found = find_device()
    assert (found.name, found.gpu, found.free_bytes) == ("GPU of torch's rocm7.0 build", True, None)
    assert "free memory not known" in reprise("models").out


def test_without_torch(monkeypatch, nvidia_smi, reprise):
    def missing(name):
        raise device.PackageNotFoundError(name)

    monkeypatch.setattr(device, "version", missing)
    nvidia_smi("NVIDIA H200, 140000\n")
    assert find_device().name == "NVIDIA H200" and "torch not installed" in reprise("models").out
