"""The embedded renderers of ShapeWorld: a tiny FLUX, Stable Diffusion and aMUSEd, and a tiny few-step Chroma.

They use diffusers' own pipeline classes. The first two also come in a version trained on the styles of
`shapeworld/styles.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.model_files import EMBEDDED_WEIGHTS
from ..core.types import RendererCapabilities
from ..storage.cache import Cache
from .diffusers.renderer import DiffusersRenderer

WEIGHTS = EMBEDDED_WEIGHTS / "renderer"
SD_WEIGHTS = WEIGHTS.with_name("renderer-sd")
MASKED_WEIGHTS = WEIGHTS.with_name("renderer-masked")
TURBO_WEIGHTS = WEIGHTS.with_name("renderer-turbo")


def _capabilities(**fixed: int) -> RendererCapabilities:
    return replace(DiffusersRenderer.capabilities, shapeworld=True, fixed={"size": 128, **fixed})


class EmbeddedRenderer(DiffusersRenderer):
    """128-pixel pictures of coloured shapes, on a CPU in seconds. The weights were trained with what
    `capabilities` has as fixed."""

    STEPS = 16
    GUIDANCE: Mapping[str, float]  # the argument that guides this pipeline, and its value
    CHUNK = 64  # rows evaluated at once; a row's activations are a few megabytes
    folder: Path

    def __init__(self, folder: str | Path | None = None, *, cache: Cache | None = None, **settings: Any):
        given = {"steps": self.STEPS, **self.GUIDANCE, "chunk": self.CHUNK, **settings}
        fixed: Mapping[str, Any] = self.capabilities.fixed
        super().__init__(Path(folder or self.folder), cache=cache, **given, **fixed)


class ShapeWorldRenderer(EmbeddedRenderer):
    """A tiny FLUX.

    It is guided by true CFG against an empty prompt, so a candidate costs two denoiser rows per step.
    """

    name = "shapeworld"
    GUIDANCE = {"true_cfg": 3.0}
    TEXT_LENGTH = 48  # tokens; its text encoders were trained with this length
    capabilities = _capabilities(max_sequence_length=TEXT_LENGTH)
    folder = WEIGHTS


class ShapeWorldSDRenderer(EmbeddedRenderer):
    """A tiny Stable Diffusion that draws the same pictures, to see whether what helps one architecture helps
    the other."""

    name = "shapeworld-sd"
    GUIDANCE = {"guidance": 3.0}  # against an empty prompt: two denoiser rows per step
    capabilities = _capabilities()
    folder = SD_WEIGHTS


class ShapeWorldMaskedRenderer(EmbeddedRenderer):
    """A tiny aMUSEd that draws the same pictures from masked tokens, the kind of model PARM was made for."""

    name = "shapeworld-masked"
    # Against an empty prompt: two rows per step; a larger scale distorts outlines.
    GUIDANCE = {"guidance": 1.25}
    capabilities = _capabilities()
    folder = MASKED_WEIGHTS


class ShapeWorldTurboRenderer(EmbeddedRenderer):
    """A tiny Chroma, distilled from the tiny FLUX to four steps without guidance: one denoiser row a step."""

    name = "shapeworld-turbo"
    STEPS = 4  # or a multiple
    GUIDANCE = {"guidance": 1.0}  # none
    capabilities = _capabilities(max_sequence_length=ShapeWorldRenderer.TEXT_LENGTH)
    folder = TURBO_WEIGHTS


class StyledRenderer(ShapeWorldRenderer):
    """The tiny FLUX that draws styles if the prompt names them."""

    name = "shapeworld-styled"
    folder = WEIGHTS.with_name("renderer-styled")


class StyledSDRenderer(ShapeWorldSDRenderer):
    """The tiny Stable Diffusion that draws styles if the prompt names them."""

    name = "shapeworld-sd-styled"
    folder = WEIGHTS.with_name("renderer-sd-styled")
