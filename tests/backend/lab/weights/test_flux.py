"""The renderer's recipe: what its layout targets say, and a few steps of it."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5EncoderModel

from reprise.backend.lab.weights import flux as recipe
from reprise.backend.lab.weights.autoencoder import new_autoencoder
from reprise.backend.lab.weights.text_encoders import new_text_encoders, tokenize
from reprise.backend.shapeworld.scenes import COLORS, SHAPES, Scene, Thing
from reprise.backend.shapeworld.tokenizers import clip_tokenizer, t5_tokenizer

FILES = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
}


def test_a_layout_equals_the_hand_made_one():
    # Tokens are 16 pixels wide: of their centres the box from 44 to 68 covers 56 only, not 40 and 72.
    scene = Scene("grey", (Thing("star", "blue", 56.0, 56.0, 12.0), Thing("ring", "red", 24.0, 104.0, 16.0)))
    cells = torch.tensor(recipe.layout(scene)).view(8, 8, 2)
    star = [1 + list(COLORS).index("blue"), 1 + SHAPES.index("star")]
    ring = [1 + list(COLORS).index("red"), 1 + SHAPES.index("ring")]
    assert cells[3, 3].tolist() == star
    assert cells[6, 1].tolist() == ring
    assert (cells.sum(-1) > 0).sum() == 2


@pytest.fixture
def make_work(tmp_path):
    """Makes folders of untrained stages, all alike, as the build has them before the renderer."""

    def make(name):
        torch.manual_seed(0)
        clip, t5 = new_text_encoders()
        clip.save_pretrained(tmp_path / name / "text_encoder")
        t5.save_pretrained(tmp_path / name / "text_encoder_2")
        new_autoencoder().save_pretrained(tmp_path / name / "autoencoder")
        return tmp_path / name

    return make


def train(work, steps):
    recipe.train_renderer(work, steps=steps, scenes=32, compiled=False, log=lambda line: None)
    return {part: load_file(work / part / FILES[part]) for part in FILES}


def test_a_step_trains_transformer_and_encoders_and_no_layout_head_is_kept(make_work):
    work = make_work("a")
    encoder = T5EncoderModel.from_pretrained(work / "text_encoder_2").state_dict()
    before = {name: tensor.clone() for name, tensor in encoder.items()}  # the file is written over
    after = train(work, 4)
    assert any(not torch.equal(before[name], tensor) for name, tensor in after["text_encoder_2"].items())
    assert not [name for name in after["transformer"] if "layout" in name]
    assert all(tensor.isfinite().all() for part in after.values() for tensor in part.values())


def test_the_layout_is_learned_from_the_middle_of_the_transformer(make_work):
    """Its loss has gradients in the blocks before its features and in none behind them."""
    clip, t5 = new_text_encoders()
    model = recipe.FluxWithLayout(clip, t5, recipe.new_transformer())
    ids = tokenize(["a red circle"], clip_tokenizer(), t5_tokenizer())
    model(torch.randn(1, 64, 64), torch.tensor([0.5]), *ids)
    model.layout_loss(torch.ones(1, 64, 2, dtype=torch.long)).backward()
    blocks = model.transformer.single_transformer_blocks
    assert model.transformer.x_embedder.weight.grad is not None
    assert all(p.grad is None for p in blocks[2].parameters())
    assert model.transformer.proj_out.weight.grad is None
