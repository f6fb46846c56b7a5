"""The second renderer's recipe: a few steps of it, and a folder that diffusers draws from as we do."""

import random

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.types import Job
from reprise.backend.lab.weights import stable_diffusion as recipe
from reprise.backend.lab.weights.autoencoder import new_autoencoder
from reprise.backend.renderers.shapeworld import ShapeWorldSDRenderer
from reprise.backend.shapeworld.captions import spelled_out
from reprise.backend.shapeworld.scenes import PLACES, Scene, place_thing
from reprise.backend.shapeworld.tokenizers import clip_tokenizer


def quiet(line):
    pass


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The build's folder after three steps of each stage, on an untrained autoencoder."""
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    vae = new_autoencoder()
    vae.register_to_config(scaling_factor=4.0, shift_factor=0.05)
    for name in ("autoencoder", "vae"):
        vae.save_pretrained(work / name)
    recipe.train_text_encoder(work, steps=3, log=quiet)
    recipe.train_unet(work, steps=3, scenes=32, log=quiet)
    return work


def test_the_text_encoder_stays_as_it_was_pretrained(work):
    saved = load_file(work / "sd" / "text_encoder" / "model.safetensors")
    kept = torch.load(work / "sd" / "text.ckpt", weights_only=True)["model"]
    assert saved and all(torch.equal(tensor, kept[f"clip.{name}"]) for name, tensor in saved.items())


def test_the_saved_model_is_the_average_without_the_layout_head(work):
    saved = load_file(work / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    kept = torch.load(work / "sd" / "unet.ckpt", weights_only=True)["model"]
    assert {name.removeprefix("average.unet.") for name in kept if "average.unet" in name} == set(saved)
    assert all(torch.equal(tensor, kept[f"average.unet.{name}"]) for name, tensor in saved.items())
    assert any(not torch.equal(tensor, kept[f"model.unet.{name}"]) for name, tensor in saved.items())


def test_no_signal_is_left_where_sampling_begins():
    scheduler = recipe.new_scheduler()
    scheduler.set_timesteps(16)
    assert scheduler.timesteps[0] == 999 and scheduler.alphas_cumprod[999] == 0


def test_the_layout_is_learned_from_the_middle_of_the_unet():
    """Its loss has gradients before its features and none behind them."""
    model = recipe.UNetWithLayout()
    model(torch.randn(1, 16, 16, 16), torch.tensor([500]), torch.randn(1, 5, recipe.TEXT_WIDTH))
    model.layout_loss(torch.ones(1, 64, 2, dtype=torch.long)).backward()
    assert model.unet.conv_in.weight.grad is not None
    assert all(p.grad is None for p in model.unet.up_blocks[1].parameters())


def test_captions_of_four_things_are_not_truncated():
    things = tuple(
        place_thing(random.Random(0), shape, "purple", place, "large")
        for shape, place in zip(("star", "ring", "heart", "cross"), PLACES[::2])
    )
    ids = clip_tokenizer()("a photo of " + spelled_out(Scene("white", things))).input_ids
    assert len(ids) <= recipe.TEXT_LENGTH


def test_the_assembled_folder_draws_as_diffusers_draws(work, tmp_path):
    from diffusers import StableDiffusionPipeline

    folder = recipe.assemble_second(work, tmp_path / "renderer-sd")
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 8 * 2**20
    assert not any("_name_or_path" in file.read_text() for file in folder.glob("*/config.json"))
    image = ShapeWorldSDRenderer(folder, steps=2).render([Job("a red circle", 7)]).images[0]
    plain = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        "a red circle",
        num_inference_steps=2,
        guidance_scale=3.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert torch.allclose(image, expected.permute(1, 2, 0), atol=1.1 / 255)
