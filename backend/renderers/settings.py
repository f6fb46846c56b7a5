"""Settings of the renderer that draws while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from ..core.config import Config


class RendererSettings(Config):
    """The renderer that draws while training. For values of None the renderer's own default applies."""

    name: str = "shapeworld"
    """As for --renderer: an embedded renderer's name, a diffusers folder, a Hugging Face name, a single file
    of weights, a ComfyUI workflow."""
    steps: PositiveInt | None = None
    """Denoising steps. Fewer than in use are enough, because pictures are compared only within a group."""
    size: int | str | None = None
    """Side of a picture in pixels, or its width and height as 1024x768."""
    guidance: float | None = Field(default=None, ge=0)
    """The pipeline's guidance_scale."""
    true_cfg: float | None = Field(default=None, ge=1)
    """For pipelines with a true_cfg_scale, such as FLUX and Qwen-Image: guidance by a second evaluation
    against the negative prompt."""
    negative_prompt: str = ""
    """What the picture should not show; needs guidance."""
    max_sequence_length: PositiveInt | None = None
    """Text tokens that the denoiser reads. A small number is much faster at 512 pixels."""
    lora: list[str] = Field(default_factory=list)
    """LoRA files, in the layout of any common trainer: FILE, or FILE:STRENGTH such as style.safetensors:0.8.
    Several add up."""

    @field_validator("lora", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [] if value is None else [str(value)] if isinstance(value, (str, Path)) else value

    base: str | None = None
    """With a single file: the folder or Hugging Face name of a pipeline of its family, from which configs,
    tokenizers, the scheduler and all parts come that the file does not hold."""
    parts: dict[str, Path] = Field(default_factory=dict)
    """With a single file: files of parts of its pipeline, by name, such as {vae: ae.safetensors}."""
    comfyui: Path | None = None
    """A ComfyUI's folder. Single files may be named as it lists them, and their parts are found there."""
    scheduler: str | None = None
    """A class of diffusers that steps instead of the pipeline's own scheduler, with its config, such as
    EulerAncestralDiscreteScheduler."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of its weights."""
    quantize: Literal["nf4", "int8", "fp8"] | None = None
    """Keep the denoiser's and large text encoders' weights in 4 or 8 bits, to save memory. nf4 needs the
    package bitsandbytes."""
    device: str | None = None
    """Where it computes: auto, cpu, cuda, cuda:1 or mps."""
    offload: Literal["auto", "none", "model", "sequential"] | None = None
    """How a diffusers pipeline saves GPU memory."""
    chunk: PositiveInt | None = None
    """Rows that the denoiser evaluates at once."""
    vae_tiling: bool = False
    """Decode pictures in tiles: less memory for large ones, and they differ a little where tiles meet."""
    batch: PositiveInt = 64
    """Pictures per call."""

    @field_validator("size")
    @classmethod
    def _read_size(cls, size: int | str | None) -> int | str | None:
        found = sides(size)
        return found if isinstance(found, int) else size


def sides(size: int | str | None) -> int | tuple[int, int] | None:
    """A size as it is written -> a side or (width, height) in pixels. Raises ValueError."""
    if size is None:
        return None
    found = [int(side) for side in str(size).lower().split("x") if side.isdecimal()]
    if len(found) != str(size).lower().count("x") + 1 or not 1 <= len(found) <= 2 or min(found) < 64:
        raise ValueError("expected a side of 64 pixels or more, or WIDTHxHEIGHT like 1024x768")
    return found[0] if len(found) == 1 else (found[0], found[1])
