"""LoRA files in ComfyUI's own loader: what it adds to each weight, against what we add.

The core's changes are brought into diffusers' names by diffusers' converters of single files, so that joined
layers are split by another hand than the one that is tested.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from reprise.backend.renderers.diffusers.converters import convert
from reprise.backend.renderers.diffusers.families import FAMILIES
from reprise.backend.renderers.diffusers.lora import BLOCKS, change_of, lora_tensors, save_lora
from reprise.backend.renderers.diffusers.lora_files import Target, read_adapter

from ..backend.renderers.diffusers.original_layouts import flux
from .lora_models import MODELS
from .trainers_files import CASES, CLIP, DORA, pair

pytestmark = pytest.mark.comfyui

TRAINED = ("FLUX", "FLUX.2", "Chroma", "Z-Image", "Krea 2", "Qwen-Image")


@pytest.fixture(scope="module")
def denoisers():
    import diffusers

    made = {}

    def get(name):
        if name not in made:
            _, kind, config, _, _ = MODELS[name]
            torch.manual_seed(0)
            made[name] = getattr(diffusers, kind)(**config)
        return made[name]

    return get


def model_file(folder, name):
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"class": MODELS[name][3], "unet_config": MODELS[name][4]}))
    return folder


def theirs(folder, name):
    """The core's changes in diffusers' names."""
    found = load_file(folder / "deltas.safetensors")
    if name in ("FLUX", "Chroma"):  # as they are in the published files
        found = {
            re.sub(r"(norms?\.(\w+_norm|\d+))\.weight", r"\1.scale", key): value
            for key, value in found.items()
        }
    if name == "SD1.x":  # more of it is in the file than in the pipeline
        config = {**MODELS[name][2], "time_cond_proj_dim": None, "class_embed_type": None}
        config |= {"addition_embed_type": None, "num_class_embeds": None}
        return convert(MODELS[name][1], found, config)
    return found if name == "Qwen-Image" else convert(MODELS[name][1], found, MODELS[name][2])


def ours(folder, name, denoiser):
    """{module: what is added to its weight}."""
    import diffusers

    component = "unet" if name == "SD1.x" else "transformer"
    target = Target({component: denoiser}, getattr(diffusers, MODELS[name][0]), denoiser.config)
    found = read_adapter(folder / "lora.safetensors", target)
    return {
        module: change_of(denoiser.get_submodule(module).weight, one) for (_, module), one in found.items()
    }


def compare(ours, theirs):
    """Every change is the same, and there are no others."""
    assert ours and {f"{module}.weight" for module in ours} <= theirs.keys()
    for key, value in theirs.items():
        module, _, half = key.rpartition(".")
        expected = ours.get(module) if half == "weight" else None
        if expected is None:
            assert not value.any(), key
        else:
            assert expected.abs().max() > 0.01, key
            torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-4)


def adapter(denoiser):
    """Random weights for every module that an adapter may go to."""
    return {
        module: pair(*layer.weight.shape)
        for module, layer in denoiser.named_modules()
        if re.fullmatch(BLOCKS, module)
    }


@pytest.fixture(scope="module")
def compared(in_comfyui, denoisers, tmp_path_factory):
    """ComfyUI's answer for all cases at once, and where its changes lie."""
    folder = tmp_path_factory.mktemp("files")
    for case, (name, tensors) in {**CASES, "DoRA": DORA}.items():
        made = model_file(folder / case, name)
        save_file({key: value.contiguous() for key, value in tensors.items()}, made / "lora.safetensors")
        if "DoRA" in case:
            save_file(flux(denoisers(name).state_dict()), made / "weights.safetensors")
    for name in TRAINED:
        family = FAMILIES[MODELS[name][0]]
        made = model_file(folder / f"trained {name}", name)
        save_lora(made, family, lora_tensors(family, adapter(denoisers(name)), 2.0), {})
    (folder / "clip").mkdir()
    (folder / "clip" / "model.json").write_text('{"class": "clip"}')
    save_file(CLIP, folder / "clip" / "lora.safetensors")
    return folder, in_comfyui("inside_deltas.py", str(folder))


@pytest.mark.parametrize("name", TRAINED)
def test_the_core_adds_what_was_trained(name, compared, denoisers):
    """Files as training writes them, with all modules that an adapter may go to."""
    folder, found = compared
    made, seen = adapter(denoisers(name)), found[f"trained {name}"]
    assert (seen["patches"], seen["warnings"]) == (len(made), [])
    compare(
        {module: 2.0 * b @ a for module, (a, b) in made.items()}, theirs(folder / f"trained {name}", name)
    )


@pytest.mark.parametrize("case", CASES)
def test_other_trainers_files_change_the_same_weights(case, compared, denoisers):
    folder, found = compared
    name, _ = CASES[case]
    assert found[case]["warnings"] == [] and found[case]["patches"] > 0
    compare(ours(folder / case, name, denoisers(name)), theirs(folder / case, name))


def test_text_encoders(compared):
    """Of SDXL: CLIP-L and CLIP-G, as wide as they are, with one layer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder, found = compared
    encoders = {}
    for name, wide, heads in (("text_encoder", 768, 12), ("text_encoder_2", 1280, 20)):
        config = CLIPTextConfig(
            vocab_size=10,
            hidden_size=wide,
            intermediate_size=4 * wide,
            num_hidden_layers=1,
            num_attention_heads=heads,
        )
        encoders[name] = CLIPTextModel(config)
    target = Target({"unet": torch.nn.Module(), **encoders})
    ours = read_adapter(folder / "clip" / "lora.safetensors", target)
    theirs = load_file(folder / "clip" / "deltas.safetensors")
    assert found["clip"]["warnings"] == [] and len(ours) == len(theirs) == 4
    for (component, module), one in ours.items():
        layer = encoders[component].get_submodule(module)
        core = "clip_l" if component == "text_encoder" else "clip_g"
        key = f"{core}.transformer.text_model.{module.removeprefix('text_model.')}.weight"
        torch.testing.assert_close(theirs[key], change_of(layer.weight, one).detach(), rtol=1e-4, atol=1e-4)


def test_a_dora_is_that_of_its_paper(compared, denoisers):
    """ComfyUI divides by the length of the base's rows, where the paper, peft and LyCORIS divide by that of
    the adapted ones: the direction of each row is the same, and its length differs by that quotient."""
    folder, found = compared
    layer = denoisers("FLUX").get_submodule("transformer_blocks.0.attn.to_out.0")
    (change,) = ours(folder / "DoRA", "FLUX", denoisers("FLUX")).values()
    assert found["DoRA"]["warnings"] == []
    weight = layer.weight.detach()
    core = weight + theirs(folder / "DoRA", "FLUX")["transformer_blocks.0.attn.to_out.0.weight"]
    down, up = pair(256, 256)
    adapted = weight + 0.5 * up @ down
    quotient = adapted.norm(dim=1, keepdim=True) / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(core, (weight + change.detach()) * quotient, rtol=1e-3, atol=1e-4)
