"""Settings of PRIP's two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ...core.errors import UnknownName
from ...rewriters.prip.presets import PRESETS
from ..common.start import check_schedule


class Sources(Config):
    """Published parts in the place of a preset's, as folders or hub names."""

    encoder: str | None = None
    """A T5."""
    decoder: str | None = None
    """A causal language model."""
    image: str | None = None
    """A BLIP-2, of which the vision part is taken."""


class StageConfig(Config):
    """Settings of both stages."""

    model: str | None = None
    """The refiner to go on from: a folder, or shapeworld for the embedded one."""
    preset: str | None = None
    """Or what to begin with: shapeworld (small, from nothing), tinyllama or paper (published parts)."""
    sources: Sources = Sources()
    """Other published parts than the preset's."""
    tower: Path | None = None
    """Folder of a refiner whose vision tower takes the place of the preset's."""
    log: Path
    """Prompts and pictures: JSON lines of `reprise data pictures`, DiffusionDB's folders, or pictures with
    captions."""
    max_steps: PositiveInt = 1000
    """Optimiser steps in all."""
    batch_size: PositiveInt = 16
    """Records in one forward pass."""
    accumulation: PositiveInt = 1
    """Forward passes in one optimiser step."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    eval_share: float = Field(0.05, ge=0, lt=1)
    """Share of the user prompts that are not trained on but evaluated."""
    eval_every: PositiveInt = 100
    """Steps between evaluations, where prompts are held out; there is one before the first step, too."""
    eval_most: PositiveInt = 256
    """Records of an evaluation, where more are held out."""
    pivots: Path | None = None
    """Folder that keeps pictures' pivots, for several runs on the same pictures; by default the run's own."""
    export_dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """Of the weights in `final/`; float16 is for storage, CPUs compute in float32. same: as they are trained,
    and float32 (of bfloat16 twice the disk) with an adapter, whose small changes bfloat16 rounds away."""
    gradient_checkpointing: bool = True
    """Less memory, about a fifth slower."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps off the GPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of new weights, the records' order, and dropout."""
    save_every: PositiveInt = 100
    """Steps between checkpoints; a killed run loses at most these."""

    @model_validator(mode="after")
    def _startable(self) -> StageConfig:
        if (self.model is None) == (self.preset is None):
            raise ValueError("give one of model (a refiner to go on from) and preset (what to begin with)")
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(str(UnknownName("PRIP preset", self.preset, PRESETS)))
        own = self.preset is not None and bool(PRESETS[self.preset].sources)
        if self.sources != Sources() and not own:
            raise ValueError("sources replace published parts of a preset; set preset to tinyllama or paper")
        if self.tower is not None and self.preset is None:
            raise ValueError("tower takes the place of a preset's; set preset, or take it away")
        check_schedule(self.scheduler, self.warmup_ratio)
        return self
