"""Every scheduler: survivors of pruning are exact, steps are counted as asked, previews are the x0."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from reprise.backend.core.errors import Unsupported
from reprise.backend.core.types import Job
from reprise.backend.renderers.diffusers.previews import predict_x0

from ..conftest import ROWS

JOBS = [Job("a red cat", 21), Job("two dogs", 22), Job("one egg", 23)]
STEPS = 5
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
# name -> (class, settings, denoiser calls for STEPS steps)
DIFFUSION = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}, 5),
    "ddim_v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, 5),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, 5),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, 6),
    "euler": ("EulerDiscreteScheduler", {}, 5),
    "euler_v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, 5),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 5),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, 5),
    "heun": ("HeunDiscreteScheduler", {}, 9),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, 9),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}, 9),
    "dpm2m": ("DPMSolverMultistepScheduler", {}, 5),
    "dpm2m_v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, 5),
    "dpm2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 5),
    "dpm2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 5),
    "dpm2s": ("DPMSolverSinglestepScheduler", {}, 5),
    "unipc": ("UniPCMultistepScheduler", {}, 5),
    "deis": ("DEISMultistepScheduler", {}, 5),
    "lcm": ("LCMScheduler", {"clip_sample": False}, 5),
    "tcd": ("TCDScheduler", {"clip_sample": False}, 5),
}
FLOWS = {
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}, 5),
    "flow_euler_shift": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 5),
    "flow_euler_sde": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, 5),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}, 9),
    "flow_dpm2m": ("DPMSolverMultistepScheduler", FLOW, 5),
    "flow_unipc": ("UniPCMultistepScheduler", FLOW, 5),
}
# FLUX hands over a shift that depends on the size, which those of other families take only if told to.
SHIFTED = {"use_dynamic_shifting": True}
ON_FLUX = {
    **{name: FLOWS[name] for name in ("flow_euler", "flow_euler_shift", "flow_euler_sde")},
    "flow_euler_dynamic": ("FlowMatchEulerDiscreteScheduler", SHIFTED, 5),
    "flow_dpm2m_dynamic": ("DPMSolverMultistepScheduler", {**FLOW, **SHIFTED}, 5),
    "flow_unipc_dynamic": ("UniPCMultistepScheduler", {**FLOW, **SHIFTED}, 5),
}


def new(name: str):
    import diffusers

    cls, settings, calls = {**DIFFUSION, **FLOWS, **ON_FLUX}[name]
    settings = {**BETAS, **settings} if name in DIFFUSION else settings
    return getattr(diffusers, cls)(**settings), calls


CASES = [
    *[("sd1", name) for name in DIFFUSION if not name.endswith(("_v", "_karras"))],
    *[("sdxl", name) for name in ("euler_a", "heun", "unipc", "ddim")],
    *[("pixart", name) for name in ("dpm2m", "dpm2m_sde", "unipc", "heun")],
    *[("sd3", name) for name in FLOWS],
    *[("flux", name) for name in ON_FLUX],
    *[("flux_true_cfg", name) for name in ("flow_euler", "flow_dpm2m_dynamic")],
]


@pytest.mark.parametrize("family, name", CASES)
def test_survivors_are_exact_with_every_scheduler(family, name, renderer, cuts):
    scheduler, calls = new(name)
    draw = renderer(family, scheduler=scheduler, steps=STEPS, chunk=1)
    reported: list[tuple[int, int]] = []
    full = draw.render(JOBS, progress=lambda step, of: reported.append((step, of)))
    assert reported == [(step, STEPS) for step in range(1, STEPS + 1)]
    watcher = cuts({2: [1]})
    pruned = draw.render(JOBS, watcher)
    assert pruned.pruned_at == [2, None, 2]
    assert torch.equal(pruned.images[1], full.images[1])
    assert torch.equal(draw.render([JOBS[1]]).images[0], full.images[1])
    assert full.denoiser_rows == full.denoiser_rows_full == 3 * calls * ROWS[family]
    # Two steps of all three rows (PNDM's second step is its third call), then one row.
    before = {9: 4, 6: 3, 5: 2}[calls]
    assert pruned.denoiser_rows == (3 * before + (calls - before)) * ROWS[family]
    assert pruned.denoiser_rows_full == full.denoiser_rows


# Every family with every scheduler that its pipeline takes.
EVERY = [
    *itertools.product(("sd1", "sdxl", "pixart"), DIFFUSION),
    *itertools.product(("sd3",), FLOWS),
    *itertools.product(("flux", "flux_true_cfg"), ON_FLUX),
]


@pytest.mark.long
@pytest.mark.parametrize("family, name", EVERY)
def test_survivors_are_exact_whatever_is_pruned_and_when(family, name, renderer, cuts):
    """A cut after each step but the last, to one row and to the two others, and one cut after another."""
    draw = renderer(family, scheduler=new(name)[0], steps=STEPS, chunk=1)
    full = draw.render(JOBS)
    plans = [{step: kept} for step in range(1, STEPS) for kept in ([1], [0, 2])]
    plans += [{first: [0, 2], second: [2]} for first, second in ((1, 2), (1, 4), (3, 4))]
    for plan in plans:
        pruned = draw.render(JOBS, cuts(plan))
        cut = {row: step for step, kept in reversed(plan.items()) for row in range(3) if row not in kept}
        assert pruned.pruned_at == [cut.get(row) for row in range(3)], plan
        for row in range(3):
            if row not in cut:
                assert torch.equal(pruned.images[row], full.images[row]), plan
        assert pruned.denoiser_rows < pruned.denoiser_rows_full == full.denoiser_rows


@pytest.mark.parametrize("family, name", [("sd3", "flow_heun"), ("sd1", "heun"), ("sd1", "kdpm2")])
def test_a_second_order_step_is_watched_once(family, name, renderer, cuts):
    watcher = cuts({step: [0, 1, 2] for step in range(1, STEPS + 1)})
    renderer(family, scheduler=new(name)[0], steps=STEPS).render(JOBS, watcher)
    assert [step for step, _, _ in watcher.seen] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", [*DIFFUSION, *FLOWS])
def test_the_preview_is_x0(name):
    """A denoiser that knows the clean latent: whatever the sampler's path, each preview must be it.

    The oracle computes its answer from what a denoiser is given (scaled input, timestep) alone.
    """
    scheduler, _ = new(name)
    scheduler.set_timesteps(8)
    torch.manual_seed(0)
    clean = torch.randn(2, 4, 8, 8)
    x = torch.randn_like(clean) * scheduler.init_noise_sigma if name in DIFFUSION else torch.randn_like(clean)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        if name in FLOWS:
            output = (seen - clean) / (float(t) / scheduler.config.num_train_timesteps)
        else:
            a, s = _levels(scheduler, float(t))
            noise = (seen - a * clean) / s
            velocity = scheduler.config.prediction_type == "v_prediction"
            output = a * noise - s * clean if velocity else noise
        found = predict_x0(scheduler, output, t, x)
        # Timesteps are rounded for some schedulers, so the oracle's noise level is a little off.
        assert (found - clean).abs().mean() < 0.02, (name, float(t))
        x = scheduler.step(output, t, x, return_dict=False)[0]


def _levels(scheduler, t: float) -> tuple[float, float]:
    """(a, s) at a timestep, between the training steps by interpolating log(s / a), as k-diffusion does."""
    low, part = int(t), t - int(t)
    logs = []
    for step in (low, min(low + 1, 999)):
        square = float(scheduler.alphas_cumprod[step])
        logs.append(0.5 * math.log((1 - square) / square))
    ratio = math.exp(logs[0] * (1 - part) + logs[1] * part)
    return (ratio**2 + 1) ** -0.5, ratio * (ratio**2 + 1) ** -0.5


def test_schedulers_with_one_noise_for_the_batch_are_refused(renderer):
    import diffusers

    class DPMSolverSDEScheduler(diffusers.DDIMScheduler):  # the real one wants the package torchsde
        pass

    with pytest.raises(Unsupported, match="one noise for the whole batch"):
        renderer("sd1", scheduler=DPMSolverSDEScheduler(**BETAS))


def test_an_unknown_scheduler_draws_but_is_not_watched(renderer, cuts):
    import diffusers

    class EDMOddScheduler(diffusers.DDIMScheduler):
        pass

    draw = renderer("sd1", scheduler=EDMOddScheduler(**BETAS))
    assert draw.render(JOBS[:1]).images[0] is not None
    with pytest.raises(Unsupported, match="not known for EDMOddScheduler"):
        draw.render(JOBS, cuts({1: [0]}))


def test_flux_refuses_a_scheduler_without_sigmas(renderer):
    from reprise.backend.core.errors import RenderFailed

    with pytest.raises(RenderFailed, match="FluxPipeline with FlowMatchHeunDiscreteScheduler"):
        renderer("flux", scheduler=new("flow_heun")[0]).render(JOBS)
