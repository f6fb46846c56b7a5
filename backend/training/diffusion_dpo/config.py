"""Settings of `reprise train diffusion-dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.config import Config
from ...renderers.settings import RendererSettings
from ..common.start import check_offload, check_schedule
from ..rounds import RoundSettings


class DenoiserLora(Config):
    """The adapter. It is all that is trained and all that is written."""

    r: PositiveInt = 16
    """Rank; 8-32 are usual."""
    alpha: PositiveFloat = 16.0
    """Its scale is alpha / r."""
    targets: Literal["attention", "blocks"] = "attention"
    """attention: the attention's linear layers; blocks: those of the feed-forward parts, too."""


class DiffusionDpoConfig(Config):
    """Settings of `reprise train diffusion-dpo`."""

    model: str
    """What draws: a diffusers folder, a hub name, or shapeworld for the embedded renderer."""
    preferences: Path | None = None
    """A folder that `reprise preferences mine` or `import` filled; with `rounds` each has its own."""
    rounds: RendererRounds | None = None
    """Draw and judge the pairs, too, again and again with what was learned; below they are of each round."""
    start: Path | None = None
    """A LoRA file of this trainer to go on from, of the same rank and targets; it is the reference, too."""
    reward: str | None = None
    """Learn from this reward's pairs alone."""
    margin: float = Field(0.0, ge=0)
    """Pairs that are closer are ties; in the same parts as when they were mined."""
    size: int | None = Field(None, ge=64)
    """Side of the training pictures in pixels, cut from the middle; by default they are taken as they are."""
    max_sequence_length: PositiveInt | None = None
    """Tokens of text, for renderers that have no fixed length; as when drawing."""
    guidance: float | None = Field(None, ge=0)
    """FLUX dev's embedded guidance while training; by default its 3.5."""
    beta: PositiveFloat | None = None
    """How near the reference is kept; see losses.diffusion_dpo. By default 5000, for flows 100."""
    weigh_by: str | None = None
    """PARM guidance: pairs count by how much this judge prefers their better picture; margin, or a reward."""
    judge: JudgeGradient | None = None
    """PARM guidance through a judge's own gradient; see `guidance`."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How the times of the noise are drawn: evenly, or most of them in the middle, as SD3 and FLUX were."""
    shift: PositiveFloat | None = None
    """Of a flow's times towards noise; by default as its pipeline shifts them at this size."""
    lora: DenoiserLora = DenoiserLora()
    """The adapter."""
    max_steps: PositiveInt = 500
    """Optimiser steps in all."""
    batch_size: PositiveInt = 4
    """Pairs in one forward pass: twice as many pictures."""
    accumulation: PositiveInt = 4
    """Forward passes in one optimiser step."""
    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate; 1e-5 to 3e-4 for a LoRA."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "constant_with_warmup"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    eval_share: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts whose pairs are not trained on but evaluated."""
    eval_every: PositiveInt = 50
    """Steps between evaluations, where pairs are held out; there is one before the first step, too."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the renderer's frozen weights; the adapter is float32. auto: bfloat16 on a GPU that has it."""
    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the LoRA in `final/`."""
    gradient_checkpointing: bool = True
    """Less memory, about a third slower."""
    device: Literal["auto", "cpu"] = "auto"
    """cpu keeps off the GPU."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the adapter's first weights, the pairs' order, and the noise."""
    save_every: PositiveInt = 50
    """Steps between checkpoints; a killed run loses at most these."""

    @model_validator(mode="after")
    def _possible(self) -> DiffusionDpoConfig:
        check_schedule(self.scheduler, self.warmup_ratio)
        if (self.preferences is None) == (self.rounds is None):
            raise ValueError("pairs come from a folder, preferences, or from rounds; give one of the two")
        if self.rounds is not None:
            self.rounds.check(self.model, self.reward, self.weigh_by)
            check_offload(self.device, self.rounds.offload)
        return self


MARGIN = "margin"  # a pair's own, of whatever scored it


class JudgeGradient(Config):
    """A judge's score of predicted pictures, beside the loss of pairs."""

    reward: str
    """Which: image-reward, hps-v2.1, pick-score, clip-score, …"""
    weight: PositiveFloat = 0.1
    """Of its score, brought to 0..1 by its range, beside the loss of a pair, which begins at log 2."""
    until: float = Field(0.5, gt=0, le=1)
    """Pictures are looked at where noise is less than this share of what the denoiser sees; else unclear."""


class RendererRounds(RoundSettings):
    """Rounds of `reprise train diffusion-dpo`; the renderer that draws is the one that is trained."""

    images: int = Field(8, ge=2)
    """Pictures of each prompt."""
    pairs: PositiveInt = 1
    """Pairs of a prompt at most: best and worst, second best and …"""
    eval_images: PositiveInt = 4
    """Pictures of each prompt of an evaluation; their seeds are the same in all."""

    def check(self, model: str, reward: str | None, weigh_by: str | None) -> None:
        """Raises ValueError for another renderer than the one that is trained, and a judge that none asks."""
        if self.renderer.name not in (model, RendererSettings().name):
            raise ValueError(f"rounds draw with what is trained, {model}; leave rounds.renderer.name out")
        if self.renderer.lora is not None:
            raise ValueError("the LoRA that rounds go on from is `start`; leave rounds.renderer.lora out")
        if reward is not None:
            raise ValueError("the pairs of rounds are those of rounds.rewards; leave reward out")
        if weigh_by not in (None, MARGIN, *self.rewards, *self.held_out):
            raise ValueError(f"no round asks the judge {weigh_by!r} of weigh_by; add it to rounds.held_out")
