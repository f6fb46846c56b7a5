"""The autoencoder's recipe: the decoder goes on alone, and the latents stay what they are."""

import random

import pytest
import torch

from reprise.backend.lab.weights import autoencoder as recipe
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.scenes import random_scene


@pytest.mark.parametrize("center, corner", [(10.0, 0), (64.0, 32), (71.0, 40), (120.0, 64)])
def test_crops_lie_inside_and_on_the_grid(center, corner):
    assert recipe._corner(center) == corner


def test_the_decoder_alone_is_trained(tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    recipe.new_autoencoder().save_pretrained(tmp_path / "autoencoder")
    recipe.train_decoder(tmp_path, steps=2, scenes=8, compiled=False, log=lambda line: None)
    before = AutoencoderTiny.from_pretrained(tmp_path / "autoencoder").eval()
    after = AutoencoderTiny.from_pretrained(tmp_path / "vae").eval()
    picture = [draw(random_scene(random.Random(1)))]
    assert torch.equal(recipe.encode(before, picture), recipe.encode(after, picture))
    decoders = zip(before.decoder.state_dict().values(), after.decoder.state_dict().values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in decoders)
