"""Drawing over a picture: the same seeds, batches, pruning and counting as from noise, on tiny pipelines."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    AmusedImg2ImgPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FluxImg2ImgPipeline,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from reprise.backend.core.errors import BadInput, Unsupported
from reprise.backend.core.types import InitImage, Job
from reprise.backend.renderers.diffusers.pipelines import borrowed
from reprise.backend.renderers.shapeworld import (
    ShapeWorldMaskedRenderer,
    ShapeWorldRenderer,
    ShapeWorldSDRenderer,
)
from reprise.backend.storage.cache import Cache

from ..conftest import ROWS, SETTINGS

PIPELINES = {
    "flux": FluxImg2ImgPipeline,
    "flux_true_cfg": FluxImg2ImgPipeline,
    "sd3": StableDiffusion3Img2ImgPipeline,
    "sd1": StableDiffusionImg2ImgPipeline,
    "sdxl": StableDiffusionXLImg2ImgPipeline,
    "amused": AmusedImg2ImgPipeline,
}
PROMPTS = ("a red cat", "two blue dogs", "a red cat", "one egg")


def start(strength=0.5, seed=0):
    return InitImage(torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(seed)), strength)


def jobs(init):
    return [Job(prompt, 11 + i, init) for i, prompt in enumerate(PROMPTS)]


def near(image, other):
    return bool((image - other).abs().max() <= 1 / 255 + 1e-6)


@pytest.mark.parametrize("family", PIPELINES)
def test_each_candidate_is_the_plain_classes_own_picture(family, renderer, pipelines):
    init = start()
    draw = renderer(family, chunk=1, steps=4)
    before = [draw.render([Job("a red cat", 1)]).images[0]]
    drawn = draw.render(jobs(init))
    settings = dict(SETTINGS[family])
    if "guidance" in settings:
        settings["guidance_scale"] = settings.pop("guidance")
    if "true_cfg" in settings:
        settings |= {"true_cfg_scale": settings.pop("true_cfg"), "negative_prompt": ""}
    if "flux" in family:
        settings |= {"width": 16, "height": 16}
    pipe = PIPELINES[family].from_pipe(pipelines(family))
    for job, image in zip(jobs(init), drawn.images, strict=True):
        plain = pipe(
            job.prompt,
            image=init.image.permute(2, 0, 1)[None],
            strength=init.strength,
            num_inference_steps=4,
            output_type="np",
            generator=torch.Generator().manual_seed(job.seed),
            **settings,
        ).images[0]
        assert near(torch.from_numpy(plain), image)
    assert drawn.denoiser_rows == drawn.denoiser_rows_full == 4 * 2 * ROWS[family]
    # What draws from noise is as it was.
    assert torch.equal(before[0], draw.render([Job("a red cat", 1)]).images[0])


@pytest.mark.parametrize("make", [ShapeWorldRenderer, ShapeWorldSDRenderer, ShapeWorldMaskedRenderer])
def test_a_lower_strength_stays_closer_to_the_picture(make):
    draw = make(steps=8)
    image = draw.render([Job("two red circles on a white background", 3)]).images[0]
    starts = [InitImage(image, strength) for strength in (0.13, 0.5, 1.0)]
    drawn = [draw.render([Job("one green cross on a blue background", 5, init)]).images[0] for init in starts]
    away = [float((one - image).abs().mean()) for one in drawn]
    assert away[0] < 0.05 < away[2] and away == sorted(away)


@pytest.mark.parametrize("family", PIPELINES)
def test_pruning_is_exact_and_counted(family, renderer, cuts):
    draw = renderer(family, chunk=1, steps=4)
    whole = draw.render(jobs(start()))
    watcher = cuts({1: [0], 3: [1, 3]})  # step 1 is left out, and so is the look at it
    cut = draw.render(jobs(start()), watcher)
    assert [step for step, _, _ in watcher.seen] == [3]
    assert cut.pruned_at == [3, None, 3, None]
    assert all(torch.equal(cut.images[i], whole.images[i]) for i in (1, 3))
    assert cut.images[0] is None and cut.images[2] is None
    assert cut.denoiser_rows == (4 + 2) * ROWS[family] and cut.denoiser_rows_full == whole.denoiser_rows


@pytest.mark.parametrize(
    "scheduler, first",
    [
        (DDIMScheduler, 3),
        (EulerAncestralDiscreteScheduler, 3),
        (DPMSolverMultistepScheduler, 3),
        (HeunDiscreteScheduler, 3),
        (PNDMScheduler, 2),  # one step is its two calls to warm up
    ],
)
def test_steps_keep_their_numbers_with_every_kind_of_scheduler(renderer, scheduler, first, cuts):
    told = []
    made = scheduler.from_config(DDIMScheduler(steps_offset=1).config)
    if scheduler is PNDMScheduler:
        made.register_to_config(skip_prk_steps=True)
    watcher = cuts({4: [0]})
    draw = renderer("sd1", scheduler=made, steps=4, chunk=1)
    drawn = draw.render(jobs(start()), watcher, lambda step, of: told.append((step, of)))
    assert [step for step, _ in told][-2:] == [3, 4] and min(told)[0] >= first
    assert [step for step, _, _ in watcher.seen] == [4] and drawn.pruned_at == [None, 4, 4, 4]


def test_the_cache_distinguishes_init_images(renderer, tmp_path):
    draw = renderer("sd1", cache=Cache(tmp_path), steps=4, chunk=1)
    first = draw.render([Job("one egg", 3, start())])
    assert draw.render([Job("one egg", 3, start())]).denoiser_rows == 0
    assert draw.render([Job("one egg", 3, start())]).denoiser_rows_full == first.denoiser_rows
    for other in (start(0.75), start(seed=1), None):
        assert draw.render([Job("one egg", 3, other)]).denoiser_rows > 0


@pytest.mark.parametrize(
    "given, says",
    [
        ([start(0.5), None], "must all start from noise, or all from pictures with one strength"),
        ([start(0.5), start(0.6)], "with one strength"),
        ([start(0.0)], r"a strength of 0.25 \(one of 4 steps\) to 1, got 0.0"),
        ([start(0.2)], "a strength of 0.25"),
        ([start(1.1)], "got 1.1"),
        ([InitImage(torch.zeros(8, 16, 3), 0.5)], "has 16 x 8 pixels, expected 16 x 16"),
    ],
)
def test_bad_init_images_are_refused(renderer, given, says):
    with pytest.raises(BadInput, match=says):
        renderer("sd1", steps=4).render([Job("x", i, init) for i, init in enumerate(given)])


def test_families_without_an_image_to_image_class_say_so(renderer):
    assert not renderer("pixart").capabilities.image_to_image
    with pytest.raises(
        Unsupported, match="PixArtSigmaPipeline cannot draw over a picture: .* no image-to-image class"
    ):
        renderer("pixart").render([Job("x", 1, start())])


def test_all_tokens_are_masked_if_no_step_is_skipped(renderer):
    """diffusers asks for the noise of the last step then, which hides none: the picture would stay."""
    draw = renderer("amused", chunk=1, steps=4)
    one, other = (draw.render(jobs(start(1.0, seed))).images for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "nothing of the picture is left"
    half, again = (draw.render(jobs(start(0.5, seed))).images for seed in (0, 1))
    assert not any(torch.equal(a, b) for a, b in zip(half, again, strict=True))


def test_an_upcast_autoencoder_is_restored(pipelines):
    pipe = copy.deepcopy(pipelines("amused"))
    pipe.vqvae.half()
    with borrowed(pipe):
        pipe.vqvae.float()  # as AmusedImg2ImgPipeline leaves it
    assert pipe.vqvae.dtype == torch.float16 and pipe.transformer.dtype == torch.float32
