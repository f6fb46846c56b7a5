"""Settings of the renderer that draws while training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from ..core.config import Config


class RendererSettings(Config):
    """What draws while training. What is None is left to the renderer."""

    name: str = "shapeworld"
    """As --renderer takes it: a name of ours, a diffusers folder, a Hugging Face name, a ComfyUI workflow."""
    steps: PositiveInt | None = None
    """Denoising steps; fewer than in use, since a group is compared with itself."""
    size: int | None = Field(default=None, ge=64)
    """Side of a picture in pixels."""
    guidance: float | None = Field(default=None, ge=0)
    """The pipeline's guidance_scale."""
    true_cfg: float | None = Field(default=None, ge=1)
    """FLUX alone: a second evaluation against the empty prompt."""
    max_sequence_length: PositiveInt | None = None
    """Tokens of text that the denoiser reads; short ones are much faster at 512 pixels."""
    lora: Path | None = None
    """A LoRA file of `reprise train diffusion-dpo` for this renderer."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of its weights."""
    offload: Literal["auto", "none", "model", "sequential"] | None = None
    """How a diffusers pipeline spares GPU memory by itself."""
    chunk: PositiveInt | None = None
    """Rows that the denoiser evaluates at once."""
    batch: PositiveInt = 64
    """Pictures asked for in one call."""
