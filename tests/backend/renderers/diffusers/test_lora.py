"""LoRA files: what diffusers, peft and ComfyUI's key maps read, of every family."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reprise.backend.core.errors import CheckpointError
from reprise.backend.renderers.diffusers.lora import (
    ATTENTION,
    BLOCKS,
    apply_lora,
    lora_tensors,
    read_lora,
    save_lora,
)
from reprise.backend.renderers.diffusers.pipelines import family_of_pipeline

from ..conftest import build
from .drawing import denoiser_of, drawn

FAMILIES = ["flux", "sd3", "sd1", "sdxl", "pixart"]


def adapted(pipe, targets=BLOCKS):
    """A random adapter of peft's on a pipeline's denoiser: (the peft model, module -> (A, B), its scale)."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(1)
    model = get_peft_model(denoiser_of(pipe), LoraConfig(r=2, lora_alpha=6, target_modules=targets))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    halves = get_peft_model_state_dict(model)
    names = [key.removesuffix(".lora_A.weight") for key in halves if key.endswith("lora_A.weight")]
    both = {name: tuple(halves[f"{name}.lora_{half}.weight"] for half in "AB") for name in names}
    return model.eval(), {name.removeprefix("base_model.model."): pair for name, pair in both.items()}, 3.0


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    """(family's name, file, what the adapted pipeline draws, what the plain one draws)."""
    torch.set_num_threads(1)
    pipe = build(request.param)
    family = family_of_pipeline(pipe)
    plain = drawn(pipe)
    _, adapter, scale = adapted(pipe)
    file = save_lora(
        tmp_path_factory.mktemp(request.param),
        family,
        lora_tensors(family, adapter, scale),
        {"model": "tiny"},
    )
    return request.param, file, drawn(pipe), plain


def test_the_families_own_loader_draws_the_same(trained):
    name, file, expected, plain = trained
    assert (expected - plain).abs().max() > 0.01, "the adapter changes the picture"
    pipe = build(name)
    if name == "pixart":  # diffusers has no loader for it
        from peft import PeftModel

        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, file.parent).eval().merge_and_unload()
    else:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    torch.testing.assert_close(drawn(pipe), expected, rtol=1e-4, atol=1e-5)


def test_our_renderer_draws_the_same(trained):
    name, file, expected, plain = trained
    pipe = build(name)
    apply_lora(file, denoiser_of(pipe))
    torch.testing.assert_close(drawn(pipe), expected, rtol=1e-4, atol=1e-4)
    apply_lora(file, denoiser_of(pipe), strength=-1.0)
    torch.testing.assert_close(drawn(pipe), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_in_half_precision_a_small_change_is_not_lost(name, tmp_path):
    """It is what peft computes beside the weights, which stay as they are."""
    pipe = build(name)
    family = family_of_pipeline(pipe)
    model, adapter, scale = adapted(pipe)
    adapter = {module: (a, 1e-3 * b) for module, (a, b) in adapter.items()}
    file = save_lora(tmp_path, family, lora_tensors(family, adapter, scale), {})
    denoiser = denoiser_of(build(name)).to(torch.bfloat16)
    before = {key: weight.clone() for key, weight in denoiser.state_dict().items()}
    module = next(iter(adapter))
    layer, (a, b) = denoiser.get_submodule(module), adapter[module]
    given = torch.randn(5, a.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    plain = layer(given)
    apply_lora(file, denoiser)
    assert all(torch.equal(denoiser.state_dict()[key], weight) for key, weight in before.items())
    rounded = before[f"{module}.weight"] + (scale * (b @ a)).bfloat16()
    assert rounded.ne(before[f"{module}.weight"]).float().mean() < 0.2, "in the weights it would be lost"
    layer.weight.data.zero_()  # what is left is its own
    if layer.bias is not None:
        layer.bias.data.zero_()
    expected = scale * (given.float() @ a.T @ b.T)
    most = expected.abs().max().item()
    torch.testing.assert_close(layer(given).float(), expected, rtol=0.05, atol=0.02 * most)
    assert not torch.equal(layer(given), plain)
    apply_lora(file, denoiser, strength=-1.0)
    assert layer(given).abs().max() <= 0.02 * most, "another one on top"


def test_in_half_precision_it_draws_as_peft_does(tmp_path):
    pipe = build("flux")
    family = family_of_pipeline(pipe)
    model, adapter, scale = adapted(pipe)
    file = save_lora(tmp_path, family, lora_tensors(family, adapter, scale), {})
    expected = drawn(pipe.to(torch.bfloat16))
    other = build("flux").to(torch.bfloat16)
    plain = drawn(other)
    apply_lora(file, denoiser_of(other))
    far = (expected - plain).float().abs().mean()
    assert (drawn(other) - expected).float().abs().mean() < 0.1 * far


@pytest.mark.parametrize("name", ["flux", "sd1"])
def test_the_renderer_takes_a_file(name, tmp_path):
    from reprise.backend.core.errors import BadInput
    from reprise.backend.core.types import Job
    from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

    pipe = build(name)
    pipe.save_pretrained(tmp_path / "model")
    family = family_of_pipeline(pipe)
    _, adapter, scale = adapted(build(name))
    file = save_lora(tmp_path, family, lora_tensors(family, adapter, scale), {})
    settings = {"steps": 2, "size": 16, "device": "cpu"}
    plain, with_lora = (DiffusersRenderer(tmp_path / "model", lora=lora, **settings) for lora in (None, file))
    assert plain.fingerprint != with_lora.fingerprint
    one, other = (renderer.render([Job("a red cat", 3)]).images[0] for renderer in (plain, with_lora))
    assert (one - other).abs().max() > 0.01
    with pytest.raises(BadInput, match="object is left as it is"):
        DiffusersRenderer(pipe, lora=file, **settings)


def test_the_keys_and_metadata_of_a_file(trained):
    name, file, _, _ = trained
    tensors = load_file(file)
    known = {"flux": "transformer.", "sd3": "transformer.", "pixart": "base_model.model."}
    assert tensors and all(key.startswith(known.get(name, "lora_unet_")) for key in tensors)
    assert file.name == ("adapter_model.safetensors" if name == "pixart" else "lora.safetensors")
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["reprise"]) == {"model": "tiny"}


def test_half_precision(tmp_path):
    pipe = build("sd1")
    family, (_, adapter, scale) = family_of_pipeline(pipe), adapted(pipe, ATTENTION)
    file = save_lora(tmp_path, family, lora_tensors(family, adapter, scale), {}, "float16")
    tensors = load_file(file)
    assert {value.dtype for key, value in tensors.items() if not key.endswith("alpha")} == {torch.float16}
    assert {value.item() for key, value in tensors.items() if key.endswith("alpha")} == {2.0}, "the rank"
    read = read_lora(file, denoiser_of(build("sd1")))
    assert read.keys() == adapter.keys()
    for module, (a, b) in read.items():
        expected = scale * adapter[module][1] @ adapter[module][0]
        torch.testing.assert_close(b @ a, expected, rtol=0.02, atol=1e-4)


def test_an_alpha_of_another_tool_counts(tmp_path):
    pipe = build("sd1")
    module = next(name for name, _ in denoiser_of(pipe).named_modules() if name.endswith("attn1.to_q"))
    width = denoiser_of(pipe).get_submodule(module).weight.shape[0]
    key = "lora_unet_" + module.replace(".", "_")
    save_file(
        {
            f"{key}.lora_down.weight": torch.ones(2, width),
            f"{key}.lora_up.weight": torch.ones(width, 2),
            f"{key}.alpha": torch.tensor(1.0),
        },
        tmp_path / "l.safetensors",
    )
    before = denoiser_of(pipe).get_submodule(module).weight.detach().clone()
    apply_lora(tmp_path / "l.safetensors", denoiser_of(pipe), strength=0.5)
    added = denoiser_of(pipe).get_submodule(module).weight - before
    torch.testing.assert_close(added, torch.full_like(added, 0.5 * 2 * 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "is empty"),
        ({"lora_down.weight": torch.ones(8)}, r"got .*down \(8,\)"),
        ({"lora_up.weight": torch.ones(8)}, "two matrices"),
        ({"lora_up.weight": torch.tensor(1.0)}, "two matrices"),
        ({"lora_down.weight": torch.ones(2, 8, 3, 3)}, "another size"),
        ({"lora_up.weight": torch.zeros(8, 2)}, "changes nothing"),
        ({"lora_down.weight": torch.ones(0, 8), "lora_up.weight": torch.ones(8, 0)}, "rank of 1 at least"),
        ({"alpha": torch.ones(3)}, "one alpha, got alpha"),
        ({"alpha": torch.tensor(math.nan)}, "NaN, infinite"),
        ({"alpha": torch.tensor(math.inf)}, "NaN, infinite"),
        ({"lora_down.weight": torch.full((2, 8), math.nan)}, "NaN, infinite"),
        ({"lora_up.weight": torch.full((8, 2), 1e300, dtype=torch.float64)}, "too large"),
    ],
)
def test_damaged_files_are_refused(changes, message, tmp_path):
    denoiser = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8)})
    whole = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.ones(1)}
    tensors = {} if changes is None else {**whole, **changes}
    save_file({f"lora_unet_a.{name}": one for name, one in tensors.items()}, tmp_path / "l.safetensors")
    before = denoiser["a"].weight.detach().clone()
    with pytest.raises(CheckpointError, match=message) as raised:
        apply_lora(tmp_path / "l.safetensors", denoiser)
    assert "\n" not in str(raised.value) and torch.equal(denoiser["a"].weight, before)


def test_files_that_do_not_fit(tmp_path):
    pipe = build("flux")
    family, (_, adapter, scale) = family_of_pipeline(pipe), adapted(pipe, ATTENTION)
    tensors = lora_tensors(family, adapter, scale)
    file, flux = tmp_path / "l.safetensors", denoiser_of(build("flux"))
    for changed, message in (
        (
            {**tensors, **{f"transformer.x.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}},
            "no module for",
        ),
        ({key: value for key, value in list(tensors.items())[1:]}, "only one half"),
        ({key: value.repeat(1, 1 + ("lora_A" in key)) for key, value in tensors.items()}, "another size"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=message):
            apply_lora(file, flux)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="no LoRA of this UNet2DConditionModel"):
        read_lora(file, denoiser_of(build("sd1")))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_lora(file, flux)
