"""Settings of `reprise train prip-decoder` and `reprise train prip-encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ...core.errors import UnknownName
from ...rewriters.prip.presets import PRESETS
from ..common.settings import (
    Adapter,
    Batches,
    Checkpointing,
    Export,
    HeldOutShare,
    LoraSettings,
    Optimisation,
    Run,
    Steps,
)


class Sources(Config):
    """Published models in place of a preset's, as folders or hub names."""

    encoder: str | None = None
    """A T5 encoder. null: the preset's."""
    decoder: str | None = None
    """A causal language model. null: the preset's."""
    image: str | None = None
    """A BLIP-2, of which the vision part is taken. null: the preset's."""


class StageConfig(Batches, Steps, HeldOutShare, Optimisation, Run, Export, Checkpointing):
    """Settings of both stages."""

    model: str | None = None
    """The refiner to go on from: a folder, or shapeworld for the embedded one. Give this, or preset."""
    preset: str | None = None
    """What to start with: shapeworld (small, from new weights), tinyllama or paper (published models)."""
    sources: Sources = Sources()
    """Other published models than the preset's."""
    tower: Path | None = None
    """Folder of a refiner whose vision tower takes the place of the preset's."""
    log: Path
    """Prompts and their pictures: JSON lines of `reprise data pictures`, folders of DiffusionDB, or pictures
    with captions."""
    batch_size: PositiveInt = 16
    eval_most: PositiveInt = 256
    """At most that many held-out records are used for an evaluation."""
    pivots: Path | None = None
    """Folder that stores the pictures' pivots, for several runs on the same pictures. null: the run's own."""

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
        return self


class DecoderConfig(StageConfig, Adapter):
    """Settings of `reprise train prip-decoder`."""

    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate: 2e-5 for all weights, about 2e-4 for an adapter."""
    least: dict[str, float] = {}
    """Name of a reward -> lowest score, in the log, of a picture to learn from. The paper's are 0.28 of CLIP
    and 5.2 of aesthetic."""
    max_tokens: PositiveInt = 128
    """Longest prompt in tokens. Longer ones are left out, never cut."""
    train_image: bool = False
    """Train the vision tower as well: for a preset without a published one."""
    blind: bool = False
    """The paper's ablation "without pivot-system decoding": the decoder learns prompts as a language model
    does, sees no picture (pivots of zeros), and the projector stays as it starts."""
    lora: LoraSettings | None = None
    """Train a low-rank adapter in place of all weights of the decoder, beside the whole projector."""
    max_new_tokens: PositiveInt = 64
    """Stored with the refiner: longest addition to a prompt in tokens."""
    temperature: PositiveFloat = 0.9
    """Stored with the refiner: temperature at which variants are sampled."""

    @model_validator(mode="after")
    def _possible(self) -> DecoderConfig:
        if self.train_image and (self.preset is None or PRESETS[self.preset].sources):
            raise ValueError(
                "train_image is for a vision tower from nothing (preset: shapeworld); a published one, or "
                "one that other stages have learned from, stays as it is: take train_image away"
            )
        if self.train_image and (self.tower or self.blind):
            raise ValueError(
                "a tower that is given is not trained, and a blind decoder has nothing to teach "
                "it; take train_image away"
            )
        return self


class EncoderConfig(StageConfig):
    """Settings of `reprise train prip-encoder`."""

    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate, which is larger for a small encoder than for a whole language model."""
    rewards: dict[str, PositiveFloat] = Field({"image-reward": 1.0}, min_length=1)
    """Name of a reward -> its weight. Their scores in the log say which picture of a prompt is preferred."""
    preferred: Literal["best", "random"] = "best"
    """The picture of a prompt that is the target. best: the one with the highest score. random: any, which is
    the paper's ablation."""

    @model_validator(mode="after")
    def _possible(self) -> EncoderConfig:
        if self.preferred == "random" and "rewards" in self.model_fields_set:
            if self.rewards != type(self).model_fields["rewards"].default:
                raise ValueError("preferred=random asks no reward; leave rewards out")
        return self
