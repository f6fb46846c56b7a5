"""The 16-channel autoencoder: diffusers' AutoencoderTiny (TAESD's architecture), 0.5 M parameters.

Trained on 64-pixel crops with squared and absolute error. Noise on the latents makes the decoder
forgiving of a small renderer's inexact latents; afterwards scale and shift are set so that the
renderer sees latents of zero mean and unit variance.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..drawing import draw
from ..scenes import SIZE, random_scene
from .training import StepLoop

STEPS, BATCH, CROP, LATENT_NOISE = 1800, 16, 64, 0.15


def new_autoencoder() -> Any:  # diffusers types its outputs as tuples too
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        num_encoder_blocks=(0, 1, 2, 2), num_decoder_blocks=(2, 2, 1, 0), latent_channels=16,
    )  # fmt: skip


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) uint8 pictures -> (B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def train_autoencoder(work: Path, seed: int = 0, steps: int = STEPS, log=print) -> Path:
    """Train and save to `work/vae`; returns that folder."""
    done = work / "vae"
    if done.exists():
        return done
    torch.manual_seed(seed)
    vae = new_autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=0.0)
    loop = StepLoop(vae, [optimizer], work / "vae.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        crops = []
        while len(crops) < BATCH:
            picture = draw(random_scene(rng))
            corners = [(rng.randrange(SIZE - CROP + 1), rng.randrange(SIZE - CROP + 1)) for _ in range(2)]
            crops += [picture[y : y + CROP, x : x + CROP] for x, y in corners]
        images = to_tensor(crops)
        latents = vae.encode(images).latents
        noisy = latents + LATENT_NOISE * torch.randn_like(latents) * latents.detach().std()
        decoded = vae.decode(noisy).sample
        # A mild pull towards zero keeps the latents Gaussian enough for a flow model.
        loss = F.mse_loss(decoded, images) * 4 + F.l1_loss(decoded, images) + 1e-3 * latents.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    with torch.no_grad():
        rng = random.Random(seed + 1)
        latents = torch.cat([vae.encode(to_tensor([draw(random_scene(rng)) for _ in range(32)])).latents
                             for _ in range(8)])  # fmt: skip
        vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    vae.eval().save_pretrained(done)
    return done


@torch.no_grad()
def encode(vae, pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures -> normalised latents (B, 16, 16, 16), as FluxPipeline expects them."""
    latents = vae.encode(to_tensor(pictures)).latents
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor
