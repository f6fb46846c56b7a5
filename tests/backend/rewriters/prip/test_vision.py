"""The image side of PRIP against transformers' own BLIP-2, at tiny random size."""

import shutil

import pytest
import torch

from reprise.backend.core.errors import BadInput, CheckpointError
from reprise.backend.rewriters.prip.vision import MEAN, STD, ImagePivot

from .tiny_prip import image as made

IMAGES = torch.rand(3, 40, 56, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def eye():
    return made()


def test_a_picture_has_its_own_pivot(eye):
    together = eye(IMAGES)
    assert together.shape == (3, 5, 24) and (together[0] - together[1]).abs().max() > 1e-3
    torch.testing.assert_close(eye(IMAGES[1:2])[0], together[1], rtol=0, atol=1e-5)


def test_pictures_are_resized_to_a_square_and_normalised(eye):
    plain = torch.full((1, 50, 20, 3), 0.5)
    expected = (0.5 - torch.tensor(MEAN)) / torch.tensor(STD)
    pixels = eye.preprocess(plain)
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels, expected.view(1, 3, 1, 1).expand_as(pixels), rtol=0, atol=1e-5)
    fitting = torch.rand(1, 32, 32, 3)
    again = eye.preprocess(fitting).movedim(1, -1) * torch.tensor(STD) + torch.tensor(MEAN)
    torch.testing.assert_close(again, fitting, rtol=0, atol=1e-5)


def test_pixels_equal_those_of_blip_2s_processor(eye):
    from transformers import BlipImageProcessor

    picture = (IMAGES[0] * 255).round().byte()
    process = BlipImageProcessor(size={"height": 32, "width": 32})
    expected = torch.as_tensor(process(picture.numpy(), return_tensors="pt")["pixel_values"])
    away = (eye.preprocess(picture[None] / 255) - expected).abs()
    assert away.mean() < 0.01 and away.max() < 0.1  # it resizes bytes and rounds to them; a level is .015


@pytest.mark.parametrize("shape", [(40, 40, 3), (1, 40, 40, 4), (0, 40, 40, 3), (1, 3, 40, 40)])
def test_what_is_no_picture_is_refused(eye, shape):
    with pytest.raises(BadInput, match=r"expected pictures \(B, H, W, 3\)"):
        eye(torch.zeros(shape))


def test_a_saved_tower_loads_unchanged(eye, tmp_path):
    eye.save_pretrained(tmp_path / "image")
    again = ImagePivot.from_pretrained(tmp_path / "image")
    assert torch.equal(again(IMAGES), eye(IMAGES)) and not any(w.requires_grad for w in again.parameters())
    for name, message in (("model.safetensors", "cannot load the vision"), ("config.json", "config.json")):
        where = shutil.copytree(tmp_path / "image", tmp_path / name)
        (where / name).write_bytes((where / name).read_bytes()[:30])
        with pytest.raises(CheckpointError, match=message):
            ImagePivot.from_pretrained(where)
    with pytest.raises(CheckpointError, match="saved without one"):
        ImagePivot.from_pretrained(tmp_path / "none")


@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_a_published_blip_2_gives_the_same_pivots(tmp_path, shards):
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    torch.manual_seed(4)
    whole = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 16,
            },
            qformer_config={
                "hidden_size": 24,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "encoder_hidden_size": 32,
                "vocab_size": 50,
            },
            text_config=OPTConfig(
                hidden_size=16,
                ffn_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=20,
                max_position_embeddings=20,
                word_embed_proj_dim=16,
            ).to_dict(),
            num_query_tokens=6,
        )
    ).eval()
    torch.nn.init.normal_(whole.query_tokens)
    whole.save_pretrained(tmp_path, max_shard_size=shards)
    taken = ImagePivot.from_blip2(str(tmp_path))
    with torch.no_grad():
        seen = whole.vision_model(taken.preprocess(IMAGES)).last_hidden_state
        expected = whole.qformer(whole.query_tokens.expand(3, -1, -1), encoder_hidden_states=seen)
        torch.testing.assert_close(taken(IMAGES), expected.last_hidden_state, rtol=0, atol=1e-6)
    with pytest.raises(CheckpointError, match="cannot take BLIP-2's vision part"):
        ImagePivot.from_blip2(str(tmp_path / "none"))
