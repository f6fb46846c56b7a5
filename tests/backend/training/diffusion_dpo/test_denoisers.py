"""Denoisers are called as their pipelines call them, on the noise that they were trained on."""

import math

import pytest
import torch

from reprise.backend.core.errors import Unsupported
from reprise.backend.renderers.diffusers.pipelines import family_of_pipeline, unscale_latents
from reprise.backend.training.common.losses import denoising_target, noised
from reprise.backend.training.diffusion_dpo.denoisers import Denoiser, noising_of, to_latents

from ...renderers.conftest import build

FAMILIES = ["flux", "flux_true_cfg", "sd3", "sd1", "sdxl", "pixart"]


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request):
    torch.set_num_threads(1)
    return build(request.param)


def test_a_denoiser_is_called_as_its_pipeline_calls_it(pipe):
    """What the pipeline asks its denoiser at the second step of a drawing, asked through ours."""
    family = family_of_pipeline(pipe)
    module, seen = getattr(pipe, family.denoiser), []
    forward = module.forward

    def spy(*args, **kwargs):
        output = forward(*args, **kwargs)
        hidden = args[0] if args else kwargs.get("hidden_states")
        times = args[1] if len(args) > 1 else kwargs["timestep"]
        seen.append((hidden, times, output[0]))
        return output

    module.forward = spy
    rows = family.encode(pipe, "a red cat", 20 if family.has_text_length else None)
    options = {"guidance_scale": 4.5 if family.packed and module.config.guidance_embeds else 1.0}
    try:
        pipe(
            **rows,
            **({"use_resolution_binning": False} if family.name == "PixArt-Sigma" else {}),
            **options,
            width=16,
            height=16,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        )
    finally:
        del module.forward
    hidden, times, said = seen[1]
    times = torch.as_tensor(times, dtype=torch.float32).reshape(-1)
    if family.packed:
        hidden, said = (pipe._unpack_latents(x, 16, 16, pipe.vae_scale_factor) for x in (hidden, said))
        times = times * 1000
    elif said.shape[1] == 2 * hidden.shape[1]:
        said = said.chunk(2, dim=1)[0]
    guidance = 4.5 if family.packed and module.config.guidance_embeds else None
    ours = Denoiser(pipe, family, module, guidance)
    with torch.no_grad():
        found = ours(hidden, times.expand(len(hidden)), rows)
        both = ours(
            torch.cat([hidden, hidden]), times.expand(2), ours.conditions([rows, rows], "cpu", torch.float32)
        )
    torch.testing.assert_close(found, said, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[1:], said, rtol=1e-4, atol=1e-4)


def test_a_latent_decodes_to_its_picture(pipe):
    """`to_latents` undoes what drawing does before it decodes; the tiny VAE itself loses the picture."""
    picture = torch.rand(16, 24, 3)
    latent = to_latents(pipe, picture)
    assert latent.shape == (4, 8, 12) and latent.dtype == torch.float32
    with torch.no_grad():
        pixels = picture.permute(2, 0, 1)[None] * 2 - 1
        expected = pipe.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(unscale_latents(latent[None], pipe.vae.config), expected)


def test_latents_of_a_vae_with_moments():
    pipe = build("sdxl")
    pipe.vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0] * 4)
    picture = torch.rand(16, 16, 3)
    with torch.no_grad():
        expected = pipe.vae.encode(picture.permute(2, 0, 1)[None] * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(unscale_latents(to_latents(pipe, picture)[None], pipe.vae.config), expected)


def test_a_denoised_target_is_clean(pipe):
    """From what should be said, x0 comes back by the formulas that previews use."""
    noising = noising_of(pipe, (8, 8), None)
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    signal, sigma, times = noising.at(torch.tensor([0.05, 0.5, 0.9]))
    said = denoising_target(noising.prediction, clean, noise, signal, sigma)
    x = noised(clean, noise, signal, sigma)
    a, s = signal.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    back = {"flow": x - s * said, "epsilon": (x - s * said) / a, "v_prediction": a * x - s * said}
    torch.testing.assert_close(back[noising.prediction], clean, rtol=1e-4, atol=1e-4)
    assert (times.diff() > 0).all() and times.max() < 1000
    if noising.levels is not None:
        # The scheduler itself adds the same noise at the same time.
        from diffusers import DDPMScheduler

        theirs = DDPMScheduler.from_config(pipe.scheduler.config).add_noise(clean, noise, times.long())
        torch.testing.assert_close(x, theirs)


def test_prediction_and_shift_come_from_the_scheduler():
    from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    pipe = build("sd1")
    assert noising_of(pipe, (8, 8), None).prediction == "epsilon"
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    assert noising_of(pipe, (8, 8), None).prediction == "v_prediction"
    with pytest.raises(Unsupported, match="shift is for flows"):
        noising_of(pipe, (8, 8), 3.0)
    for scheduler in (DDIMScheduler(prediction_type="sample"), EDMEulerScheduler()):
        pipe.scheduler = scheduler
        with pytest.raises(Unsupported, match="no preference loss"):
            noising_of(pipe, (8, 8), None)

    pipe = build("sd3")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    # sigma = 3 u / (1 + 2 u) at u = .5 is .75.
    signal, sigma, times = noising_of(pipe, (8, 8), None).at(torch.tensor([0.5]))
    assert (signal.item(), sigma.item(), times.item()) == pytest.approx((0.25, 0.75, 750.0))
    assert noising_of(pipe, (8, 8), 1.0).at(torch.tensor([0.5]))[1].item() == 0.5
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert noising_of(pipe, (32, 32), None).shift == pytest.approx(math.exp(0.5)), "256 patches: the base"
    assert noising_of(pipe, (128, 128), None).shift == pytest.approx(math.exp(1.15))
    # The same sigmas as the pipeline's, where they are alike.
    pipe.scheduler.set_timesteps(sigmas=[0.5], mu=0.5)
    found = noising_of(pipe, (32, 32), None).at(torch.tensor([0.5]))[1]
    torch.testing.assert_close(found, pipe.scheduler.sigmas[:1])


def test_every_schedulers_own_shift():
    """As they themselves shift, whatever their configs call it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    pipe, half = build("sd3"), torch.tensor([0.5])
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    pipe.scheduler = UniPCMultistepScheduler(**settings, flow_shift=5.0)
    assert noising_of(pipe, (8, 8), None).at(half)[1].item() == pytest.approx(5 / 6)
    # One made from another's config carries the other's setting along, which it does not read.
    pipe.scheduler = UniPCMultistepScheduler.from_config(flow.config, **settings, flow_shift=2.0)
    assert pipe.scheduler.config.get("shift") in (None, 3.0)
    assert noising_of(pipe, (8, 8), None).shift == 2.0
    linear = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="linear", base_shift=1.5
    )
    pipe.scheduler = linear
    linear.set_timesteps(sigmas=[0.5], mu=1.5)
    torch.testing.assert_close(noising_of(pipe, (32, 32), None).at(half)[1], linear.sigmas[:1])


def test_guidance_without_its_embedding_is_refused():
    pipe = build("sd3")
    with pytest.raises(Unsupported, match="no guidance embedding"):
        Denoiser(pipe, family_of_pipeline(pipe), pipe.transformer, 3.5)
    pipe = build("flux")
    assert Denoiser(pipe, family_of_pipeline(pipe), pipe.transformer).guidance == 3.5
