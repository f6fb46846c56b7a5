"""The embedded renderers of ShapeWorld: a tiny FLUX, Stable Diffusion and aMUSEd, and a tiny few-step Chroma.

They use diffusers' own pipeline classes. The first two also come in a version trained on the styles of
`shapeworld/styles.py`.
"""

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
TURBO_WEIGHTS = WEIGHTS.with_name("renderer-turbo")


class ShapeWorldRenderer(DiffusersRenderer):
    """A tiny FLUX: 128-pixel pictures of coloured shapes, on a CPU in seconds.

    It is guided by true CFG against an empty prompt, so a candidate costs two denoiser rows per step.
    """

    name = "shapeworld"
    SIZE = 128
    STEPS = 16
    CFG = 3.0
    TEXT_LENGTH = 48  # tokens; its text encoders were trained with this length
    CHUNK = 64  # rows evaluated at once; a row's activations are a few megabytes
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
    """A tiny Stable Diffusion that draws the same pictures, to see whether what helps one architecture helps
    the other."""

    name = "shapeworld-sd"
    SIZE = 128
    STEPS = 16
    GUIDANCE = 3.0  # against an empty prompt: two denoiser rows per step
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
    """A tiny aMUSEd that draws the same pictures from masked tokens, the kind of model PARM was made for."""

    name = "shapeworld-masked"
    SIZE = 128
    STEPS = 16
    GUIDANCE = 1.25  # against an empty prompt: two rows per step; a larger scale distorts outlines
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


class ShapeWorldTurboRenderer(DiffusersRenderer):
    """A tiny Chroma, distilled from the tiny FLUX to four steps without guidance: one denoiser row a step."""

    name = "shapeworld-turbo"
    SIZE = 128
    STEPS = 4  # or a multiple
    GUIDANCE = 1.0  # none
    TEXT_LENGTH = 48  # tokens, as the tiny FLUX
    CHUNK = 64
    capabilities = replace(
        DiffusersRenderer.capabilities,
        shapeworld=True,
        fixed={"size": SIZE, "max_sequence_length": TEXT_LENGTH},
    )
    folder: Path = TURBO_WEIGHTS

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
            max_sequence_length=self.TEXT_LENGTH,
            cache=cache,
            **settings,
        )


class StyledRenderer(ShapeWorldRenderer):
    """The tiny FLUX that draws styles if the prompt names them."""

    name = "shapeworld-styled"
    folder = WEIGHTS.with_name("renderer-styled")


class StyledSDRenderer(ShapeWorldSDRenderer):
    """The tiny Stable Diffusion that draws styles if the prompt names them."""

    name = "shapeworld-sd-styled"
    folder = WEIGHTS.with_name("renderer-sd-styled")
