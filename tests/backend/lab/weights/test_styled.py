"""The styled renderers' recipe: a few steps of it from the committed renderers."""

import pytest
import torch
from diffusers import AutoencoderTiny

from reprise.backend.core.types import Job
from reprise.backend.lab.weights import styled as recipe
from reprise.backend.renderers.shapeworld import SD_WEIGHTS, WEIGHTS, StyledRenderer, StyledSDRenderer
from reprise.backend.shapeworld.styles import STYLE_WORDS


def quiet(line):
    pass


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    recipe.train_styled_autoencoder(work, WEIGHTS, steps=2, log=quiet)
    recipe.train_styled_decoder(work, steps=2, scenes=64, compiled=False, log=quiet)
    return work


def test_the_decoder_alone_is_trained_further(work):
    before, after = (AutoencoderTiny.from_pretrained(work / f"styled-vae{end}") for end in ("", "-sharp"))
    changed = {
        name.split(".")[0]
        for name, one in after.state_dict().items()
        if not torch.equal(one, before.state_dict()[name])
    }
    assert changed == {"decoder"} and after.config.scaling_factor == before.config.scaling_factor


def test_latents_of_styled_pictures_have_unit_variance(work):
    known = recipe.styled_scenes(work, seed=0, count=64, log=quiet)
    assert known.latents.shape == (64, 16, 16, 16)
    assert abs(known.latents.float().std() - 1) < 0.1 and abs(known.latents.float().mean()) < 0.1
    again = recipe.styled_scenes(work, seed=0, count=64, log=quiet)
    assert again.styles == known.styles and torch.equal(again.latents, known.latents)


@pytest.mark.parametrize("start, renderer", [(WEIGHTS, StyledRenderer), (SD_WEIGHTS, StyledSDRenderer)])
def test_a_styled_renderer_draws_and_has_a_token_for_every_style(work, tmp_path, start, renderer):
    out = tmp_path / start.name
    made = recipe.train_styled(work, start, out, steps=2, scenes=64, compiled=False, log=quiet)
    assert not any("_name_or_path" in file.read_text() for file in made.rglob("*.json"))
    drawn = renderer(made, steps=1).render([Job("a photo of a ring, pastel, glossy", 0)])
    assert drawn.images[0].shape == (128, 128, 3)

    from transformers import AutoTokenizer

    for name in ("tokenizer", "tokenizer_2"):
        if (made / name).exists():
            taught, plain = (AutoTokenizer.from_pretrained(folder / name) for folder in (made, start))
            assert len(taught) == len(plain) + len(STYLE_WORDS)
            words = f"a ring, {', '.join(STYLE_WORDS)}"
            body = [token for token in taught(words)["input_ids"] if token >= len(plain)]
            assert len(body) == len(STYLE_WORDS)
            old = "a red ring at the left"
            assert taught(old)["input_ids"] == plain(old)["input_ids"]
