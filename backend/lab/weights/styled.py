"""The styled renderers: the embedded renderers, trained further on the styles of `shapeworld/styles.py`.

First the autoencoder learns outlines, dots and reflections, starting from the plain one so that its latents
change little; then its decoder is trained further alone. Denoiser and text encoders start from the plain
renderer's weights and train on pictures in random styles. The new words are added tokens: other ids stay the
same.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...shapeworld.drawing import draw
from ...shapeworld.scenes import Scene, random_scene
from ...shapeworld.styles import PLAIN_STYLE, STYLE_WORDS, Style, random_style, styled_caption
from . import flux, stable_diffusion
from .assemble import write_pipeline
from .autoencoder import DECODER_STEPS, autoencoder_step, decoder_step, encode, standardise
from .muon import Muon
from .training import WeightsLoop, update_average

VAE_STEPS, VAE_RATE = 3000, 1e-3
STEPS, RATE, TEXT_RATE, EMA = 5000, 6e-4, 1e-4, 0.998
FLUX_STEPS = 2500  # steps of the tiny FLUX, which starts from a better renderer
SCENES = 16384


@dataclass(frozen=True)
class StyledScenes:
    """Scenes with styles, and their pictures' normalised latents (N, 16, 16, 16) in half precision."""

    scenes: list[Scene]
    styles: list[Style]
    latents: torch.Tensor

    def picture(self, i: int) -> np.ndarray:
        return draw(self.scenes[i], self.styles[i])


def train_styled_autoencoder(
    work: Path, start: Path, seed: int = 0, steps: int = VAE_STEPS, log=print
) -> Path:
    """Trains the autoencoder of the pipeline in `start` further, on styled pictures; saves `work/styled-vae`.

    Crops lie on the latents' grid, like whole pictures, so that dots have the same position in every cell.
    The latents change, so scale and shift are set again.
    """
    from diffusers import AutoencoderTiny

    done = work / "styled-vae"
    if done.exists():
        return done
    torch.manual_seed(seed)
    vae: Any = AutoencoderTiny.from_pretrained(start / "vae").float()
    optimizer = torch.optim.AdamW(vae.parameters(), VAE_RATE, (0.9, 0.98), weight_decay=0.0)
    loop = WeightsLoop(vae, [optimizer], work / "styled-vae.ckpt", steps, seed, log=log)
    loop.run(lambda rng, step: autoencoder_step(vae, _styled_picture, rng, 8))
    standardise(vae, _styled_picture, random.Random(seed + 1))
    vae.eval().save_pretrained(done)
    return done


def train_styled_decoder(
    work: Path,
    seed: int = 0,
    steps: int = DECODER_STEPS,
    scenes: int = SCENES,
    compiled: bool = True,
    log=print,
) -> Path:
    """Trains the styled autoencoder's decoder alone; saves the autoencoder to `work/styled-vae-sharp`."""
    from diffusers import AutoencoderTiny

    done = work / "styled-vae-sharp"
    if done.exists():
        return done
    known = styled_scenes(work, seed, scenes, log)
    vae: Any = AutoencoderTiny.from_pretrained(work / "styled-vae").float()
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=1.5e-3, weight_decay=0.0, betas=(0.9, 0.98))
    loop = WeightsLoop(vae.decoder, [optimizer], work / "styled-decoder.ckpt", steps, seed, log=log)
    loop.run(decoder_step(vae, known.scenes, known.latents, known.picture, compiled))
    vae.eval().save_pretrained(done)
    return done


def _styled_picture(rng: random.Random) -> np.ndarray:
    scene = random_scene(rng)
    return draw(scene, random_style(rng) if rng.random() < 0.85 else PLAIN_STYLE)


def styled_scenes(work: Path, seed: int, count: int, log=print) -> StyledScenes:
    """Random scenes in random styles; the latents are cached in `work`."""
    from diffusers import AutoencoderTiny
    from safetensors.torch import load_file, save_file

    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    styles = [random_style(rng) for _ in range(count)]
    kept = work / f"styled-{count}-{seed}.safetensors"
    if not kept.exists():
        vae, parts = AutoencoderTiny.from_pretrained(work / "styled-vae").eval(), []
        for start in range(0, count, 64):
            part = slice(start, start + 64)
            parts.append(encode(vae, list(map(draw, scenes[part], styles[part]))).half())
            if start % 3200 == 0:
                log(f"encoded {start}/{count} scenes")
        save_file({"latents": torch.cat(parts).contiguous()}, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").replace(kept)
    return StyledScenes(scenes, styles, load_file(kept)["latents"])


def add_words(tokenizer: Any, encoder: Any) -> None:
    """Makes every style word one token, with a row in the encoder's embedding table."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in STYLE_WORDS])
    encoder.resize_token_embeddings(len(tokenizer))


def train_styled(
    work: Path,
    start: Path,
    out: Path,
    seed: int = 0,
    steps: int = STEPS,
    scenes: int = SCENES,
    compiled: bool = True,
    log=print,
) -> Path:
    """Trains the pipeline in `start`, a tiny FLUX or Stable Diffusion, on styles; writes `out`.

    The autoencoder is `work/styled-vae-sharp`; see `train_styled_decoder`.
    """
    from diffusers import AutoencoderTiny, DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(start, torch_dtype=torch.float32)
    vae: Any = AutoencoderTiny.from_pretrained(work / "styled-vae-sharp")
    torch.manual_seed(seed)
    known = styled_scenes(work, seed, scenes, log)
    layouts = torch.tensor([flux.layout(scene) for scene in known.scenes])
    model = (_Flux if hasattr(pipeline, "transformer") else _StableDiffusion)(pipeline)
    average = copy.deepcopy(model).requires_grad_(False)
    if compiled:
        model.compile()
    both = nn.ModuleDict({"model": model, "average": average})
    loop = WeightsLoop(both, _optimizers(model), work / f"{out.name}.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        chosen = [rng.randrange(len(known.scenes)) for _ in range(model.batch)]
        captions = [styled_caption(known.scenes[i], known.styles[i], rng) for i in chosen]
        clean = known.latents[chosen].float() + model.shift(vae)
        loss = model.error(clean, captions)
        (loss + flux.LAYOUT_WEIGHT * model.denoiser.layout_loss(layouts[chosen])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_average(average, model, EMA, step)
        return loss.item()

    loop.run(take_step)
    average.eval().install(pipeline, vae)
    return write_pipeline(pipeline, work / f"{out.name}-pipeline", out)


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels inside the denoiser's blocks, AdamW for the rest, with a low rate for the
    text encoders except their word embeddings."""
    matrices, others, text = [], [], []
    for name, p in model.named_parameters():
        if "blocks." in name and p.ndim > 1 and not name.startswith("text"):
            matrices.append(p)
        elif name.startswith("text") and not ("token_embedding" in name or "shared" in name):
            text.append(p)
        else:
            others.append(p)
    adam = torch.optim.AdamW(
        [{"params": others, "lr": RATE}, {"params": text, "lr": TEXT_RATE}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    return [Muon(matrices, lr=RATE), adam]


class _Flux(nn.Module):
    """A FluxPipeline's text encoders and transformer, with the loss of rectified flow."""

    batch = flux.BATCH

    def __init__(self, pipeline: Any):
        super().__init__()
        self.tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
        self.text, self.text_2 = pipeline.text_encoder, pipeline.text_encoder_2
        for pair in zip(self.tokenizers, (self.text, self.text_2), strict=True):
            add_words(*pair)
        self.denoiser = flux.FluxWithLayout(self.text, self.text_2, pipeline.transformer)

    def compile(self) -> None:
        self.denoiser.compile_transformer()

    def error(self, clean: torch.Tensor, captions: list[str]) -> torch.Tensor:
        ids = flux.tokenize(captions, *self.tokenizers)
        clean = flux.pack(clean)
        noise, sigma = torch.randn_like(clean), torch.sigmoid(torch.randn(len(clean)) * 1.2)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        return F.mse_loss(self.denoiser(noisy, sigma, *ids), noise - clean)

    def shift(self, vae: Any) -> float:
        """The offset of this pipeline's latents from normalised ones."""
        return 0.0

    def install(self, pipeline: Any, vae: Any) -> None:
        pipeline.register_modules(
            vae=vae, transformer=self.denoiser.transformer, text_encoder=self.text, text_encoder_2=self.text_2
        )


class _StableDiffusion(nn.Module):
    """A StableDiffusionPipeline's text encoder and U-Net, with the loss of velocity prediction."""

    batch = stable_diffusion.BATCH

    def __init__(self, pipeline: Any):
        super().__init__()
        self.tokenizer, self.scheduler = pipeline.tokenizer, pipeline.scheduler
        self.text = pipeline.text_encoder
        add_words(self.tokenizer, self.text)
        self.denoiser = stable_diffusion.UNetWithLayout()
        self.denoiser.unet.load_state_dict(pipeline.unet.state_dict())

    def compile(self) -> None:
        """Does nothing: compiling does not speed the U-Net up."""

    def error(self, clean: torch.Tensor, captions: list[str]) -> torch.Tensor:
        text = self.text(input_ids=stable_diffusion.tokenize(captions, self.tokenizer)).last_hidden_state
        noise = torch.randn_like(clean)
        timesteps: Any = torch.randint(len(self.scheduler.alphas_cumprod), (len(clean),))
        velocity = self.denoiser(self.scheduler.add_noise(clean, noise, timesteps), timesteps, text)
        return F.mse_loss(velocity, self.scheduler.get_velocity(clean, noise, timesteps))

    def shift(self, vae: Any) -> float:
        """Stable Diffusion's pipeline scales latents but does not shift them, so they keep the VAE's
        shift."""
        return vae.config.shift_factor * vae.config.scaling_factor

    def install(self, pipeline: Any, vae: Any) -> None:
        vae.register_to_config(shift_factor=0.0)
        pipeline.unet.load_state_dict(self.denoiser.unet.state_dict())
        pipeline.register_modules(vae=vae, text_encoder=self.text)
