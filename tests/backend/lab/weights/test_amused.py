"""The masked renderer's recipe: a few steps of it, and a folder that diffusers draws from as we do."""

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.types import Job
from reprise.backend.lab.weights import amused as recipe
from reprise.backend.renderers.shapeworld import MASKED_WEIGHTS, ShapeWorldMaskedRenderer
from reprise.backend.shapeworld.captions import spelled_out
from reprise.backend.shapeworld.detector import detect
from reprise.backend.shapeworld.drawing import draw
from reprise.backend.shapeworld.scenes import random_scene


def quiet(line):
    pass


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The build's folder after a few steps of each stage; of ten of the first, nine know codes."""
    work = tmp_path_factory.mktemp("work")
    recipe.train_codes(work, steps=10, log=quiet)
    recipe.train_encoder(work, steps=2, log=quiet)
    recipe.train_text_encoder(work, steps=2, log=quiet)
    recipe.train_transformer(work, steps=3, scenes=32, log=quiet)
    return work


def test_a_killed_training_resumes_with_the_same_steps(work, tmp_path, monkeypatch):
    """The codebook is placed at the second step; a run killed after the fifth goes on as if it were not."""
    calls, loss = [], recipe.Quantizer.loss

    def killed(self, images, quantized):
        calls.append(quantized)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(self, images, quantized)

    monkeypatch.setattr(recipe.WeightsLoop, "run", _saving_each_step(recipe.WeightsLoop.run))
    monkeypatch.setattr(recipe.Quantizer, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.train_codes(tmp_path, steps=10, log=quiet)
    assert calls == [False, True, True, True, True, True]
    recipe.train_codes(tmp_path, steps=10, log=quiet)
    assert len(calls) == 6 + 5
    one, other = (load_file(folder / "masked" / "codes.safetensors") for folder in (work, tmp_path))
    assert one and all(torch.equal(one[name], other[name]) for name in one)


def _saving_each_step(run):
    def eager(self, *args, **kwargs):
        self.save_every = 0.0
        run(self, *args, **kwargs)

    return eager


def test_tokens_are_the_nearest_codes_of_latents(work):
    scenes, tokens = recipe.tokenized_scenes(work, 0, 32, quiet)
    assert tokens.shape == (32, 16, 16) and tokens.dtype == torch.long
    assert 0 <= tokens.min() and tokens.max() < recipe.CODES
    model = recipe.read_codes(work)
    latents = model.local(recipe.to_pictures([draw(scenes[5])]))[0].flatten(1).T
    nearest = torch.cdist(latents, model.vqvae.quantize.embedding.weight).argmin(1)
    assert (nearest == tokens[5].flatten()).float().mean() > 0.99  # alone, and in a batch: rounding


def test_a_token_is_chosen_by_its_own_window():
    model = recipe.Quantizer().eval()
    image = torch.rand(1, 3, 128, 128)
    other = torch.rand_like(image)
    other[:, :, 38:50, 62:74] = image[:, :, 38:50, 62:74]  # 12 pixels about the 8 of row 5, column 8
    same = (model.local(image) - model.local(other)).abs().amax((0, 1)) < 1e-6
    assert same.nonzero().tolist() == [[5, 8]]


def test_the_encoder_learns_the_codes_and_nothing_else_changes(work, tmp_path, monkeypatch):
    """Its tokens come nearer to those that the transformer is taught; codes and decoder are as they were."""
    model = recipe.read_codes(work)
    taught = load_file(work / "masked" / "vqvae" / "diffusion_pytorch_model.safetensors")
    before = model.vqvae.state_dict()
    changed = {name.split(".")[0] for name in taught if not torch.equal(taught[name], before[name])}
    assert changed == {"encoder", "quant_conv"} and set(taught) == set(before)
    (tmp_path / "masked").mkdir()
    shutil.copy(work / "masked" / "codes.safetensors", tmp_path / "masked")
    losses = []
    run = recipe.WeightsLoop.run

    def watched(self, take_step, **kwargs):
        run(self, lambda rng, step: losses.append(take_step(rng, step)) or losses[-1], **kwargs)

    monkeypatch.setattr(recipe.WeightsLoop, "run", watched)
    recipe.train_encoder(tmp_path, steps=12, log=quiet)
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_unused_codes_move_to_where_the_error_is():
    torch.manual_seed(0)
    model = recipe.Quantizer().eval()
    images = recipe.to_pictures([draw(random_scene(random.Random(0))) for _ in range(2)])
    latents = model.local(images).detach().permute(0, 2, 3, 1).flatten(0, 2)
    codes = model.vqvae.quantize.embedding.weight

    def error():
        return torch.cdist(latents, codes).amin(1).square().mean().item()

    before, kept = error(), codes[5:].detach().clone()
    model.used.zero_()
    model.place_codes(images, torch.arange(5))
    assert error() < 0.5 * before and torch.equal(codes[5:], kept)
    assert torch.cdist(codes[:5], latents).amin(1).max() < 1e-3  # each is a latent
    assert len(torch.unique(codes[:5], dim=0)) == 5
    assert model.used[:5].eq(1).all() and not model.used[5:].any()


def test_the_committed_autoencoder_preserves_pictures():
    from diffusers import VQModel

    vqvae = VQModel.from_pretrained(MASKED_WEIGHTS / "vqvae", torch_dtype=torch.float32).eval()
    rng = random.Random(5)
    drawn = [draw(random_scene(rng)) for _ in range(24)]
    with torch.no_grad():
        latents = vqvae.encode(recipe.to_pictures(drawn)).latents
        tokens = vqvae.quantize(latents)[2][2].view(24, 16, 16)
        pixels = vqvae.decode(
            tokens, force_not_quantize=True, shape=(*tokens.shape, vqvae.config.latent_channels)
        )
        kept = pixels.sample.clamp(0, 1).mul(255).round().byte().movedim(1, -1).numpy()
    things = [
        [{(t.shape, t.color, t.place) for t in detect(picture)} for picture in some] for some in (drawn, kept)
    ]
    assert sum(before == after for before, after in zip(*things)) >= 22


def test_the_committed_renderer_draws_spelled_out_prompts():
    rng = random.Random(6)
    scenes = [random_scene(rng) for _ in range(12)]
    jobs = [Job(spelled_out(scene), seed) for seed, scene in enumerate(scenes)]
    drawn = ShapeWorldMaskedRenderer().render(jobs).images
    wanted = [{(t.shape, t.color, t.place) for t in scene.things} for scene in scenes]
    found = [
        {(t.shape, t.color, t.place) for t in detect((image * 255).round().byte().numpy())} for image in drawn
    ]
    assert sum(map(set.__eq__, wanted, found)) >= 6


def test_masks_have_the_right_shares():
    torch.manual_seed(0)
    hidden = recipe.random_mask(torch.zeros(4000, 16, 16, dtype=torch.long))
    share = hidden.float().mean((1, 2))
    assert share.min() >= 1 / 256 and share.max() == 1
    assert abs(share.mean() - 2 / torch.pi) < 0.02  # the mean of cos(u pi / 2)
    assert (hidden.float().mean(0) - share.mean()).abs().max() < 0.04  # no place is special


def test_the_saved_model_is_the_average_without_the_layout_head(work):
    saved = load_file(work / "masked" / "transformer" / "diffusion_pytorch_model.safetensors")
    kept = torch.load(work / "masked" / "transformer.ckpt", weights_only=True)["model"]
    head = "average.transformer."
    assert {name.removeprefix(head) for name in kept if name.startswith(head)} == set(saved)
    assert all(torch.equal(tensor, kept[head + name]) for name, tensor in saved.items())
    assert any(not torch.equal(tensor, kept[f"model.transformer.{name}"]) for name, tensor in saved.items())


def test_the_layout_is_learned_from_the_middle_of_the_transformer():
    """Its loss has gradients before its features and none behind them."""
    model = recipe.AmusedWithLayout()
    logits = model(torch.full((1, 16, 16), recipe.MASK), torch.randn(1, 5, 128), torch.randn(1, 128))
    assert logits.shape == (1, recipe.CODES, 16, 16)
    model.layout_loss(torch.ones(1, 64, 2, dtype=torch.long)).backward()
    assert model.transformer.embed.conv.weight.grad is not None
    assert all(p.grad is None for p in model.transformer.up_block.parameters())


def test_sharpened_logits_are_divided_by_the_temperature():
    model = recipe.AmusedWithLayout().eval()
    words = torch.full((1, 16, 16), recipe.MASK), torch.randn(1, 5, 128), torch.randn(1, 128)
    with torch.no_grad():
        plain = model(*words)
        recipe.sharpen(model.transformer, 0.25)
        assert torch.allclose(model(*words), 4 * plain, rtol=1e-4, atol=1e-4)
    assert plain.abs().max() > 0.01


def test_the_assembled_folder_draws_as_diffusers_draws(work, tmp_path):
    from diffusers import AmusedPipeline

    folder = recipe.assemble_masked(work, tmp_path / "renderer-masked")
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 12 * 2**20
    assert not any("_name_or_path" in file.read_text() for file in folder.glob("*/config.json"))
    renderer = ShapeWorldMaskedRenderer(folder, steps=2)
    image = renderer.render([Job("a red circle", 7)]).images[0]
    plain = AmusedPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        "a red circle",
        num_inference_steps=2,
        guidance_scale=renderer.guidance,
        output_type="pt",
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert torch.allclose(image, expected.permute(1, 2, 0), atol=1.1 / 255)
