"""Models that were distilled to few steps are recognised, and not guided at double cost."""

from __future__ import annotations

import copy

import pytest

from reprise.backend.core.types import Job
from reprise.backend.lab.pipelines.every import EVERY
from reprise.backend.renderers.diffusers.distilled import distilled
from reprise.backend.renderers.diffusers.renderer import DiffusersRenderer

from ..conftest import build

JOB = [Job("a red cat", 1)]
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def with_scheduler(family: str, scheduler):
    pipe = copy.copy(build(family))
    pipe.scheduler = scheduler
    return pipe


def schedulers():
    from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler, TCDScheduler

    trailing = {**SD, "timestep_spacing": "trailing"}
    return {
        "LCMScheduler": ("sd1", LCMScheduler(**SD)),
        "TCDScheduler": ("sdxl", TCDScheduler(**SD)),
        "trailing": ("sdxl", EulerAncestralDiscreteScheduler(**trailing)),
        "EulerDiscreteScheduler with trailing": ("sd1", EulerDiscreteScheduler(**trailing)),
    }


@pytest.mark.parametrize("why", schedulers())
def test_a_few_step_scheduler_means_few_steps_without_guidance(why):
    pipe = with_scheduler(*schedulers()[why])
    draw = DiffusersRenderer(pipe, size=16)
    assert why in draw.distilled.why
    assert draw.steps == 4 and not draw.guided
    result = draw.render(JOB)
    assert result.denoiser_rows == 4  # one row a step: half of a guided model's
    told = DiffusersRenderer(pipe, size=16, steps=3, guidance=5.0)
    assert told.guided and told.render(JOB).denoiser_rows == 3 * 2


def test_what_is_guided_stays_guided():
    from diffusers import EulerDiscreteScheduler

    zero_snr = EulerDiscreteScheduler(
        **SD, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    for pipe in (build("sd1"), build("sdxl"), with_scheduler("sd1", zero_snr)):
        draw = DiffusersRenderer(pipe, size=16)
        assert draw.distilled is None and draw.guided and draw.steps == 50
    for name in (
        "runwayml/stable-diffusion-v1-5",
        "black-forest-labs/FLUX.1-dev",
        "turbo/sd15",
        "1000-steps",
    ):
        assert distilled(build("sd1"), name) is None


@pytest.mark.parametrize(
    "name, steps",
    [
        ("Tongyi-MAI/Z-Image-Turbo", 8),
        ("models/qwen-image-lightning-4steps.safetensors", 4),
        ("Krea-2-Turbo", 8),
        ("z-image-8-step", 8),
    ],
)
def test_names_say_it(name, steps):
    found = distilled(EVERY["z-image"](), name)
    assert found.steps == steps and "name" in found.why


def test_configs_say_it():
    from reprise.backend.lab.pipelines.recent import krea2

    draw = DiffusersRenderer(krea2(distilled=True), size=32)
    assert draw.distilled.why == "its config says is_distilled"
    assert draw.steps == 8 and not draw.guided and draw.render(JOB).denoiser_rows == 8
    schnell = distilled(build("flux_true_cfg"))
    assert "FLUX schnell" in schnell.why and schnell.steps == 4
    assert distilled(build("flux")) is None


def test_guidance_that_is_an_input_of_the_denoiser_stays():
    draw = DiffusersRenderer(EVERY["lcm"](), size=16)
    assert draw.distilled and draw.guidance == 8.5 and not draw.guided and draw.steps == 4
    draw = DiffusersRenderer(EVERY["sana-sprint"](), size=32)
    assert draw.steps == 2 and draw.guidance == 4.5 and draw.render(JOB).denoiser_rows == 2


@pytest.mark.parametrize(
    "example, steps",
    [
        ("pipe(prompt=prompt, num_inference_steps=6, guidance_scale=0.0).images[0]", 6),
        ("pipe(prompt, true_cfg_scale=1.0, width=512, num_inference_steps=8)", 8),
        ("pipe(prompt=prompt, num_inference_steps=1, guidance_scale=0.0)", 4),
        ("pipe(prompt, num_inference_steps=8, guidance_scale=4.0)", None),
        ("pipe(prompt, num_inference_steps=28, guidance_scale=0.0)", None),
        ("a turbo engine", None),
    ],
)
def test_the_example_of_a_model_card_says_it(example, steps, folders, tmp_path):
    import shutil

    folder = tmp_path / "a-model"
    shutil.copytree(folders("sd1"), folder)
    (folder / "README.md").write_text(f"# A model\n```python\nimage = {example}\n```\n")
    draw = DiffusersRenderer(folder, size=16, device="cpu")
    assert draw.steps == (steps or 50) and draw.guided == (steps is None)
