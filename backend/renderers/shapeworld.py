"""The embedded renderer: a tiny FLUX of ShapeWorld, drawn with the same classes as a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cache import Cache
from .diffusers import DiffusersRenderer

WEIGHTS = Path(__file__).resolve().parents[1] / "shapeworld" / "weights" / "renderer"


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

    def __init__(self, folder: str | Path = WEIGHTS, *, steps: int = STEPS, true_cfg: float = CFG,
                 chunk: int = CHUNK, dtype: str = "auto", device: str = "auto", cache: Cache | None = None,
                 **settings: Any):
        super().__init__(
            Path(folder), steps=steps, true_cfg=true_cfg, size=self.SIZE, chunk=chunk, dtype=dtype,
            device=device, max_sequence_length=self.TEXT_LENGTH, cache=cache, **settings,
        )  # fmt: skip
