"""Noise for each candidate by itself: the initial noise, and that which stochastic samplers add.

A stock sampler draws one noise for the whole batch, so a candidate would depend on its place in it. Here row
i gets the noise of a plain KSampler with batch 1 and seed + i.
"""

from __future__ import annotations

import inspect
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.sample
import comfy.samplers
import torch

from ..backend.core.errors import BadInput

# Their step size depends on the whole batch, so candidates would change each other.
COUPLED = frozenset({"dpm_adaptive"})
_BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")


def first_noise(latent: torch.Tensor, seed: int, count: int) -> torch.Tensor:
    """Initial noise (count, …); row i is that of a plain KSampler for seed + i. `latent` has `count` rows."""
    return torch.cat([comfy.sample.prepare_noise(latent[i : i + 1], seed + i) for i in range(count)])


class SeededSampler(comfy.samplers.KSAMPLER):
    """A KSAMPLER that draws its added noise for each row by itself; other SAMPLERs are used unchanged.

    Raises BadInput for a sampler whose step size depends on the whole batch.
    """

    def __init__(self, sampler: Any, seeds: list[int]):
        self.inner, self.seeds = sampler, seeds
        name = sampler_name(sampler)
        if len(seeds) > 1 and any(one in name for one in COUPLED):
            raise BadInput(
                f"the sampler {name!r} takes its step size from the whole batch, so candidates would change "
                "each other; choose another sampler"
            )

    def max_denoise(self, model_wrap, sigmas):
        return self.inner.max_denoise(model_wrap, sigmas)

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        sampler = self.inner
        function = getattr(sampler, "sampler_function", None)
        options = dict(getattr(sampler, "extra_options", {}))
        if (
            function
            and "noise_sampler" in inspect.signature(function).parameters
            and not options.get("noise_sampler")
        ):
            options["noise_sampler"] = self._noise_sampler(sampler_name(sampler), noise, sigmas)
            sampler = type(sampler)(function, options, sampler.inpaint_options)
        return sampler.sample(
            model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )

    def _noise_sampler(self, name: str, noise: torch.Tensor, sigmas: torch.Tensor):
        if any(kind in name for kind in _BROWNIAN):
            positive = sigmas[sigmas > 0]
            return k_diffusion.BrownianTreeNoiseSampler(
                noise, positive.min(), sigmas.max(), seed=self.seeds, cpu="gpu" not in name
            )
        parts = [k_diffusion.default_noise_sampler(noise[:1], seed=seed) for seed in self.seeds]
        return lambda sigma, sigma_next: torch.cat([part(sigma, sigma_next) for part in parts])


def sampler_name(sampler: Any) -> str:
    """The name of its function without "sample_", or of its class for a SAMPLER without a function."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", None) or type(sampler).__name__
    return name.removeprefix("sample_").removesuffix("_function")
