"""The differences between diffusers' text-to-image pipelines, as a table.

To add a family: one entry here, and a tiny pipeline of it in `tests/backend/renderers/conftest.py`, which
runs all tests on it. Everything else is common to diffusers' pipelines.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import Unsupported
from .tokens import encode_text

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Family:
    """How a pipeline class encodes prompts, applies guidance, and stores its latents."""

    name: str
    denoiser: str  # name of the component that is evaluated at each step
    # {embedding argument of __call__: its index in encode_prompt's result}
    embeddings: dict[str, int]
    half: str = "bfloat16"  # half precision that it was trained in or is known to be stable in
    single_encode: bool = False  # encode_prompt makes no negative embeddings (FLUX)
    has_text_length: bool = True  # takes max_sequence_length
    packed: bool = False  # latents are sequences of 2 x 2 patches
    tokens: bool = False  # latents are masked codebook ids (see `tokens.py`)
    vae: str = "vae"  # name of the component that decodes
    upcasts_vae: bool = False  # the pipeline decodes in float32 if its VAE overflows in float16
    step: int = 1  # width and height must be multiples of this, whatever the VAE's scale
    call: tuple[tuple[str, Any], ...] = ()  # further arguments of __call__
    img2img: str | None = None  # diffusers' image-to-image class with the same components

    def encode(self, pipeline: Any, text: str, length: int | None) -> dict[str, Tensor]:
        """One prompt -> its embeddings by argument name, each (1, …)."""
        if self.tokens:
            result = encode_text(pipeline, text)
            return {name: result[place] for name, place in self.embeddings.items()}
        arguments: dict[str, Any] = {"prompt": text, "device": pipeline._execution_device}
        accepted = inspect.signature(pipeline.encode_prompt).parameters
        # Required if a class has several text encoders; None means the same prompt.
        arguments |= {name: None for name in ("prompt_2", "prompt_3") if name in accepted}
        if "num_images_per_prompt" in accepted:
            arguments["num_images_per_prompt"] = 1
        if not self.single_encode:
            arguments["do_classifier_free_guidance"] = False
        if "clean_caption" in accepted:
            # The cleaning would depend on whether beautifulsoup4 and ftfy are installed.
            arguments["clean_caption"] = False
        if length is not None:
            arguments["max_sequence_length"] = length
        result = pipeline.encode_prompt(**arguments)
        return {name: result[place] for name, place in self.embeddings.items()}

    def zero_negative(self, pipeline: Any) -> bool:
        """Whether the embeddings of an empty negative prompt are zeros, as some SDXL checkpoints say."""
        return bool(pipeline.config.get("force_zeros_for_empty_prompt", False))

    def multiple(self, pipeline: Any) -> int:
        """Width and height must be multiples of this many pixels."""
        scale = pipeline.vae_scale_factor
        if self.packed:
            return scale * 2
        config = getattr(pipeline, self.denoiser).config
        patch = 2 if self.tokens and config.downsample else config.get("patch_size") or 1
        return math.lcm(scale * patch, self.step)

    def default_size(self, pipeline: Any) -> int:
        """The pipeline's default picture side in pixels."""
        side = getattr(pipeline, "default_sample_size", None)
        if side is None:
            side = getattr(pipeline, self.denoiser).config.sample_size
        return (side if isinstance(side, int) else side[0]) * pipeline.vae_scale_factor

    def unpack(self, pipeline: Any, latents: Tensor, width: int, height: int) -> Tensor:
        """Latents in the sampler's layout -> (B, C, h, w)."""
        if not self.packed:
            return latents
        return pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)


_POOLED = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}
FAMILIES: dict[str, Family] = {
    "FluxPipeline": Family(
        "FLUX",
        "transformer",
        {"prompt_embeds": 0, "pooled_prompt_embeds": 1},
        single_encode=True,
        packed=True,
        img2img="FluxImg2ImgPipeline",
    ),
    "StableDiffusion3Pipeline": Family(
        "SD3",
        "transformer",
        _POOLED,
        img2img="StableDiffusion3Img2ImgPipeline",
    ),
    "StableDiffusionPipeline": Family(
        "SD1.x",
        "unet",
        {"prompt_embeds": 0},
        half="float16",
        has_text_length=False,
        step=8,
        img2img="StableDiffusionImg2ImgPipeline",
    ),
    "StableDiffusionXLPipeline": Family(
        "SDXL",
        "unet",
        _POOLED,
        half="float16",
        has_text_length=False,
        upcasts_vae=True,
        step=8,
        img2img="StableDiffusionXLImg2ImgPipeline",
    ),
    "PixArtSigmaPipeline": Family(
        "PixArt-Sigma",
        "transformer",
        {"prompt_embeds": 0, "prompt_attention_mask": 1},
        step=8,
        # Resolution binning would draw another size and resize it.
        call=(("use_resolution_binning", False), ("negative_prompt", None)),
    ),
    "AmusedPipeline": Family(
        "aMUSEd",
        "transformer",
        {"prompt_embeds": 0, "encoder_hidden_states": 1},
        half="float16",
        has_text_length=False,
        tokens=True,
        vae="vqvae",
        upcasts_vae=True,
        img2img="AmusedImg2ImgPipeline",
    ),
}


def family_of(class_name: str) -> Family:
    """The family of a pipeline class. Raises Unsupported with the supported ones."""
    if class_name in FAMILIES:
        return FAMILIES[class_name]
    raise Unsupported(
        f"{class_name} is no text-to-image pipeline that this renderer knows; it draws with "
        + ", ".join(f"{known} ({family.name})" for known, family in FAMILIES.items())
    )
