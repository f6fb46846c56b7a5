"""The few-step renderer's recipe: what it learns from, what it starts from, and a folder that diffusers draws
from as we do."""

import random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reprise.backend.core.types import Job
from reprise.backend.lab.weights import turbo as recipe
from reprise.backend.lab.weights.text_encoders import tokenize
from reprise.backend.renderers.shapeworld import WEIGHTS, ShapeWorldTurboRenderer
from reprise.backend.shapeworld.prompts import prompts
from reprise.backend.shapeworld.scenes import GROUNDS


def quiet(line):
    pass


@pytest.fixture(scope="module")
def flux():
    from diffusers import FluxPipeline

    pipeline: Any = FluxPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def small(request):
    """Two paths a shard, one teacher's step a window, eight samples a step."""
    patch = pytest.MonkeyPatch()
    for name, value in {"SHARD": 2, "SUBSTEPS": 1, "BATCH": 8}.items():
        patch.setattr(recipe, name, value)
    yield
    patch.undo()


def train(work, steps=3):
    return recipe.train_turbo(
        work,
        WEIGHTS,
        steps=steps,
        paths=2,
        firsts=2,
        ground_steps=2,
        fit_steps=3,
        compiled=False,
        log=quiet,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory, small):
    work = tmp_path_factory.mktemp("work")
    train(work)
    return work


def test_no_prompt_of_the_training_is_held_out():
    held_out = {case.prompt for case in prompts("held-out")}
    rng = random.Random(0)
    drawn = [recipe.prompt(rng) for _ in range(1000)]
    assert not held_out & set(drawn) and all(drawn)
    typed = {case.prompt for case in prompts("train")}
    assert 0.1 < sum(text in typed for text in drawn) / len(drawn) < 0.25


def test_a_path_is_the_one_that_the_teachers_pipeline_takes(flux, small):
    texts = ["a large red circle on the left, on a white background", "a photo of two stars"]
    noise = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    ends = recipe.teacher_paths(flux, texts, noise)
    drawn = flux(
        texts,
        negative_prompt=["", ""],
        true_cfg_scale=recipe.GUIDANCE,
        num_inference_steps=recipe.WINDOWS * recipe.SUBSTEPS,
        width=128,
        height=128,
        max_sequence_length=recipe.TEXT_LENGTH,
        latents=noise,
        output_type="latent",
    ).images
    assert torch.equal(ends[:, 0], noise)
    assert torch.allclose(ends[:, -1], drawn, atol=1e-4)
    assert torch.equal(recipe.teacher_paths(flux, texts, noise, 1), ends[:, :2])


def test_each_ground_is_a_direction_of_its_own_and_no_ground_is_none():
    texts = [f"a red circle, on a {ground} background" for ground in GROUNDS]
    added = recipe.ground_features([*texts, "a white background, a star", "a photo of a star"], 128)[:, 0]
    apart = added[:4] @ added[:4].T
    assert torch.allclose(apart, recipe.GROUND_SIZE**2 * torch.eye(4), atol=1e-4)
    assert torch.equal(added[4], added[0]) and not added[5].any()


def test_the_text_encoder_learns_to_say_the_ground_in_each_token(flux, tmp_path, small):
    losses = []

    def note(line):
        losses.append(float(line.split("loss ")[1].split()[0]))

    before = flux.text_encoder_2.state_dict()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    encoder = recipe.teach_grounds(flux, tmp_path, 0, 50, note)
    assert losses[1] < losses[0] and all(torch.equal(before[name], kept[name]) for name in kept)
    saved = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert torch.equal(saved["shared.weight"], encoder.shared.weight)


def test_with_the_teachers_modulations_the_student_is_the_teacher(flux):
    student = recipe.new_transformer(flux.transformer)
    clip_ids, t5_ids = tokenize(["a red circle"], flux.tokenizer, flux.tokenizer_2)
    pooled = flux.text_encoder(input_ids=clip_ids).pooler_output
    sigma = torch.tensor([0.7])
    exact = recipe.modulations(flux.transformer, pooled, sigma)
    student.distilled_guidance_layer.register_forward_hook(lambda *_: exact)
    given = {
        "hidden_states": torch.randn(1, 64, 64),
        "timestep": sigma,
        "encoder_hidden_states": flux.text_encoder_2(input_ids=t5_ids).last_hidden_state,
        "txt_ids": torch.zeros(recipe.TEXT_LENGTH, 3),
        "img_ids": recipe.image_ids(),
        "return_dict": False,
    }
    with torch.no_grad():
        [expected] = flux.transformer(pooled_projections=pooled, **given)
        [found] = student(**given)
    assert expected.std() > 0.1 and torch.allclose(found, expected, atol=1e-4)


def test_the_modulations_network_learns(flux, tmp_path):
    torch.manual_seed(0)
    student, losses = recipe.new_transformer(flux.transformer), []

    def note(line):
        losses.append(float(line.split("loss ")[1].split()[0]))

    recipe.fit_modulations(student, flux, tmp_path, 0, 100, note)
    assert losses[-1] < 0.5 * losses[0]


def test_windows_are_straight_lines_between_the_paths_ends():
    ends = torch.randn(2, 5, 64, 64)
    noisy, sigma, velocity = recipe.windowed(ends, torch.tensor([0, 2]), torch.tensor([0.0, 0.5]))
    assert torch.equal(noisy[0], ends[0, 0])
    assert torch.allclose(noisy[1], (ends[1, 2] + ends[1, 3]) / 2)
    assert sigma.tolist() == [1.0, 0.375]
    assert torch.allclose(noisy[0] - velocity[0] / 4, ends[0, 1], atol=1e-6)  # a step of a whole window
    assert torch.allclose(noisy[1] - velocity[1] / 8, ends[1, 3], atol=1e-6)  # and of the half that is left


def test_the_mask_is_the_one_of_the_pipeline(flux, monkeypatch):
    """What the student is trained with is what diffusers gives it when it draws."""
    student = recipe.new_transformer(flux.transformer)
    pipeline = recipe.chroma_pipeline(flux, student, flux.text_encoder_2)
    pipeline.set_progress_bar_config(disable=True)
    features, mask = recipe.read_prompts(pipeline, ["a red circle"])
    seen = {}

    def keep(module, args, kwargs):
        seen.update(kwargs)

    pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    pipeline(
        "a red circle",
        guidance_scale=1.0,
        num_inference_steps=1,
        width=128,
        height=128,
        max_sequence_length=recipe.TEXT_LENGTH,
        output_type="latent",
    )
    assert torch.equal(seen["attention_mask"], mask) and torch.equal(seen["encoder_hidden_states"], features)
    assert torch.equal(seen["img_ids"], recipe.image_ids()) and not seen["txt_ids"].any()


def test_a_stopped_training_resumes_with_the_same_steps(work, tmp_path, monkeypatch):
    run = recipe.WeightsLoop.run

    def killed(self, take_step, **kwargs):
        def step(rng, number):
            if number == 2 and self.total == 3 and self.warmup == 30:
                raise KeyboardInterrupt
            return take_step(rng, number)

        self.save_every = 0.0
        run(self, step, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(recipe.WeightsLoop, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    one, other = (
        load_file(train(folder) / "diffusion_pytorch_model.safetensors") for folder in (work, tmp_path)
    )
    assert one and all(torch.equal(one[name], other[name]) for name in one)


def test_the_assembled_folder_draws_as_diffusers_draws(work, tmp_path):
    from diffusers import ChromaPipeline

    folder = recipe.assemble_turbo(work, WEIGHTS, tmp_path / "renderer-turbo")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 8e6
    assert not any("_name_or_path" in file.read_text() for file in folder.glob("*/config.json"))
    renderer = ShapeWorldTurboRenderer(folder)
    result = renderer.render([Job("a red circle", 7)])
    assert result.denoiser_rows == renderer.STEPS == 4
    plain: Any = ChromaPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        "a red circle",
        num_inference_steps=4,
        guidance_scale=1.0,
        width=128,
        height=128,
        max_sequence_length=recipe.TEXT_LENGTH,
        output_type="pt",
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert torch.allclose(result.images[0], expected.permute(1, 2, 0), atol=1.1 / 255)
