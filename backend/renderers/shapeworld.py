"""The embedded renderers: ShapeWorld by a tiny FLUX, a tiny Stable Diffusion and a tiny aMUSEd, with the real
classes; and the first two again, taught the styles of `shapeworld/styles.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.model_files import EMBEDDED_WEIGHTS
from ..storage.cache import Cache
from .diffusers.renderer import DiffusersRenderer

WEIGHTS = EMBEDDED_WEIGHTS / "renderer"
SD_WEIGHTS = WEIGHTS.with_name("renderer-sd")
MASKED_WEIGHTS = WEIGHTS.with_name("renderer-masked")


class ShapeWorldRenderer(DiffusersRenderer):
    """128-pixel pictures of coloured shapes, on a CPU in seconds.

    Guided by true CFG against an empty prompt, so one candidate is two denoiser rows a step.
    """

    name = "shapeworld"
    SIZE = 128
    STEPS = 16
    CFG = 3.0
    TEXT_LENGTH = 48  # tokens that its text encoders were trained on
    CHUNK = 64  # rows at once; a row's activations are a few megabytes
    capabilities = replace(
        DiffusersRenderer.capabilities,
        shapeworld=True,
        fixed={"size": SIZE, "max_sequence_length": TEXT_LENGTH},
    )
    folder: Path = WEIGHTS

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        steps: int = STEPS,
        true_cfg: float = CFG,
        chunk: int = CHUNK,
        dtype: str = "auto",
        device: str = "auto",
        cache: Cache | None = None,
        **settings: Any,
    ):
        super().__init__(
            Path(folder or self.folder),
            steps=steps,
            true_cfg=true_cfg,
            size=self.SIZE,
            chunk=chunk,
            dtype=dtype,
            device=device,
            max_sequence_length=self.TEXT_LENGTH,
            cache=cache,
            **settings,
        )


class ShapeWorldSDRenderer(DiffusersRenderer):
    """The same pictures by another architecture, a tiny Stable Diffusion: does what helps one help both?"""

    name = "shapeworld-sd"
    SIZE = 128
    STEPS = 16
    GUIDANCE = 3.0  # against an empty prompt: two denoiser rows a step
    CHUNK = 64
    capabilities = replace(DiffusersRenderer.capabilities, shapeworld=True, fixed={"size": SIZE})
    folder: Path = SD_WEIGHTS

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        chunk: int = CHUNK,
        dtype: str = "auto",
        device: str = "auto",
        cache: Cache | None = None,
        **settings: Any,
    ):
        super().__init__(
            Path(folder or self.folder),
            steps=steps,
            guidance=guidance,
            size=self.SIZE,
            chunk=chunk,
            dtype=dtype,
            device=device,
            cache=cache,
            **settings,
        )


class ShapeWorldMaskedRenderer(DiffusersRenderer):
    """The same pictures from masked tokens, by a tiny aMUSEd: the kind of model that PARM was made on."""

    name = "shapeworld-masked"
    SIZE = 128
    STEPS = 16
    GUIDANCE = 1.25  # against an empty prompt: two rows of the transformer a step; more bends outlines
    CHUNK = 64
    capabilities = replace(DiffusersRenderer.capabilities, shapeworld=True, fixed={"size": SIZE})
    folder: Path = MASKED_WEIGHTS

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        chunk: int = CHUNK,
        dtype: str = "auto",
        device: str = "auto",
        cache: Cache | None = None,
        **settings: Any,
    ):
        super().__init__(
            Path(folder or self.folder),
            steps=steps,
            guidance=guidance,
            size=self.SIZE,
            chunk=chunk,
            dtype=dtype,
            device=device,
            cache=cache,
            **settings,
        )


class StyledRenderer(ShapeWorldRenderer):
    """The tiny FLUX that knows the words of styles."""

    name = "shapeworld-styled"
    folder = WEIGHTS.with_name("renderer-styled")


class StyledSDRenderer(ShapeWorldSDRenderer):
    """The tiny Stable Diffusion that knows the words of styles."""

    name = "shapeworld-sd-styled"
    folder = WEIGHTS.with_name("renderer-sd-styled")
