"""Models that are quantised as they are loaded: nearly the same pictures from a quarter of the memory."""

import pytest
import torch
from safetensors.torch import save_file

from reprise.backend.core.errors import BadInput, Unsupported
from reprise.backend.core.types import Job
from reprise.backend.lab.pipelines.recent import RECENT
from reprise.backend.renderers.diffusers import quantization
from reprise.backend.renderers.diffusers.devices import weight_bytes
from reprise.backend.renderers.diffusers.quantization import METHODS, is_installed
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

from ..conftest import SETTINGS
from . import original_layouts as original

JOBS = [Job("a red cat", 11), Job("two blue dogs", 12), Job("one egg", 14)]
# Mean difference of pictures in 0..1, of random weights; measured: 0.005, 0.029 and 0.053 at most.
FAR = {"int8": 0.01, "fp8": 0.06, "nf4": 0.1}
needs_package = pytest.mark.skipif(not is_installed("bitsandbytes"), reason="bitsandbytes is not installed")
EACH = [pytest.param(one, marks=needs_package) if one == "nf4" else one for one in METHODS]


@pytest.fixture(scope="module")
def folder(folders, tmp_path_factory):
    saved = {}

    def get(family):
        if family not in RECENT:
            return folders(family)
        if family not in saved:
            torch.manual_seed(0)
            saved[family] = tmp_path_factory.mktemp(family)
            RECENT[family]().save_pretrained(saved[family])
        return saved[family]

    return get


def opened(model, family, **settings):
    return DiffusersRenderer(
        model, **{"steps": 3, "size": 16, "chunk": 1, "device": "cpu", **SETTINGS.get(family, {}), **settings}
    )


@pytest.mark.parametrize("family", ["flux", "sdxl", "z-image"])
@pytest.mark.parametrize("method", EACH)
def test_pictures_are_near_and_pruning_is_exact(method, family, folder, cuts):
    plain, small = opened(folder(family), family), opened(folder(family), family, quantize=method)
    assert small.fingerprint != plain.fingerprint
    expected, images = plain.render(JOBS).images, small.render(JOBS).images
    far = max(float((one - other).abs().mean()) for one, other in zip(expected, images, strict=True))
    assert 0 < far < FAR[method], far
    pruned = small.render(JOBS, cuts({1: [0, 2], 2: [2]}))
    assert pruned.pruned_at == [2, 1, None] and torch.equal(pruned.images[2], images[2])
    assert small.pipeline.dtype == plain.pipeline.dtype == torch.float32


@pytest.mark.parametrize("method", EACH)
def test_blocks_need_an_eighth_or_a_quarter_of_the_memory(method, folder, monkeypatch):
    plain = opened(folder("flux"), "flux").pipeline
    small = opened(folder("flux"), "flux", quantize=method).pipeline
    assert weight_bytes(small.text_encoder_2) == weight_bytes(plain.text_encoder_2), "it is not large"
    for name in ("attn.to_q", "ff.net.2", "norm1.linear"):
        layer, was = (
            one.transformer.transformer_blocks[0].get_submodule(name).parameters() for one in (small, plain)
        )
        bits = 8 * sum(one.nbytes for one in layer) / sum(one.numel() for one in was)
        # A scale for 64 weights, or for a row of 16 to 64.
        assert bits < (4 + 0.6 if method == "nf4" else 8 + 2) + 2, (name, bits)
    assert weight_bytes(small.transformer.x_embedder) == weight_bytes(plain.transformer.x_embedder)
    monkeypatch.setattr(quantization, "LARGE", 0)
    large = opened(folder("flux"), "flux", quantize=method)
    assert weight_bytes(large.pipeline.text_encoder_2) < weight_bytes(plain.text_encoder_2)
    assert large.pipeline.text_encoder_2.dtype == torch.float32
    assert large.render(JOBS[:1]).images[0].std() > 0.01


@pytest.mark.parametrize("method", EACH)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loras_are_kept(method, dtype, folder, tmp_path):
    torch.manual_seed(1)
    name = "transformer.transformer_blocks.0.attn.to_q"
    block = opened(folder("flux"), "flux").pipeline.transformer.transformer_blocks[0]
    out, width = block.attn.to_q.weight.shape
    lora = {f"{name}.lora_A.weight": torch.randn(2, width), f"{name}.lora_B.weight": 20 * torch.randn(out, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    drawn = {}
    for quantize in (None, method):
        for files in (None, [tmp_path / "lora.safetensors"]):
            one = opened(folder("flux"), "flux", dtype=dtype, quantize=quantize, lora=files)
            drawn[quantize, bool(files)] = one.render(JOBS[:1]).images[0]

    def far(one, other):
        return float((drawn[one] - drawn[other]).abs().mean())

    near = far((method, True), (None, True))
    assert near < FAR[method] and 1.5 * near < far((method, True), (method, False)), near


def test_a_single_file_is_quantised_as_its_folder(folder, pipelines, tmp_path):
    save_file(original.checkpoint(pipelines("flux"), "flux"), tmp_path / "flux.safetensors")
    file = opened(tmp_path / "flux.safetensors", "flux", base=folder("flux"), quantize="int8")
    whole = opened(folder("flux"), "flux", quantize="int8")
    assert torch.equal(file.render(JOBS[:1]).images[0], whole.render(JOBS[:1]).images[0])


@pytest.mark.parametrize("method", EACH)
def test_it_may_wait_in_main_memory(method, folder):
    """accelerate's hooks, which move layers to the device for the time that they compute."""
    from accelerate import cpu_offload

    one = opened(folder("flux"), "flux", quantize=method)
    expected = one.render(JOBS[:1]).images[0]
    cpu_offload(one.pipeline.transformer, torch.device("cpu"))
    assert torch.equal(one.render(JOBS[:1]).images[0], expected)


def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="quantize is one of nf4, int8, fp8; got 'int2'"):
        opened(tmp_path / "none", "flux", quantize="int2")
    monkeypatch.setattr(quantization, "is_installed", lambda module: False)
    with pytest.raises(Unsupported, match="pip install bitsandbytes.*int8 or fp8, which need none"):
        opened(tmp_path / "none", "flux", quantize="nf4")


def test_quantised_weights_are_not_quantised_again(pipelines):
    from types import SimpleNamespace

    pipe = pipelines("flux")
    pipe.transformer.hf_quantizer = SimpleNamespace()
    try:
        with pytest.raises(BadInput, match="stored quantised already; leave out quantize"):
            quantization.quantize(pipe, [pipe.transformer], "int8")
    finally:
        del pipe.transformer.hf_quantizer
