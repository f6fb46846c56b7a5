"""A pipeline as preference training uses it: pictures to latents, the noise of its training, one denoising.

`renderers/diffusers/families.py` says how the older families encode and pack; here is how their denoisers are
called. The others are called by their pipelines (`own_call.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import Unsupported
from ...renderers.diffusers.families import Family
from ..common.losses import PREDICTIONS
from .own_call import Condition, OwnCall, Tail

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


Row = Mapping[str, "Tensor"]  # the embeddings of `Family.encode` for one sample, each (1, …)


@dataclass(frozen=True)
class Noising:
    """The noise that a denoiser was trained on, and what it predicts.

    `levels` is the table of alphas_cumprod of a diffusion; a flow has a `shift` instead: a share u of the
    way becomes sigma = shift u / (1 + (shift - 1) u).
    """

    prediction: str  # one of losses.PREDICTIONS
    steps: int  # number of timesteps
    levels: Tensor | None = None
    shift: float = 1.0

    def at(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shares u of the way to pure noise, in [0, 1) -> (signal, sigma, timesteps), all (B,) float32."""
        import torch

        if self.levels is None:
            sigma = self.shift * u / (1 + (self.shift - 1) * u)
            return 1 - sigma, sigma, sigma * self.steps
        times = (u * self.steps).long().clamp(0, self.steps - 1)
        level = self.levels[times]
        return torch.sqrt(level), torch.sqrt(1 - level), times.float()


def noising_of(pipeline: Any, size: tuple[int, int], shift: float | None, mu: float | None = None) -> Noising:
    """The noise of a pipeline's training, by its scheduler's config; `size` is a latent's (h, w), and `mu`
    what the pipeline itself tells its scheduler (`OwnCall.mu`), where that is known.

    Raises Unsupported for a scheduler or a kind of prediction that no loss is known for.
    """
    from diffusers import DDPMScheduler

    config = pipeline.scheduler.config
    name = type(pipeline.scheduler).__name__
    steps = int(config.get("num_train_timesteps", 1000))
    if "FlowMatch" in name or config.get("prediction_type") == "flow_prediction":
        own = "shift" if "FlowMatch" in name else "flow_shift"  # a config may carry the other's, unused
        return Noising("flow", steps, shift=_shift_of(config, own, size, mu) if shift is None else shift)
    prediction = config.get("prediction_type", "epsilon")
    if shift is not None:
        raise Unsupported(f"shift is for flows; {type(pipeline).__name__} predicts {prediction}: drop it")
    if prediction not in PREDICTIONS or "EDM" in name or not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise Unsupported(
            f"no preference loss is known for {name} with prediction_type {prediction!r}; it is for "
            f"{', '.join(PREDICTIONS)}"
        )
    plain: Any = DDPMScheduler.from_config(config)
    return Noising(prediction, steps, plain.alphas_cumprod.float())


def _shift_of(config: Mapping[str, Any], own: str, size: tuple[int, int], mu: float | None) -> float:
    """As its pipeline shifts the sigmas of a picture of this size; `own` is what its scheduler calls it."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get(own, 1.0))
    # FLUX, SD3.5: linear in the number of 2 x 2 patches.
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - base) / (high - low)
    found = base + slope * (size[0] * size[1] / 4 - low) if mu is None else mu
    return found if config.get("time_shift_type") == "linear" else math.exp(found)


def to_latents(pipeline: Any, image: Tensor, tail: Tail | None = None) -> Tensor:
    """A picture (H, W, 3) in 0..1 -> its latent as the denoiser sees it, the posterior's mean: (C, h, w), or
    with a `tail` in the layout of the pipeline's sampler."""
    import torch

    vae = pipeline.vae
    pixels = image.permute(2, 0, 1)[None].to(vae.device, vae.dtype) * 2 - 1
    if tail is not None:
        if vae.config.get("in_channels", vae.config.get("input_channels")) == 4:  # with opacity
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        if len(tail.decoded) == 4:  # a video of one frame
            pixels = pixels[:, :, None]
    with torch.no_grad():
        encoded = vae.encode(pixels)
    names = ("latents", "latent")
    latents = next((encoded[name] for name in names if name in encoded), None)
    latents = encoded.latent_dist.mode() if latents is None else latents
    if tail is not None:
        return tail.from_vae(latents.float())[0]
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is not None and std is not None:  # some SDXL VAEs
        mean, std = (torch.tensor(value).to(latents).view(1, -1, 1, 1) for value in (mean, std))
        latents = (latents - mean) * vae.config.scaling_factor / std
    else:
        latents = (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
    return latents[0].float()


def guidance_of(pipeline: Any, family: Family, guidance: float | None) -> float | None:
    """The embedded guidance to train with. Raises Unsupported for one that the denoiser has no embedding
    for."""
    embeds = getattr(pipeline, family.denoiser).config.get("guidance_embeds", False)
    if guidance is not None and not embeds:
        raise Unsupported(f"this {type(pipeline).__name__} has no guidance embedding; leave guidance out")
    return 3.5 if guidance is None and embeds and not family.own_call else guidance


class FlowDenoiser:
    """Evaluates a pipeline's denoiser by the pipeline's own call, for samples of one prompt and time at
    once."""

    def __init__(self, call: OwnCall):
        self.call = call

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """(B, …) in the pipeline's own layout, (B,) timesteps, B conditions -> the velocity (B, …)."""
        import torch

        groups: dict[tuple[int, float], list[int]] = {}
        for i, (time, condition) in enumerate(zip(timesteps.tolist(), conditions, strict=True)):
            groups.setdefault((id(condition), time), []).append(i)
        found = [
            self.call.velocity(noisy[rows].float(), time, conditions[rows[0]])
            for (_, time), rows in groups.items()
        ]
        order = torch.tensor([i for rows in groups.values() for i in rows], device=noisy.device)
        return torch.cat(found)[order.argsort()]

    def conditions(self, rows: Sequence[Condition], device: torch.device, dtype: torch.dtype) -> Any:
        """Conditions of single samples, as they are: each group is moved when it is evaluated."""
        return rows


class Denoiser:
    """Calls `module`, a pipeline's denoiser or an adapter around it, as the pipeline does unguided."""

    def __init__(self, pipeline: Any, family: Family, module: nn.Module, guidance: float | None = None):
        self.pipeline, self.family, self.module = pipeline, family, module
        self.guidance = guidance_of(pipeline, family, guidance)
        self._call = _CALLS[family.name]

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditions: Row) -> Tensor:
        """(B, C, h, w), (B,) timesteps, conditions of B rows -> the prediction (B, C, h, w)."""
        return self._call(self, noisy, timesteps, conditions)

    def conditions(self, rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> Any:
        """Conditions of single samples as those of a batch; masks keep their dtype."""
        import torch

        stacked = {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}
        return {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in stacked.items()
        }

    def _flux(self, noisy: Tensor, timesteps: Tensor, conditions: Row) -> Tensor:
        import torch

        pipe, (count, channels, height, width) = self.pipeline, noisy.shape
        text = conditions["prompt_embeds"]
        guidance = None if self.guidance is None else torch.full_like(timesteps, self.guidance)
        output = self.module(
            hidden_states=pipe._pack_latents(noisy, count, channels, height, width),
            timestep=timesteps / 1000,
            guidance=guidance,
            pooled_projections=conditions["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=pipe._prepare_latent_image_ids(count, height // 2, width // 2, noisy.device, noisy.dtype),
            return_dict=False,
        )[0]
        scale = pipe.vae_scale_factor
        return pipe._unpack_latents(output, height * scale, width * scale, scale)

    def _sd3(self, noisy: Tensor, timesteps: Tensor, conditions: Row) -> Tensor:
        return self.module(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditions["prompt_embeds"],
            pooled_projections=conditions["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    def _sd1(self, noisy: Tensor, timesteps: Tensor, conditions: Row) -> Tensor:
        return self.module(
            noisy, timesteps, encoder_hidden_states=conditions["prompt_embeds"], return_dict=False
        )[0]

    def _sdxl(self, noisy: Tensor, timesteps: Tensor, conditions: Row) -> Tensor:
        import torch

        high, wide = (side * self.pipeline.vae_scale_factor for side in noisy.shape[2:])
        # Original size, where it was cropped, size asked for: a whole picture, as the pipeline draws it.
        sizes = torch.tensor([[high, wide, 0, 0, high, wide]], device=noisy.device, dtype=noisy.dtype)
        added = {"text_embeds": conditions["pooled_prompt_embeds"], "time_ids": sizes.expand(len(noisy), -1)}
        return self.module(
            noisy,
            timesteps,
            encoder_hidden_states=conditions["prompt_embeds"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def _pixart(self, noisy: Tensor, timesteps: Tensor, conditions: Row) -> Tensor:
        output = self.module(
            noisy,
            encoder_hidden_states=conditions["prompt_embeds"],
            encoder_attention_mask=conditions["prompt_attention_mask"],
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        # Its other half is a variance, which no sampler of the pipeline reads.
        return output.chunk(2, dim=1)[0] if output.shape[1] == 2 * noisy.shape[1] else output


_CALLS = {
    "FLUX": Denoiser._flux,
    "SD3": Denoiser._sd3,
    "SD1.x": Denoiser._sd1,
    "SDXL": Denoiser._sdxl,
    "PixArt-Sigma": Denoiser._pixart,
}
