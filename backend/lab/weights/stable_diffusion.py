"""The second renderer: a tiny Stable Diffusion on the same latents, to see what holds across architectures.

It has a U-Net with cross-attention instead of the transformer, CLIP's token states instead of T5's, and
diffusion instead of rectified flow: a cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672), velocity
prediction (Salimans & Ho 2022, arXiv 2202.00512, appendix D), and zero terminal SNR (Lin et al. 2024, arXiv
2305.08891), without which plain grounds come out grey. Captions, scenes, autoencoder and layout loss are the
first renderer's. As in Stable Diffusion, the text encoder is frozen.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...shapeworld.captions import training_caption
from ...shapeworld.scenes import Scene
from ...shapeworld.tokenizers import clip_tokenizer
from .assemble import write_pipeline
from .autoencoder import SCENES, encoded_scenes
from .flux import LATENT_CHANNELS, LATENT_SIZE, LAYOUT_WEIGHT, LayoutHead, layout
from .muon import muon_and_adamw
from .text_encoders import Reader, captioned_scenes
from .training import WeightsLoop, update_average

TEXT_STEPS, TEXT_BATCH, TEXT_RATE = 800, 32, 3e-3
STEPS, BATCH, RATE, EMA = 5500, 24, 1.2e-3, 0.998
TEXT_LENGTH, TEXT_WIDTH = 48, 128  # tokens; four things spelled out take up to 47


def new_text_encoder(projected: bool = False) -> Any:
    """A CLIPTextModel of 0.5 M parameters, or with `projected` a CLIPTextModelWithProjection.

    The latter has a fourth layer, because aMUSEd takes the token states from the layer before the last.
    Position embeddings start as sinusoids (Vaswani et al. 2017, arXiv 1706.03762), so that neighbouring words
    are related in the same way at every position.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer: Any = clip_tokenizer()
    clip = (CLIPTextModelWithProjection if projected else CLIPTextModel)(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=256,
            num_hidden_layers=4 if projected else 3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    angles = torch.arange(TEXT_LENGTH)[:, None] * 100.0 ** -torch.linspace(0, 1, TEXT_WIDTH // 2)
    positions = next(p for name, p in clip.named_parameters() if "position_embedding" in name)
    positions.data = torch.cat([angles.sin(), angles.cos()], -1) * 0.03  # about the size of word embeddings
    return clip


def read_text(clip: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A renderer's text conditions: token states (B, T, width), pooled vector (B, width)."""
    if not hasattr(clip, "text_projection"):
        read = clip(input_ids=ids)
        return read.last_hidden_state, read.pooler_output
    read = clip(input_ids=ids, output_hidden_states=True)
    return read.hidden_states[-2], read.text_embeds


class ClipGrounding(nn.Module):
    """The encoder with the `Reader` for its pre-training."""

    def __init__(self, clip: Any):
        super().__init__()
        self.clip = clip
        self.reader = Reader(TEXT_WIDTH, TEXT_WIDTH)

    def loss(self, scenes: list[Scene], ids: torch.Tensor) -> torch.Tensor:
        return self.reader.loss(scenes, *read_text(self.clip, ids))


def tokenize(captions: list[str], tokenizer: Any) -> torch.Tensor:
    """Token ids (B, TEXT_LENGTH), padded as in StableDiffusionPipeline."""
    ids = tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True)
    return torch.tensor(ids["input_ids"])


def train_text_encoder(work: Path, seed: int = 0, steps: int = TEXT_STEPS, log=print) -> Path:
    """Pre-trains the text encoder as T5 is, place by place; saves `work/sd/text_encoder`."""
    return ground_text_encoder(work / "sd", False, seed, steps, log)


def ground_text_encoder(work: Path, projected: bool, seed: int, steps: int, log=print) -> Path:
    """Pre-trains an encoder of `new_text_encoder`; saves `work/text_encoder`."""
    done = work / "text_encoder"
    if done.exists():
        return done
    work.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    model, tokenizer = ClipGrounding(new_text_encoder(projected)), clip_tokenizer(TEXT_LENGTH)
    optimizers = muon_and_adamw(model, "encoder.layers", rate=TEXT_RATE)
    loop = WeightsLoop(model, optimizers, work / "text.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        scenes, captions = captioned_scenes(rng, TEXT_BATCH)
        loss = model.loss(scenes, tokenize(captions, tokenizer))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    model.clip.eval().save_pretrained(done)
    return done


def new_scheduler():
    """The DDIM scheduler: the noise levels of training, and the pipeline's default sampler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # as SD pipelines require
    )


def new_unet() -> Any:  # diffusers types its config as a dict, its blocks as tensors too
    """A U-Net of 1.7 M parameters: outlines are drawn at 16 x 16, the layout at 8 x 8 with all the
    attention."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 96),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,  # diffusers means the number of heads
    )
    nn.init.zeros_(unet.conv_out.weight)
    return unet


class UNetWithLayout(nn.Module):
    """The U-Net, with the layout head on the features after its second attention, used only in training."""

    def __init__(self):
        super().__init__()
        self.unet = new_unet()
        self.layout = LayoutHead(self.unet.config.block_out_channels[-1])
        self.features: torch.Tensor | None = None
        self.unet.up_blocks[0].attentions[0].register_forward_hook(self._keep_features)

    def _keep_features(self, _block, _inputs, output) -> None:
        self.features = output[0].flatten(2).transpose(1, 2)  # (B, 64, width)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, timesteps, text, return_dict=False)[0]

    def layout_loss(self, layouts: torch.Tensor) -> torch.Tensor:
        """The layout head's loss on the features of the last forward pass."""
        assert self.features is not None
        return self.layout.loss(self.features, layouts)


def train_unet(work: Path, seed: int = 0, steps: int = STEPS, scenes: int = SCENES, log=print) -> Path:
    """Trains on the frozen text encoder in `work/sd` and the autoencoder in `work`; saves `work/sd/unet`."""
    from diffusers import AutoencoderTiny
    from transformers import CLIPTextModel

    done = work / "sd" / "unet"
    if done.exists():
        return done
    known, latents = encoded_scenes(work, seed, scenes, log)
    vae: Any = AutoencoderTiny.from_pretrained(work / "autoencoder")
    # StableDiffusionPipeline has a scale but no shift, so the shift stays in the latents.
    shift = vae.config.shift_factor * vae.config.scaling_factor
    layouts = torch.tensor([layout(scene) for scene in known])
    torch.manual_seed(seed)
    clip = CLIPTextModel.from_pretrained(work / "sd" / "text_encoder").eval()
    model, tokenizer, scheduler = UNetWithLayout().train(), clip_tokenizer(TEXT_LENGTH), new_scheduler()
    average = copy.deepcopy(model).requires_grad_(False)
    both = nn.ModuleDict({"model": model, "average": average})
    optimizers = muon_and_adamw(model, "_blocks.", rate=RATE, kernels=True)
    loop = WeightsLoop(both, optimizers, work / "sd" / "unet.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        chosen = [rng.randrange(len(known)) for _ in range(BATCH)]
        ids = tokenize([training_caption(known[i], rng) for i in chosen], tokenizer)
        with torch.no_grad():
            text = clip(input_ids=ids).last_hidden_state
        clean = latents[chosen].float() + shift
        noise = torch.randn_like(clean)
        timesteps: Any = torch.randint(len(scheduler.alphas_cumprod), (BATCH,))
        velocity = model(scheduler.add_noise(clean, noise, timesteps), timesteps, text)
        loss = F.mse_loss(velocity, scheduler.get_velocity(clean, noise, timesteps))
        (loss + LAYOUT_WEIGHT * model.layout_loss(layouts[chosen])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_average(average, model, EMA, step)
        return loss.item()

    loop.run(take_step)
    average.unet.eval().save_pretrained(done)
    return done


def assemble_second(work: Path, out: Path) -> Path:
    """Writes `out`, a StableDiffusionPipeline's folder, from the models in `work/sd` and `work/vae`."""
    from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    vae: Any = AutoencoderTiny.from_pretrained(work / "vae")
    vae.register_to_config(shift_factor=0.0)
    parts: dict[str, Any] = {  # without a safety checker and its feature extractor
        "vae": vae,
        "text_encoder": CLIPTextModel.from_pretrained(work / "sd" / "text_encoder"),
        "tokenizer": clip_tokenizer(TEXT_LENGTH),
        "scheduler": new_scheduler(),
        "unet": UNet2DConditionModel.from_pretrained(work / "sd" / "unet"),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    return write_pipeline(pipeline, work / "sd" / "pipeline", out)
