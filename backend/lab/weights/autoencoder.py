"""The 16-channel autoencoder: diffusers' AutoencoderTiny (TAESD's architecture), 0.5 M parameters.

It is trained on 64-pixel crops with squared and absolute error. Noise on the latents makes the decoder
tolerant of a small renderer's inexact latents. Then scale and shift are set so that the renderer gets latents
of zero mean and unit variance. Finally the decoder alone is trained further, on crops around things: the
latents do not change, and tips and corners become sharper.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...shapeworld.drawing import draw
from ...shapeworld.scenes import SIZE, Scene, random_scene
from .training import WeightsLoop

STEPS, BATCH, CROP, LATENT_NOISE = 1800, 16, 64, 0.15
DECODER_STEPS, DECODER_NOISE = 4000, 0.1
SCENES = 24576  # encoded once, for the decoder and the renderer


def new_autoencoder() -> Any:  # diffusers types its outputs as tuples too
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(2, 2, 1, 0),
        latent_channels=16,
    )


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) uint8 pictures -> (B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def train_autoencoder(work: Path, seed: int = 0, steps: int = STEPS, log=print) -> Path:
    """Trains encoder and decoder and saves them to `work/autoencoder`; returns that folder."""
    done = work / "autoencoder"
    if done.exists():
        return done
    torch.manual_seed(seed)
    vae = new_autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=0.0)
    loop = WeightsLoop(vae, [optimizer], work / "autoencoder.ckpt", steps, seed, log=log)

    loop.run(lambda rng, step: autoencoder_step(vae, _picture, rng))
    standardise(vae, _picture, random.Random(seed + 1))
    vae.eval().save_pretrained(done)
    return done


def _picture(rng: random.Random) -> np.ndarray:
    return draw(random_scene(rng))


def autoencoder_step(
    vae: Any, picture: Callable[[random.Random], np.ndarray], rng: random.Random, grid: int = 1
) -> float:
    """One backward pass through encoder and decoder, on crops of new pictures; returns the loss.

    The crops' corners lie on a grid of `grid` pixels.
    """
    crops = []
    while len(crops) < BATCH:
        whole = picture(rng)
        last = (SIZE - CROP) // grid
        corners = [(grid * rng.randint(0, last), grid * rng.randint(0, last)) for _ in range(2)]
        crops += [whole[y : y + CROP, x : x + CROP] for x, y in corners]
    images = to_tensor(crops)
    latents = vae.encode(images).latents
    noisy = latents + LATENT_NOISE * torch.randn_like(latents) * latents.detach().std()
    # A mild pull towards zero keeps the latents Gaussian enough for a flow model.
    loss = reconstruction_error(vae.decode(noisy).sample, images) + 1e-3 * latents.square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    return loss.item()


@torch.no_grad()
def standardise(vae: Any, picture: Callable[[random.Random], np.ndarray], rng: random.Random) -> None:
    """Sets the VAE's scale and shift so that latents have zero mean and unit variance."""
    latents = torch.cat([vae.encode(to_tensor([picture(rng) for _ in range(32)])).latents for _ in range(8)])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())


def reconstruction_error(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Squared plus absolute error of pictures in -1..1."""
    return F.mse_loss(decoded, images) * 4 + F.l1_loss(decoded, images)


@torch.no_grad()
def encode(vae, pictures: list[np.ndarray]) -> torch.Tensor:
    """uint8 pictures -> normalised latents (B, 16, 16, 16), as FluxPipeline expects them."""
    latents = vae.encode(to_tensor(pictures)).latents
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def encoded_scenes(work: Path, seed: int, count: int, log=print) -> tuple[list[Scene], torch.Tensor]:
    """(scenes, latents (count, 16, 16, 16) in half precision); the latents are cached in `work`."""
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


def train_decoder(
    work: Path,
    seed: int = 0,
    steps: int = DECODER_STEPS,
    scenes: int = SCENES,
    compiled: bool = True,
    log=print,
) -> Path:
    """Trains the decoder alone and saves the autoencoder to `work/vae`; returns that folder.

    Crops lie around things: most of a picture is plain ground, from which nothing is learned.
    """
    from diffusers import AutoencoderTiny

    done = work / "vae"
    if done.exists():
        return done
    known, latents = encoded_scenes(work, seed, scenes, log)
    vae: Any = AutoencoderTiny.from_pretrained(work / "autoencoder")
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=1.5e-3, weight_decay=0.0, betas=(0.9, 0.98))
    loop = WeightsLoop(vae.decoder, [optimizer], work / "decoder.ckpt", steps, seed, log=log)
    loop.run(decoder_step(vae, known, latents, lambda i: draw(known[i]), compiled))
    vae.eval().save_pretrained(done)
    return done


def decoder_step(
    vae: Any,
    scenes: Sequence[Scene],
    latents: torch.Tensor,
    picture: Callable[[int], np.ndarray],
    compiled: bool = True,
) -> Callable[[random.Random, int], float]:
    """A function that makes one backward pass through the decoder and returns the loss.

    It decodes crops of the scenes' latents (N, 16, 16, 16) around things and compares them with the same
    crops of `picture(i)`, the pictures that were encoded.
    """
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    decode = torch.compile(vae.decoder) if compiled else vae.decoder

    def take_step(rng: random.Random, step: int) -> float:
        parts, crops = [], []
        while len(crops) < BATCH:
            i = rng.randrange(len(scenes))
            thing = rng.choice(scenes[i].things)
            # Corners on the latents' grid of 8 pixels.
            y, x = (_corner(v + rng.uniform(-16, 16)) for v in (thing.y, thing.x))
            parts.append(latents[i, :, y // 8 : (y + CROP) // 8, x // 8 : (x + CROP) // 8])
            crops.append(picture(i)[y : y + CROP, x : x + CROP])
        clean = torch.stack(parts).float()
        noisy = clean + DECODER_NOISE * torch.randn_like(clean)
        loss = reconstruction_error(decode(noisy / scale + shift), to_tensor(crops))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        return loss.item()

    return take_step


def _corner(center: float) -> int:
    """The start (pixels) of a crop around `center`, inside the picture and on the latents' grid."""
    return min(SIZE - CROP, max(0, 8 * round((center - CROP / 2) / 8)))
