"""The 16-channel autoencoder: diffusers' AutoencoderTiny (TAESD's architecture), 0.5 M parameters.

Trained on 64-pixel crops with squared and absolute error. Noise on the latents makes the decoder
forgiving of a small renderer's inexact latents; afterwards scale and shift are set so that the
renderer sees latents of zero mean and unit variance. Then the decoder goes on alone, on crops around
things: the renderer's latents stay what they are, tips and corners come out sharper.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..drawing import draw
from ..scenes import SIZE, Scene, random_scene
from .training import StepLoop

STEPS, BATCH, CROP, LATENT_NOISE = 1800, 16, 64, 0.15
DECODER_STEPS, DECODER_NOISE = 4000, 0.1
SCENES = 24576  # encoded once, for the decoder and the renderer


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
    """Train both halves and save to `work/autoencoder`; returns that folder."""
    done = work / "autoencoder"
    if done.exists():
        return done
    torch.manual_seed(seed)
    vae = new_autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=0.0)
    loop = StepLoop(vae, [optimizer], work / "autoencoder.ckpt", steps, seed, log=log)

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
        loss = _error(decoded, images) + 1e-3 * latents.square().mean()
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


def _error(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(decoded, images) * 4 + F.l1_loss(decoded, images)


@torch.no_grad()
def encode(vae, pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures -> normalised latents (B, 16, 16, 16), as FluxPipeline expects them."""
    latents = vae.encode(to_tensor(pictures)).latents
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def encoded_scenes(work: Path, seed: int, count: int, log=print) -> tuple[list[Scene], torch.Tensor]:
    """(scenes, latents (count, 16, 16, 16) in half precision); latents are kept in `work`."""
    from diffusers import AutoencoderTiny
    from safetensors.torch import load_file, save_file

    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    kept = work / f"latents-{count}-{seed}.safetensors"
    if not kept.exists():
        vae = AutoencoderTiny.from_pretrained(work / "autoencoder").eval()
        parts = []
        for start in range(0, count, 64):
            parts.append(encode(vae, [draw(scene) for scene in scenes[start : start + 64]]).half())
            if start % 6400 == 0:
                log(f"encoded {start}/{count} scenes")
        save_file({"latents": torch.cat(parts).contiguous()}, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    return scenes, load_file(kept)["latents"]


def train_decoder(work: Path, seed: int = 0, steps: int = DECODER_STEPS, scenes: int = SCENES,
                  compiled: bool = True, log=print) -> Path:
    """Train the decoder alone and save the whole to `work/vae`; returns that folder.

    Crops lie around things: most of a picture is plain ground, from which nothing is learned.
    """
    from diffusers import AutoencoderTiny

    done = work / "vae"
    if done.exists():
        return done
    known, latents = encoded_scenes(work, seed, scenes, log)
    vae: Any = AutoencoderTiny.from_pretrained(work / "autoencoder")
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    decode = torch.compile(vae.decoder) if compiled else vae.decoder
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=1.5e-3, weight_decay=0.0, betas=(0.9, 0.98))
    loop = StepLoop(vae.decoder, [optimizer], work / "decoder.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        parts, crops = [], []
        while len(crops) < BATCH:
            i = rng.randrange(len(known))
            thing = rng.choice(known[i].things)
            # On the latents' grid of 8 pixels.
            y, x = (_corner(v + rng.uniform(-16, 16)) for v in (thing.y, thing.x))
            parts.append(latents[i, :, y // 8 : (y + CROP) // 8, x // 8 : (x + CROP) // 8])
            crops.append(draw(known[i])[y : y + CROP, x : x + CROP])
        clean = torch.stack(parts).float()
        noisy = clean + DECODER_NOISE * torch.randn_like(clean)
        loss = _error(decode(noisy / scale + shift), to_tensor(crops))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    vae.eval().save_pretrained(done)
    return done


def _corner(center: float) -> int:
    """Where a crop around `center` (pixels) begins, inside the picture, on the latents' grid."""
    return min(SIZE - CROP, max(0, 8 * round((center - CROP / 2) / 8)))
